"""A note in a run's folder on a host that does not keep the run, as it does not see the disk of the one that does.

A run whose checkpoints are on another host must not be begun anew by mistake where that host has gone.
"""

from contextlib import suppress
from pathlib import Path

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from twotower.ground.files import write_json
from twotower.ground.links import refuse_links
from twotower.ground.stored_files import read_json
from twotower.ground.wording import on_one_line

ELSEWHERE = "kept_elsewhere.json"
_REMEDY = "delete it, unless another host keeps this run on its disk"
_LARGEST = 1 << 16  # bytes


class _Note(TypedDict):
    host: str


_FORM: TypeAdapter[_Note] = TypeAdapter(_Note)


def note_elsewhere(run_dir: Path, host: str) -> None:
    """Notes that `host` keeps the run. Makes the folder if need be; what cannot be written is left out.

    Raises: ValueError for a folder with a link that leads out of it.
    """
    refuse_links(run_dir)
    with suppress(OSError):  # a host that keeps nothing needs no disk
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(run_dir / ELSEWHERE, {"host": host})


def is_elsewhere(run_dir: Path) -> bool:
    return (run_dir / ELSEWHERE).exists()


def check_kept_here(run_dir: Path) -> None:
    """Called before a run begins anew. Raises: ValueError if another host keeps it, or the note is damaged."""
    if is_elsewhere(run_dir):
        host = on_one_line(read_json(run_dir / ELSEWHERE, _FORM, _REMEDY, _LARGEST)["host"], 100)
        raise ValueError(
            f"run_dir={run_dir} holds no checkpoint, and {ELSEWHERE} says that {host} keeps this run on its disk; "
            "start that host as well, or copy the run's folder from it, or give a new run_dir."
        )


def forget_elsewhere(run_dir: Path) -> None:
    """Removes the note from the host that keeps the run now."""
    (run_dir / ELSEWHERE).unlink(missing_ok=True)
