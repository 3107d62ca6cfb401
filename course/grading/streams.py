"""Assignment 4: which draws are the same in both towers, which are not, and none that repeat each other."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from grading.verdict import MistakeError

WHATS = ("images", "weights", "dropout")
SEEDS, STEPS = (*range(12), 999), (*range(40), 999, 1000, 100_000, 999_999)  # up to what the assignment names
MANY = 200_000  # of 32 bits about five pairs of so many numbers are the same by chance
Key = tuple[str, int, int, int]


def list_draws() -> Iterator[Key]:
    """Each different draw once."""
    for seed in SEEDS:
        for step in STEPS:
            yield "images", seed, 0, step
            yield from (("dropout", seed, tower, step) for tower in (0, 1))
        yield from (("weights", seed, tower, 0) for tower in (0, 1))


def check_number(stream: Callable[..., object], key: Key) -> int:
    """Raises: MistakeError, if it is no number for a generator, or another one when asked again."""
    number = stream(*key)
    if isinstance(number, bool) or not isinstance(number, int):
        raise MistakeError(f"stream returns {type(number).__name__} for {key}, and a generator takes an integer.")
    if not 0 <= number < 2**63:
        raise MistakeError(
            f"stream returns {number} for {key}, which is not from 0 to 2**63 - 1.",
            "Seven bytes of a hash are less than 2**56; of any integer the remainder, % 2**63, is in the range.",
        )
    if stream(*key) != number:
        raise MistakeError(
            "stream returns another number when it is asked again.", "The other process would draw something else."
        )
    return number


def check_other_process(module: ModuleType, number: int) -> None:
    """Raises: MistakeError, if another process gets another number."""
    script = (
        "import importlib.util as u, sys; s = u.spec_from_file_location('it', sys.argv[1]); "
        "m = u.module_from_spec(s); s.loader.exec_module(m); sys.stderr.write(str(m.stream('dropout', 1, 1, 3)))"
    )
    file = str(module.__file__)
    done = subprocess.run(
        [sys.executable, "-c", script, file],
        env=os.environ | {"PYTHONHASHSEED": "12345"},
        cwd=Path(file).parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
    )
    if done.stderr != str(number):
        raise MistakeError(
            "stream returns another number in another process.",
            "Python's hash() of a text is one: it is salted anew in each process. hashlib.sha256 is not.",
        )


def check_many(stream: Callable[[str, int, int, int], int]) -> None:
    """Raises: MistakeError, if of many draws from the whole range two have one stream."""
    draw, first = random.Random(1), dict[int, Key]()
    while len(first) < MANY:
        key = ("dropout", draw.randrange(SEEDS[-1] + 1), draw.randrange(2), draw.randrange(STEPS[-1] + 1))
        if first.setdefault(stream(*key), key) != key:
            raise MistakeError(
                f"Of {MANY:,} draws two have one stream: stream{first[stream(*key)]} and stream{key}.",
                "Numbers of 32 bits, as of zlib.crc32, meet by chance. Seven bytes of hashlib.sha256 do not.",
            )


def grade(module: ModuleType) -> str:
    """What is said of a solution that is right. Raises: MistakeError, or what the solution itself raises."""
    stream = module.stream
    numbers = {key: check_number(stream, key) for key in list_draws()}
    at: Callable[[str, int, int], int] = lambda what, tower, step: stream(what, 1, tower, step)  # noqa: E731
    if at("images", 0, 3) != at("images", 1, 3):
        raise MistakeError(
            "The towers look at different images.",
            "They are halves of one network, which has one input. Leave tower out.",
        )
    if at("images", 0, 3) == at("images", 0, 4):
        raise MistakeError("Each step takes the same images.", "Put the step in.")
    if at("weights", 0, 0) == at("weights", 1, 0):
        raise MistakeError("Both towers start with the same weights.", "One would begin as a copy of the other.")
    if at("dropout", 0, 3) == at("dropout", 1, 3):
        raise MistakeError(
            "Both towers draw one dropout mask.", "Their units are different ones: each needs a mask of its own."
        )
    if at("dropout", 0, 3) == at("dropout", 0, 4):
        raise MistakeError("The same units are dropped at every step.", "Put the step in.")
    for what in WHATS:
        if stream(what, 1, 0, 0) == stream(what, 2, 0, 0):
            raise MistakeError(f"Another seed draws the same {what}.", "Put the seed in.")
    first: dict[int, Key] = {}
    for key, number in numbers.items():
        if number in first:
            raise MistakeError(
                f"Two draws have one stream: stream{first[number]} and stream{key} are both {number}.",
                "They differ in `what` alone. Put what in."
                if first[number][1:] == key[1:]
                else "Sums such as seed + step meet, and so do factors that are too small for the range of step. "
                "Give each part digits of its own, or hash all of them together, with hashlib.",
            )
        first[number] = key
    check_other_process(module, at("dropout", 1, 3))
    check_many(stream)
    return f"{MANY:,} draws have streams of their own, and both towers see the same images."
