"""The id of a run's W&B run, stored in RUN/wandb.json.

A training has one id: when it is resumed, evaluated or drawn, that goes on in the same W&B run. Offline, each of
these has a folder of its own with this id and the wish to resume; `wandb sync` appends them in the order of their
beginning and numbers W&B's own steps anew. The steps that a killed training had logged after its last checkpoint are
there twice: from before, and from when they were computed again.
"""

import json
import os
import secrets
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import StringConstraints, TypeAdapter
from typing_extensions import TypedDict

from twotower.ground.files import write_whole
from twotower.ground.stored_files import read_json

ID_FILE = "wandb.json"  # in a run's folder: {"id": ..., "folder": where the training ran}
ID_LENGTH = 8  # lower-case letters and digits, as in W&B's own ids
_LARGEST = 1 << 16  # bytes


class _Stored(TypedDict):
    id: Annotated[str, StringConstraints(pattern=r"^[^/\\#?%:\s\x00-\x1f]{1,128}$")]
    folder: str


_FORM: TypeAdapter[Any] = TypeAdapter(_Stored)


def _read(folder: Path) -> dict[str, Any] | None:
    """Reads wandb.json; None if it is missing or damaged."""
    try:
        return dict(read_json(folder / ID_FILE, _FORM, "delete it", _LARGEST))
    except ValueError:
        return None


def _write(folder: Path, run_id: str) -> None:
    write_whole(folder / ID_FILE, f"{json.dumps({'id': run_id, 'folder': str(folder.resolve())})}\n".encode())


def _is_copy(stored: Mapping[str, Any], folder: Path) -> bool:
    """Whether the id was made for another folder, which still has it. (A folder that was moved is no copy.)"""
    origin = Path(stored["folder"])
    if origin == folder.resolve():
        return False
    in_origin = _read(origin)
    return in_origin is not None and in_origin["id"] == stored["id"]


def find_run_id(folder: Path, *, is_new: bool = False, environment: Mapping[str, str] = os.environ) -> str:
    """Reads the id of a run's W&B run from its folder, or makes one and stores it.

    A copied folder gets an id of its own as soon as something is logged from it. A moved one keeps its id.

    Args:
        is_new: whether a training begins here from its first step, which makes it another run than any before it in
            this folder. Its id is WANDB_RUN_ID, where a W&B agent or a person has set that.
    """
    stored = _read(folder)
    if not is_new and stored is not None and not _is_copy(stored, folder):
        return str(stored["id"])
    letters = string.ascii_lowercase + string.digits
    made = "".join(secrets.choice(letters) for _ in range(ID_LENGTH))
    run_id = (environment.get("WANDB_RUN_ID") if is_new else None) or made
    _write(folder, run_id)
    return run_id
