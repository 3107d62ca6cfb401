"""Why a run has no result: failure.json in its folder, until it is started again.

A sweep leaves not_applicable.json where there was nothing to run: an ablation of what the network does not have.
"""

from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from twotower.ground.files import write_json
from twotower.ground.stored_files import ANYTHING, damaged, read_json

FAILURE = "failure.json"
NOT_APPLICABLE = "not_applicable.json"
NOTES = (FAILURE, NOT_APPLICABLE)
_LARGEST = 1 << 20  # bytes


class NotApplicableError(ValueError):
    """The settings ask for nothing that the network could have."""


def has_note(run_dir: Path) -> bool:
    """Whether a run failed or had nothing to run; without config.yaml beside the note it never began."""
    return any((run_dir / note).exists() for note in NOTES)


def _note(path: Path, content: dict[str, Any], job: str | None) -> None:
    # A full or missing disk is often the failure itself; an error of writing it down must not hide it.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content if job is None else content | {"job": job}, shared=True)


def note_failure(run_dir: Path, error: str, job: str | None = None) -> None:
    """Writes {"error": `error`, "time": ISO 8601 with the offset from UTC}, and "job" if it is known.

    Makes the folder if need be. What cannot be written is left out without a word.

    Args:
        job: what sets the run apart in its sweep, as "ablation=no_lrn,seed=0".
    """
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    _note(run_dir / FAILURE, {"error": error, "time": now}, job)


def note_not_applicable(run_dir: Path, reason: str, job: str) -> None:
    """Writes {"not_applicable": `reason`, "job": `job`}; there is nothing else in the folder."""
    forget_failure(run_dir)
    _note(run_dir / NOT_APPLICABLE, {"not_applicable": reason}, job)


def forget_failure(run_dir: Path) -> None:
    """Removes either note, as the run starts again or has finished."""
    for name in NOTES:
        (run_dir / name).unlink(missing_ok=True)


def _read(path: Path, key: str) -> dict[str, Any] | None:
    if not path.exists():
        return None
    remedy = "delete it, and the command that started the run goes on"
    note = read_json(path, ANYTHING, remedy, _LARGEST)
    if not isinstance(note.get(key), str):
        raise damaged(path, f"it has no {key}", remedy)
    return note


def read_failure(run_dir: Path) -> dict[str, Any] | None:
    """Reads what `note_failure` wrote; None for a run that has not failed. Raises: ValueError if it is damaged."""
    return _read(run_dir / FAILURE, "error")


def read_not_applicable(run_dir: Path) -> dict[str, Any] | None:
    """Reads what `note_not_applicable` wrote, or None. Raises: ValueError if it is damaged."""
    return _read(run_dir / NOT_APPLICABLE, "not_applicable")
