"""Reads tar archives where they lie: nothing is unpacked to disk, and what an archive claims is not believed.

An entry is only ever a range of bytes: names are never used as paths; links, devices, huge headers are refused.
"""

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

MAX_IMAGE_BYTES = 256 * 2**20  # of one encoded image; ILSVRC's largest has 16 MB
MAX_READ = MAX_IMAGE_BYTES  # bytes at once, so that no header can ask for more
BOMB_BYTES, BOMB_RATIO = 2**30, 100  # images hardly shrink; more than both of these is a bomb
TOO_LARGE = f"it has more than {MAX_IMAGE_BYTES // 2**20} MiB"
OPENERS: dict[bytes, Any] = {b"\x1f\x8b\x08": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError)


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        offset, size: of its bytes in the archive, in bytes after decompression.
        problem: why it must not be used; empty if it may.
        form: `file` (an encoded image) or a name that its reader gave.
    """

    name: str
    offset: int
    size: int
    problem: str
    form: str = "file"


class RefusedError(ValueError):
    """An archive that must not be read on; the message is a sentence."""


def _opener(path: Path) -> Any:
    """What opens a compressed file; None for any other."""
    with path.open("rb") as file:
        head = file.read(6)
    return next((opener for magic, opener in OPENERS.items() if head.startswith(magic)), None)


def is_compressed(path: Path) -> bool:
    """Whether offsets count bytes after decompression, so that the file can only be read from front to back."""
    return _opener(path) is not None


class View:
    """A part of a file that reads like a file. Raises: RefusedError for a decompression bomb or a huge read."""

    def __init__(self, file: Any, path: Path, start: int = 0, size: int | None = None) -> None:
        self._file, self._path, self._start, self._size, self._at = file, path, start, size, 0
        self._bomb = max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size)

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> int:
        if self._start + position > self._bomb:
            raise RefusedError(
                f"{self._path} is damaged, or no archive of images: it claims to hold more than {BOMB_RATIO} times "
                "its size."
            )
        self._at = position
        return position

    def read(self, count: int = -1) -> bytes:
        if self._size is not None:
            left = max(0, self._size - self._at)
            count = left if count < 0 else min(count, left)
        if not 0 <= count <= MAX_READ:
            raise RefusedError(f"{self._path} is damaged: a header asks for {count} bytes.")
        self.seek(self._at)
        self._file.seek(self._start + self._at)
        content: bytes = self._file.read(count)
        self._at += len(content)
        return content

    def finish(self) -> None:
        """Reads on to the end of the file, where a compressed one has its checksum."""
        while self._size is None and self.read(2**20):
            pass

    def part(self, member: Member) -> "View":
        """An archive inside this one, so that its offsets can be told apart from this one's."""
        return View(self._file, self._path, self._start + member.offset, member.size)


@contextmanager
def open_archive(path: Path) -> Iterator[View]:
    """Raises: ValueError if it does not exist, or was found damaged while it was read."""
    try:
        opener = _opener(path)
        with opener(path, "rb") if opener else path.open("rb") as file:
            yield View(file, path)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist.") from error
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged or incomplete ({error}); get it again.") from error


def _problem(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return "it is a link, not a file"
    if not info.isreg() or info.issparse():
        return "it is a device or another special entry, not a file"
    if info.name.startswith("/") or ".." in PurePosixPath(info.name).parts or "\\" in info.name:
        return "its path leads out of the archive"
    if info.size <= 0:
        return "the file is empty"
    return "" if info.size <= MAX_IMAGE_BYTES else TOO_LARGE


def walk(view: View, path: Path) -> Iterator[Member]:
    """All entries but folders, in the order of the archive. Raises: ValueError if it is damaged or cut short."""
    try:
        tar = tarfile.TarFile(fileobj=view, encoding="utf-8")  # type: ignore[arg-type]
        end = 0
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep them all
            if tar.offset <= end:  # else an entry of negative size would come by for ever
                raise tarfile.ReadError(f"an entry ends before it begins, at byte {end}")
            end = tar.offset
            if not info.isdir():
                yield Member(printable(info.name), info.offset_data, info.size, _problem(info))
        view.seek(tar.offset)
        # tarfile takes a broken header, or the end of the file, for the end of the archive.
        if any(view.read(tarfile.BLOCKSIZE) or b"x"):
            raise tarfile.ReadError(f"no end mark at byte {tar.offset}")
        view.finish()
    except RefusedError:
        raise
    except (*DAMAGE, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        # tarfile's parsers of extended headers raise whatever hostile bytes make them raise.
        raise ValueError(f"{path} is damaged or incomplete ({error}); get it again.") from error


def printable(name: str) -> str:
    """The name without what would disturb a terminal or a file of text."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)[:1000]
