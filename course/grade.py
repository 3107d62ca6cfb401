"""Grades an assignment: says that it is right, or names the mistake.

    python course/grade.py assignment1.py

Both towers run as two threads of a process of their own, which is ended after a minute, so nothing can hang. Each
has a module of its own, made from the reader's file, so that what is global there is so in one tower, as it would be
in two processes.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

COURSE = Path(__file__).resolve().parent
SECONDS = 60
NUMBERS = {"stream": 4, "start": 3, "collect": 2, "finish": 1}  # by what only this assignment has
NEXT = {
    1: "Next: assignment2.py, the one place where nothing may be added.",
    2: "Next: assignment3.py, the same as assignment 1 without waiting.",
    3: "Compare with _Start and _Finish in src/twotower/distributed/exchange.py. Next: assignment4.py.",
    4: "Next: the silent errors, in course/README.md.",
}


def load(path: Path, tower: int = 0) -> ModuleType:
    """The reader's file as a new module, that of a tower. Raises: whatever stands in it."""
    name = f"{path.stem}_of_tower_{tower}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)  # dataclasses look theirs up there
    spec.loader.exec_module(module)
    return module


def list_lines(error: BaseException | None, path: Path) -> list[str]:
    """Where in the reader's file an error was raised, a text for each call."""
    frames = [] if error is None else traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if Path(frame.filename) == path]
    return [f"    line {frame.lineno}, in {frame.name}: {frame.line}" for frame in inside[-3:]]


def describe_error(error: BaseException, path: Path) -> str:
    """An error of the reader's code in a few lines: what, and where in that file."""
    name = f"Your code raised {type(error).__name__}: {str(error).strip() or 'no message'}"
    if isinstance(error, SyntaxError):
        return f"Your file is no Python: {error.msg}, line {error.lineno}\n    {(error.text or '').strip()}"
    last = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)][-1:]
    called = any(COURSE in file.parents for file in last)
    nowhere = (
        "where the grader calls a function of yours" if called else "in torch, on what a function of yours returned"
    )
    return "\n".join([name, *(list_lines(error, path) or [f"    in no line of your file, but {nowhere}"])])


def judge(path: Path) -> tuple[bool, str]:
    """Whether the file is right, and what is said of it. Runs the reader's code."""
    try:
        module = load(path)
    except (Exception, SystemExit) as error:
        return False, f"Not yet: {describe_error(error, path)}"
    # Behind the reader's file, whose endless loop would else be met only after torch has been imported.
    from grading import crossing, logits, streams
    from grading.prints import print_by_tower
    from grading.verdict import MistakeError

    def load_both() -> list[ModuleType]:
        return [load(path, tower) for tower in (0, 1)]

    try:
        number = next((number for name, number in NUMBERS.items() if hasattr(module, name)), None)
        if number is None:
            return False, f"{path.name} has none of the functions of an assignment: {', '.join(NUMBERS)}."
        missing = [name for name in ("start", "finish") if number == 3 and not hasattr(module, name)]
        if missing:
            return False, f"{path.name} has no function {missing[0]}."
        graders: dict[int, Any] = {1: crossing.grade, 2: logits.grade, 3: crossing.grade_in_two}
        with print_by_tower(sys.stdout):
            said = streams.grade(module) if number == 4 else graders[number](load_both)
    except MistakeError as mistake:
        return False, "\n".join([f"Not yet: {mistake}", *list_lines(mistake.__cause__, path)])
    except NotImplementedError as error:
        return False, f"Not yet: the gap is still open ({error})."
    except (Exception, SystemExit) as error:
        return False, f"Not yet: {describe_error(error, path)}"
    return True, f"Right: {said}\n{NEXT[number]}"


def grade(path: Path, seconds: float = SECONDS) -> tuple[bool, str]:
    """The same in a process of its own, which is ended after `seconds`."""
    with tempfile.TemporaryDirectory() as folder:
        verdict = Path(folder) / "verdict.json"
        command = [sys.executable, str(COURSE / "grade.py"), "--inside", str(path), str(verdict)]
        try:
            done = subprocess.run(command, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return False, f"Not yet: your code has not come to an end within {seconds:g} s. Is there an endless loop?"
        if not verdict.exists():
            return False, f"Not yet: your code has ended the process (status {done.returncode})."
        is_right, said = json.loads(verdict.read_text())
        return is_right, said


def main(arguments: list[str]) -> int:
    if len(arguments) == 3 and arguments[0] == "--inside":
        Path(arguments[2]).write_text(json.dumps(judge(Path(arguments[1]))))
        return 0
    if len(arguments) != 1:
        print("error: give one file, as in python course/grade.py assignment1.py", file=sys.stderr)
        return 2
    places = [Path(arguments[0]).resolve(), COURSE / arguments[0]]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        print(f"error: there is no file {arguments[0]}, neither here nor in {COURSE.name}/.", file=sys.stderr)
        return 2
    is_right, said = grade(path)
    print(said)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
