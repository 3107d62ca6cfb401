"""Lists the entries of tar archives without unpacking anything, and does not believe what an archive claims.

An entry is only ever a range of bytes: its name is never used as a path, and links, devices and huge headers are
refused. The limits cost about thirty lines and keep a damaged or forged archive from filling the memory, running for
hours or for ever, or passing for complete when it was cut short.
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

MAX_IMAGE_BYTES = 256 * 2**20  # largest encoded image; ILSVRC's largest has 16 MB
MAX_READ = MAX_IMAGE_BYTES  # largest single read, so that no header can ask for more memory
BOMB_BYTES, BOMB_RATIO = 2**30, 100  # images hardly shrink, so an archive that grows beyond both limits is a bomb
TOO_LARGE = f"it has more than {MAX_IMAGE_BYTES // 2**20} MiB"
OPENERS: dict[bytes, Any] = {b"\x1f\x8b\x08": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
DAMAGE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError)


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        name: path in the archive.
        offset, size: position and length of its content in the archive, in bytes after decompression.
        problem: reason why it must not be used; empty if it may.
        form: `file` (an encoded image), or another name given by the reader of the archive.
    """

    name: str
    offset: int
    size: int
    problem: str
    form: str = "file"


class RefusedError(ValueError):
    """An archive that must not be read on; the message is a sentence."""


def _opener(path: Path) -> Any:
    """The function that opens a compressed file; None for any other file."""
    with path.open("rb") as file:
        head = file.read(6)
    return next((opener for magic, opener in OPENERS.items() if head.startswith(magic)), None)


def is_compressed(path: Path) -> bool:
    """Whether offsets count bytes after decompression, so that the file can only be read from front to back."""
    return _opener(path) is not None


class View:
    """A part of a file that reads like a file.

    Args:
        start, size: position and length of the part in bytes; None: up to the end of the file.

    Raises: RefusedError for a decompression bomb or a huge read.
    """

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
        """The view of an archive inside this one, with offsets that begin at its own start."""
        return View(self._file, self._path, self._start + member.offset, member.size)


@contextmanager
def open_archive(path: Path) -> Iterator[View]:
    """Opens an archive, compressed or not. Raises: ValueError if it does not exist, or turns out to be damaged."""
    try:
        opener = _opener(path)
        with opener(path, "rb") if opener else path.open("rb") as file:
            yield View(file, path)
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist.") from error
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged or incomplete ({error}); get it again.") from error


def _problem(info: tarfile.TarInfo) -> str:
    """The reason why an entry must not be used; empty if it may."""
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
    """Yields all entries but folders, in order. Raises: ValueError if the archive is damaged or cut short."""
    try:
        tar = tarfile.TarFile(fileobj=view, encoding="utf-8")  # type: ignore[arg-type]
        end = 0
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them in memory
            if tar.offset <= end:  # an entry of negative size would come again for ever
                raise tarfile.ReadError(f"an entry ends before it begins, at byte {end}")
            end = tar.offset
            if not info.isdir():
                yield Member(printable(info.name), info.offset_data, info.size, _problem(info))
        view.seek(tar.offset)
        # tarfile mistakes a broken header, or the end of the file, for the end of the archive.
        if any(view.read(tarfile.BLOCKSIZE) or b"x"):
            raise tarfile.ReadError(f"no end mark at byte {tar.offset}")
        view.finish()
    except RefusedError:
        raise
    except (*DAMAGE, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        # tarfile's parsers of extended headers raise whatever hostile bytes make them raise.
        raise ValueError(f"{path} is damaged or incomplete ({error}); get it again.") from error


def printable(name: str) -> str:
    """The name without characters that would disturb a terminal or a text file."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)[:1000]
