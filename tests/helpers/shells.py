"""Lines of a shell, run with stand-ins for the programs that they call."""

import os
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

PROGRAMS = ("python", "torchrun", "make", "pip", "conda", "wandb")
INSTALLED = [shell for shell in ("sh", "bash", "zsh") if shutil.which(shell) is not None]
SHELLS = [
    "sh",
    "bash",
    pytest.param("zsh", marks=pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")),
]
# Notes its name and arguments: each ended by the byte 31, and the call by 30.
_STAND_IN = """#!/bin/sh
{ printf '%s\\037' "${0##*/}" "$@"; printf '\\036'; } >> "$NOTED"
"""


@dataclass(frozen=True)
class Outcome:
    calls: list[list[str]]  # name and arguments of each program that was called
    said: str  # on the error stream


def run_lines(shell: str, lines: list[str], programs: tuple[str, ...] = PROGRAMS) -> list[Outcome]:
    """Runs each line in one process of a shell, in the current folder; one that fails stops none that follow."""
    place = Path("stand-ins").absolute()
    place.mkdir(exist_ok=True)
    for program in programs:
        (place / program).write_text(_STAND_IN)
        (place / program).chmod(0o755)
    noted, said = place / "noted", place / "said"
    noted.write_bytes(b"")
    mark = "printf '\\035' >> \"$NOTED\"; printf '\\035' >&2\n"
    (place / "script").write_text("".join(f"{mark}(eval {shlex.quote(line)})\n" for line in lines))
    flags = {"zsh": ["-f"], "bash": ["--norc"]}.get(shell, [])
    environment = os.environ | {"PATH": f"{place}:{os.environ['PATH']}", "NOTED": str(noted), "LC_ALL": "C"}
    with said.open("wb") as errors:
        subprocess.run(
            [shell, *flags, str(place / "script")],
            env=environment,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )
    calls = noted.read_bytes().decode().split("\035")[1:]
    errors_of = said.read_bytes().decode().split("\035")[1:]
    assert len(calls) == len(errors_of) == len(lines), f"{shell} stopped: {said.read_text()}"
    return [
        Outcome([call.split("\037")[:-1] for call in part.split("\036")[:-1]], error.strip())
        for part, error in zip(calls, errors_of, strict=True)
    ]
