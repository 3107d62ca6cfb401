"""A note in a run's folder on a host that does not keep the run, as it does not see the disk of the one that does.

A run whose checkpoints are on another host must not be begun anew by mistake where that host has gone.
"""

import json
from contextlib import suppress
from pathlib import Path

from twotower.ground.files import write_json

ELSEWHERE = "kept_elsewhere.json"


def note_elsewhere(run_dir: Path, host: str) -> None:
    """Notes that `host` keeps the run. Makes the folder if need be; what cannot be written is left out."""
    with suppress(OSError):  # a host that keeps nothing needs no disk
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(run_dir / ELSEWHERE, {"host": host})


def is_elsewhere(run_dir: Path) -> bool:
    return (run_dir / ELSEWHERE).exists()


def check_kept_here(run_dir: Path) -> None:
    """Called before a run begins anew. Raises: ValueError if another host keeps it."""
    if is_elsewhere(run_dir):
        host = json.loads((run_dir / ELSEWHERE).read_text())["host"]
        raise ValueError(
            f"run_dir={run_dir} holds no checkpoint, and {ELSEWHERE} says that {host} keeps this run on its disk; "
            "start that host as well, or copy the run's folder from it, or give a new run_dir."
        )


def forget_elsewhere(run_dir: Path) -> None:
    """Removes the note from the host that keeps the run now."""
    (run_dir / ELSEWHERE).unlink(missing_ok=True)
