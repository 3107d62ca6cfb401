"""Damages one file at a time of a run, a prepared set and a folder's index, and does with it what a user would do.

    python -m campaigns.files --count 1000 --seed 0      in the folder tests/; --subject run damages runs alone

Each use must go on or end in one sentence that names what is damaged. Counted as failures: a traceback, a use that
takes longer than its limit or more memory than there is, a process that dies, a sentence that names nothing or has
several lines, data that is accepted and cannot be trained on, signs of a file that reach a terminal or a page, and
anything that is changed outside of the folder, as by a link in it that leads there.

The uses run in a child process, which is killed and replaced when it hangs.
"""

import contextlib
import io
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from campaigns import FAILURES, HITS, Say, run_alone
from campaigns.damage import TAKEN, damage_file, look_outside, make_outside
from twotower.data.folder_cache import CACHE
from twotower.runs.elsewhere import ELSEWHERE

# Without those in which the child waits for a processor, as the machine may have other work.
LIMIT_SECONDS = 60.0  # for one use
REPORT_SECONDS = 300.0  # a report draws pictures of all runs in it
START_SECONDS = 120.0  # until a child has imported everything
ROOM = 4 << 30  # bytes of address space that a use may take beyond what is there at its beginning
SHORT, FULL = 40, 1000  # damaged files
AT_ONCE = 24  # damaged runs in one report
RUNS = 0.12  # probability of a batch of runs, so that about half of the files are a run's
SUBJECTS = ("any", "run", "set")  # what is damaged: files of runs, of prepared sets and folders of images, or of any
USES_AT_ONCE = 2  # of one damaged run, drawn from all, beside the report of several; of an odd place in one all
WENT_ON, SENTENCE, OUTSIDE = "went on", "sentence", "written elsewhere"
_SIGNS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Case:
    """One damaged file: the folder it is in, its place there, what was done to it, and the uses to try."""

    folder: Path
    file: str
    damage: str
    uses: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file} ({self.damage})"


def find_signs(text: str, markup: bool = False) -> str | None:
    """What a terminal would obey in a text, and a browser where it may be `markup`; None if there is nothing."""
    found = _SIGNS.search(text)
    if found is not None:
        return f"control character {found[0]!r} in {text[max(0, found.start() - 40) : found.end() + 40]!r}"
    element = re.search(rf"<[a-z]+[^<>]*{TAKEN}", text) if markup else None
    return None if element is None else f"markup {element[0]!r}"


def use(name: str, folder: Path) -> tuple[str, str]:
    """Runs one use as a command does. Returns outcome and detail."""
    from campaigns import subjects

    printed = io.StringIO()
    os.chdir(_find_ground(folder))
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            text = getattr(subjects, name)(folder) or ""
    except (ValueError, OSError) as error:
        from twotower.command_line.command import describe_error

        sentence = describe_error(error)
        signs = find_signs(sentence)
        if signs is not None:
            return "signs reach the reader", signs
        if "\n" in sentence or len(sentence) > 3000 or not _names(folder, sentence):
            return "unclear sentence", sentence[:500]
        return SENTENCE, sentence
    except AssertionError as error:
        in_subjects = traceback.extract_tb(error.__traceback__)[-1].filename == subjects.__file__
        return ("wrongly accepted" if in_subjects else "traceback"), "".join(traceback.format_exception(error)[-3:])
    except BaseException as error:
        return "traceback", "".join(traceback.format_exception(error)[-5:])
    signs = find_signs(printed.getvalue()) or find_signs(text, markup=True)
    return (WENT_ON, "") if signs is None else ("signs reach the reader", signs)


def _find_ground(folder: Path) -> Path:
    """A folder that outlives the one that is used, to stand in."""
    return next(path for path in folder.parents if path.name.startswith("damaged-files-"))


def _names(folder: Path, sentence: str) -> bool:
    return folder.name in sentence


def serve(connection: Connection) -> None:
    """The child: takes uses until it is told to end."""
    os.environ |= {"WANDB_MODE": "disabled", "CUDA_VISIBLE_DEVICES": ""}
    import torch

    import campaigns.subjects  # noqa: F401  imported here, where nothing is timed

    torch.set_num_threads(1)
    connection.send("ready")
    while (task := connection.recv()) is not None:
        name, folder, log = task
        with contextlib.suppress(OSError, ValueError):
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, resource.RLIM_INFINITY))
        with open(log, "w") as file:  # libraries write there from C
            os.dup2(file.fileno(), 2)
            connection.send(use(name, folder))


