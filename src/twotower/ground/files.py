"""Files and folders that are complete or absent, whenever a process is killed, a disk is full or the power fails."""

import errno
import glob
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from twotower.ground.links import check_ordinary
from twotower.ground.locks import is_abandoned, marked

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a share of it, or a limit on single files


class DiskFullError(OSError):
    """A file finds no room. The message is a sentence with its path, and the bytes that it takes and those free."""


def remove(path: Path) -> None:
    """Removes a folder with all in it, a file, or a link; what cannot be removed, or is not there, is left.

    (`shutil.rmtree` alone would wait for ever for a pipe.)
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _say_full(path: Path, error: OSError, needed: int | None, pending: Path | None) -> DiskFullError:
    """The sentence; removes `pending`, so that the free bytes are those that the next attempt finds."""
    file = path if pending is None else pending
    written = file.stat().st_size if file.is_file() else 0
    if pending is not None:
        remove(pending)
    takes = f"more than {written:,} bytes" if needed is None else f"{needed:,} bytes"
    try:
        free = f"{shutil.disk_usage(path.parent).free:,} are free on its disk"
    except OSError:
        free = "how many are free cannot be read"
    return DiskFullError(f"{path} cannot be written ({error.strerror}): it takes {takes}, and {free}.")


@contextmanager
def told_if_full(path: Path, needed: int | None = None, pending: Path | None = None) -> Iterator[None]:
    """Turns the error of a full disk, in the block, into a DiskFullError; others name `path` in place of `pending`.

    Args:
        path: the file that is written.
        needed: its size in bytes; None: unknown.
        pending: the place that the block writes to, removed after an error; None: `path` itself, which stays.
    """
    try:
        yield
    except DiskFullError:
        raise
    except OSError as error:
        if error.errno not in FULL:
            if pending is not None and error.filename is not None:
                named = os.fsdecode(error.filename).replace(str(pending), str(path))
                raise OSError(error.errno, error.strerror, named) from error
            raise
        raise _say_full(path, error, needed, pending) from error


def remove_abandoned(folder: Path, name: str = "*") -> None:
    """Removes what killed processes have left half written in a folder.

    Args:
        name: of the finished file or folder, as a pattern.
    """
    for pending in (*folder.glob(f".{name}.pending"), *folder.glob(f".{name}.{'[0-9a-f]' * 32}.pending")):
        if is_abandoned(pending):
            remove(pending)


@contextmanager
def written_whole(path: Path, shared: bool = False, needed: int | None = None) -> Iterator[Path]:
    """A place to write to, beside `path`; moved there when the block has ended, removed if it fails.

    What killed processes have left of this file is removed first.

    Args:
        shared: whether several processes may write this file at once. Each then writes a file with a name of its own.
        needed: the size of the file in bytes, for a person whose disk is full; None: unknown.

    Raises: DiskFullError; ValueError if a link or a folder is in the pending file's place.
    """
    remove_abandoned(path.parent, glob.escape(path.name))
    own = f".{uuid4().hex}" if shared else ""
    pending = path.with_name(f".{path.name}{own}.pending")
    check_ordinary(pending)
    try:
        with told_if_full(path, needed, pending), marked(pending):
            yield pending
            with pending.open("rb+") as file:
                os.fsync(file.fileno())  # else the name may be on the disk before the content is
            os.replace(pending, path)
    finally:
        with suppress(OSError):  # the first error counts
            pending.unlink()


@contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, beside `path`; it takes that name when the block has ended, and is removed if it fails.

    Each process fills one of its own, so the first one to end wins, and the others get the OSError of the rename.
    """
    remove_abandoned(path.parent, glob.escape(path.name))
    pending = path.with_name(f".{path.name}.{uuid4().hex}.pending")
    pending.mkdir(parents=True)
    try:
        with told_if_full(path, None, pending), marked(pending):
            yield pending
            pending.rename(path)
    finally:
        shutil.rmtree(pending, ignore_errors=True)


@contextmanager
def filled_whole(folder: Path, last: str) -> Iterator[Path]:
    """A folder to fill, within `folder`; when the block has ended its files move there, over those of before.

    Args:
        last: the name of the file that moves last, by which others tell that all are there.
    """
    remove_abandoned(folder, "files")
    pending = folder / f".files.{uuid4().hex}.pending"
    pending.mkdir()
    try:
        with marked(pending):
            yield pending
            for path in sorted(pending.iterdir(), key=lambda path: path.name == last):
                os.replace(path, folder / path.name)
    except DiskFullError as error:
        raise DiskFullError(str(error).replace(str(pending), str(folder))) from error
    finally:
        shutil.rmtree(pending, ignore_errors=True)


def hash_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal. Raises: OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, content: bytes | memoryview, shared: bool = False) -> None:
    """Writes bytes; `shared` as in `written_whole`. Raises: OSError."""
    with written_whole(path, shared, len(content)) as pending:
        pending.write_bytes(content)


def write_text(path: Path, text: str, shared: bool = False) -> None:
    """Writes UTF-8; bytes of file names that are none stand as `\\udcXX`. `shared` as in `written_whole`.

    Raises: OSError.
    """
    write_whole(path, text.encode("utf-8", "backslashreplace"), shared)


class Lines:
    """A file that grows line by line, each of which is there whole or not at all, unless the process is killed.

    Raises: ValueError if something else than a file is in its place; OSError, DiskFullError.
    """

    def __init__(self, path: Path, append: bool) -> None:
        self.path = path
        check_ordinary(path)
        with told_if_full(path, 0):
            if not append:
                path.write_bytes(b"")
            self._file = path.open("ab", buffering=0)

    def write(self, line: str) -> None:
        """Appends a line, and a line feed after it."""
        content = memoryview(f"{line}\n".encode("utf-8", "backslashreplace"))
        size = os.fstat(self._file.fileno()).st_size
        try:
            with told_if_full(self.path, len(content)):
                while content:
                    content = content[self._file.write(content) :]
        except OSError:
            self._file.truncate(size)
            raise

    def is_at_its_path(self) -> bool:
        """Whether the file has not been removed or replaced."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno()))
        except OSError:
            return False

    def close(self) -> None:
        self._file.close()


def write_json(path: Path, content: Any, shared: bool = False) -> None:
    """Writes JSON that a person can read; `shared` as in `written_whole`. Raises: OSError."""
    write_whole(path, f"{json.dumps(content, indent=1)}\n".encode(), shared)


def write_npy(path: Path, array: NDArray[Any], shared: bool = False) -> None:
    """Writes what `np.load` reads; `shared` as in `written_whole`. Raises: OSError."""
    file = io.BytesIO()
    np.save(file, array)
    write_whole(path, file.getbuffer(), shared)
