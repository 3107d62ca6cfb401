"""Files and folders that are complete or absent, whenever a process is killed, a disk is full or the power fails."""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray


@contextmanager
def written_whole(path: Path, shared: bool = False) -> Iterator[Path]:
    """A place to write to, beside `path`; moved there when the block has ended, removed if it fails.

    Args:
        shared: whether several processes may write this file at once. Each then writes a file with a name of its
            own, which a kill leaves behind; else the next one writes over what a kill has left.
    """
    own = f".{uuid4().hex}" if shared else ""
    pending = path.with_name(f".{path.name}{own}.pending")
    try:
        yield pending
        with pending.open("rb+") as file:
            os.fsync(file.fileno())  # else the name may be on the disk before the content is
        os.replace(pending, path)
    finally:
        pending.unlink(missing_ok=True)


@contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, beside `path`; it takes that name when the block has ended, and is removed if it fails.

    Each process fills one of its own, so the first one to end wins, and the others get the OSError of the rename.
    """
    pending = path.with_name(f".{path.name}.{uuid4().hex}.pending")
    pending.mkdir(parents=True)
    try:
        yield pending
        pending.rename(path)
    finally:
        shutil.rmtree(pending, ignore_errors=True)


def hash_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal. Raises: OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, content: bytes | memoryview, shared: bool = False) -> None:
    """Writes bytes; `shared` as in `written_whole`. Raises: OSError."""
    with written_whole(path, shared) as pending:
        pending.write_bytes(content)


def write_json(path: Path, content: Any, shared: bool = False) -> None:
    """Writes JSON that a person can read; `shared` as in `written_whole`. Raises: OSError."""
    write_whole(path, f"{json.dumps(content, indent=1)}\n".encode(), shared)


def write_npy(path: Path, array: NDArray[Any], shared: bool = False) -> None:
    """Writes what `np.load` reads; `shared` as in `written_whole`. Raises: OSError."""
    file = io.BytesIO()
    np.save(file, array)
    write_whole(path, file.getbuffer(), shared)