class Child:
    """A process that tries uses, and is replaced when it hangs or dies."""

    def __init__(self, scratch: Path) -> None:
        self._log = scratch / "child.log"
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        if not self._poll(self._connection, START_SECONDS):
            self.end()
            raise TimeoutError(f"the child did not start within {START_SECONDS:.0f} s.")
        self._connection.recv()
        return self._connection

    def _poll(self, connection: Connection, limit: float) -> bool:
        """Whether something comes within `limit` seconds, not counting those in which the child has no processor."""
        began, starved = time.monotonic(), self._read_starved()
        while not connection.poll(0.5):
            if time.monotonic() - began - (self._read_starved() - starved) > limit:
                return False
        return True

    def _read_starved(self) -> float:
        """The seconds in which the child could run and did not; 0 where the kernel does not say."""
        pid = self._process.pid if self._process is not None else None
        with contextlib.suppress(OSError):
            return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
        return 0.0

    def try_use(self, name: str, folder: Path, limit: float) -> tuple[str, str]:
        """Runs a use within `limit` seconds. Returns outcome and detail."""
        connection = self._connection or self._start()
        connection.send((name, folder, str(self._log)))
        try:
            if self._poll(connection, limit):
                return connection.recv()
            outcome = ("slow or hang", f"not back after {limit:.0f} s")
        except EOFError:
            outcome = ("died", self._log.read_text(errors="replace")[-500:])
        self.end()
        return outcome

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._connection = None


def _draw_runs(stream: Random, subjects: object, folder: Path, count: int, outside: Path) -> list[Case]:
    """A folder with a whole run, an interrupted one, and `count` damaged ones, each with one damaged file."""
    from campaigns import subjects as kinds

    runs, cases = folder / "runs", []
    kinds.leave_run_copy(subjects, runs / kinds.WHOLE, 1_000_000, finished=True)
    kinds.leave_run_copy(subjects, runs / kinds.INTERRUPTED, 1_000_001, finished=False)
    for number in range(count):
        finished = stream.random() < 0.6
        run, file = runs / f"damaged-{number}", stream.choice(kinds.RUN_FILES + kinds.RUN_PLACES)
        kinds.leave_run_copy(subjects, run, number, finished)
        path = run / file
        if file == "failure.json":
            path.write_text('{"error": "the disk is full.", "time": "2024-05-01T10:00:00+02:00"}')
        elif file == "not_applicable.json":
            path.write_text('{"not_applicable": "there is no norm", "job": "ablation=no_lrn"}')
        elif file == ELSEWHERE:
            kinds.leave_note_of_another_host(run)
        elif file in kinds.RUN_FILES and not path.exists():
            path.write_text("{}")
        uses = kinds.RUN_USES if file in kinds.RUN_PLACES else stream.sample(kinds.RUN_USES, USES_AT_ONCE)
        names = sorted((use.__name__ for use in uses), key=lambda name: name == "resume")  # which changes the folder
        cases.append(Case(run, file, damage_file(stream, path, outside), tuple(names)))
    return cases


def _draw_set(stream: Random, subjects: object, folder: Path, outside: Path) -> Case:
    """A copy of the prepared set or of the folder of images, with one damaged file."""
    from campaigns import subjects as kinds

    assert isinstance(subjects, kinds.Subjects)
    folder = folder / "damaged-set"
    if stream.random() < 0.7:
        shutil.copytree(subjects.prepared, folder)
        decoded = sorted(str(path.relative_to(folder)) for path in folder.glob("decoded/*.npy"))
        shards = sorted(str(path.relative_to(folder)) for path in folder.glob("*/*.tar"))
        file = stream.choice(["dataset.json"] * 4 + ["mean_image.npy", "train/index.npy", "val/index.npy"])
        file = stream.choice([file] * 4 + [*decoded, *shards, *kinds.SET_PLACES])
        return Case(folder, file, damage_file(stream, folder / file, outside), ("load_prepared_set",))
    shutil.copytree(subjects.images, folder)
    file = stream.choice([kinds.FOLDER_FILES[0], *kinds.FOLDER_FILES, CACHE])
    return Case(folder, file, damage_file(stream, folder / file, outside), ("load_folder",))


def _draw_cases(
    stream: Random, subjects: object, scratch: Path, count: int, at_once: int, subject: str, outside: Path
) -> Iterator[list[Case]]:
    """Batches of cases: of runs, which share a report, and of single sets. The folders are removed afterwards."""
    number = 0
    while number < count:
        folder = scratch / f"batch-{number}"
        if {"any": stream.random() < RUNS or not number, "run": True, "set": False}[subject]:
            batch = _draw_runs(stream, subjects, folder, min(at_once, count - number), outside)
        else:
            batch = [_draw_set(stream, subjects, folder / str(i), outside) for i in range(min(4, count - number))]
        number += len(batch)
        yield batch
        shutil.rmtree(folder)


def copy_all(source: Path, target: Path) -> None:
    """A copy with links as they are; a pipe, which cannot be copied, is made anew."""

    def copy(name: str, place: str) -> None:
        if Path(name).is_fifo():
            os.mkfifo(place)
        else:
            shutil.copy2(name, place, follow_symlinks=False)

    shutil.copytree(source, target, symlinks=True, copy_function=copy)


def _try_together(child: Child, batch: list[Case], tell: Callable[[Case, str, str, str], None]) -> None:
    """Uses of all runs of a folder; where one fails, it is tried with each run alone, to name the culprit."""
    runs = batch[0].folder.parent
    for name, limit in (("report", REPORT_SECONDS), ("resume_another", LIMIT_SECONDS)):
        outcome, _ = child.try_use(name, runs, limit)
        if outcome == WENT_ON:
            for case in batch:
                tell(case, name, outcome, "")
            continue
        for case in batch:
            # Under its own name, to which its links lead and by which its sentences call it.
            alone = runs.parent / f"{name}-{case.folder.name}" / "runs"
            for kept in (case.folder.name, "whole", "interrupted"):
                copy_all(runs / kept, alone / kept)
            outcome, detail = child.try_use(name, alone, limit)
            tell(case, name, "one run ended it for others" if outcome == SENTENCE else outcome, detail)


def run(count: int, seed: int, say: Say, at_once: int = AT_ONCE, subject: str = SUBJECTS[0]) -> dict[str, int]:
    """Tries `count` damaged files. Returns how often each outcome came, and under "failures" what must be 0.

    A hit is a file whose damage was met: one use of it at least did not go on as if nothing were wrong.

    Args:
        at_once: damaged runs in one report.
        subject: one of SUBJECTS.
    """
    from campaigns.subjects import make_subjects

    outcomes: Counter[str] = Counter()
    met: set[Path] = set()
    stream = Random(seed)

    def tell(case: Case, name: str, outcome: str, detail: str) -> None:
        found = look_outside(outside)
        if found != before:
            outcome, detail = OUTSIDE, ", ".join(name for name in found if found[name] != before.get(name, b""))
            shutil.rmtree(outside)
            make_outside(outside)
        outcomes[outcome] += 1
        if outcome != WENT_ON:
            met.add(case.folder)
        if outcome not in (WENT_ON, SENTENCE):
            outcomes[FAILURES] += 1
            say(f"{outcome}: {name} of {case}\n    {detail.strip()}".replace("\n", "\n    "))

    with tempfile.TemporaryDirectory(prefix="damaged-files-") as place:
        scratch = Path(place).resolve()
        outside = make_outside(scratch / "outside")
        before = look_outside(outside)
        with contextlib.redirect_stdout(io.StringIO()):
            subjects = make_subjects(scratch / "whole")
        child, done, began = Child(scratch), 0, time.monotonic()
        try:
            for batch in _draw_cases(stream, subjects, scratch, count, at_once, subject, outside):
                if batch[0].folder.parent.name == "runs":
                    _try_together(child, batch, tell)
                for case in batch:
                    for name in case.uses:
                        tell(case, name, *child.try_use(name, case.folder, LIMIT_SECONDS))
                done += len(batch)
                say(f"{done} of {count} files, {time.monotonic() - began:.0f} s: {dict(outcomes)}")
        finally:
            child.end()
    return {FAILURES: 0, HITS: len(met), **outcomes}


if __name__ == "__main__":
    sys.exit(run_alone("files", run, FULL, subject=SUBJECTS))
