"""Tables of numbers that are written batch by batch, in memory that does not grow with the number of rows.

    npy            a file for each table, which np.load(..., mmap_mode="r") opens without reading it
    safetensors    one file with all tables, by name

The writers of numpy and safetensors take whole arrays; the bytes of both formats are simple enough to be written in
parts, and the tests read them with these libraries. Room on the disk is taken before the first row.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from twotower.ground.files import told_if_full

FORMATS = ("npy", "safetensors")
SAFETENSORS = "features.safetensors"
_FLOAT = np.dtype("<f4")
_PIECE = 1 << 24  # bytes that are moved at a time


@dataclass
class _Table:
    """A table of float32 [N, *shape]: its file, and the place of its first number there in bytes."""

    file: BinaryIO
    begin: int
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return prod(self.shape) * _FLOAT.itemsize


def measure_rows(shapes: Mapping[str, tuple[int, ...]], count: int) -> int:
    """The bytes of float32 tables of `count` rows of these shapes."""
    return sum(prod(shape) for shape in shapes.values()) * _FLOAT.itemsize * count


def check_room(folder: Path, needed: int) -> None:
    """Raises: ValueError if the disk of a folder has fewer bytes free than will be written."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"{folder} has {free:,} bytes free, and the features of all images take {needed:,}; make room, choose "
            "another disk, or ask for fewer or later layers."
        )


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """The beginning of a .npy file. numpy leaves room in it for any number of rows, so its length stays."""
    file = BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(_FLOAT), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)
    return file.getvalue()


def _safetensors_header(tables: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str], size: int = 0) -> bytes:
    """The beginning of a .safetensors file; spaces fill it up to `size` bytes, as the format allows."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    begin = 0
    for name, shape in tables.items():
        end = begin + prod(shape) * _FLOAT.itemsize
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries).encode()
    length = max(-(-len(text) // 8) * 8, size - 8)
    return length.to_bytes(8, "little") + text.ljust(length)


class RowFiles:
    """Files for tables that grow together, row by row.

    Args:
        folder: where they are made.
        format: `npy` or `safetensors`.
        shapes: of one row of each table, by name.
        count: the most rows that will come; room is taken for as many.
        metadata: texts that a .safetensors file holds beside its tables; .npy has no place for them.

    Raises: OSError, DiskFullError.
    """

    def __init__(
        self,
        folder: Path,
        format: str,
        shapes: Mapping[str, tuple[int, ...]],
        count: int,
        metadata: Mapping[str, str],
    ) -> None:
        self._format, self._count, self._done, self._metadata = format, count, 0, dict(metadata)
        self._files: dict[Path, BinaryIO] = {}
        self._tables: dict[str, _Table] = {}
        if format == "npy":
            for name, shape in shapes.items():
                header = _npy_header((count, *shape))
                file = self._open(folder / f"{name}.npy", header, len(header) + measure_rows({name: shape}, count))
                self._tables[name] = _Table(file, len(header), shape)
            return
        header = _safetensors_header({name: (count, *shape) for name, shape in shapes.items()}, metadata)
        begin = len(header)
        file = self._open(folder / SAFETENSORS, header, begin + measure_rows(shapes, count))
        for name, shape in shapes.items():
            self._tables[name] = _Table(file, begin, shape)
            begin += self._tables[name].row_bytes * count

    def _open(self, path: Path, header: bytes, size: int) -> BinaryIO:
        with told_if_full(path, size):
            file = self._files[path] = path.open("wb+", buffering=0)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            _write(file, 0, header)
        return file

    def append(self, rows: Mapping[str, NDArray[np.float32]]) -> None:
        """Writes the next rows [B, *shape] of every table."""
        sizes = {len(values) for values in rows.values()}
        if len(sizes) != 1 or rows.keys() != self._tables.keys() or self._done + max(sizes) > self._count:
            raise ValueError(f"rows of all of {', '.join(self._tables)} must come together, {self._count} at most.")
        for name, values in rows.items():
            table = self._tables[name]
            if values.shape[1:] != table.shape:
                raise ValueError(f"a row of {name} is {list(values.shape[1:])} and must be {list(table.shape)}.")
            content = np.ascontiguousarray(values, _FLOAT).reshape(-1).view(np.uint8).data
            _write(table.file, table.begin + self._done * table.row_bytes, content)
        self._done += max(sizes)

    def finish(self) -> list[Path]:
        """Shortens the tables to the rows that came, and makes sure that they are on the disk. Returns the files."""
        if self._done < self._count:
            self._shorten()
        for file in self._files.values():
            os.fsync(file.fileno())
        self.close()
        return list(self._files)

    def _shorten(self) -> None:
        shapes = {name: (self._done, *table.shape) for name, table in self._tables.items()}
        if self._format == "npy":
            for name, table in self._tables.items():
                _write(table.file, 0, _npy_header(shapes[name]))
                os.truncate(table.file.fileno(), table.begin + self._done * table.row_bytes)
            return
        begin = end = next(iter(self._tables.values())).begin
        for table in self._tables.values():  # each moves down to where the one before it ends now
            size = self._done * table.row_bytes
            _move(table.file, table.begin, end, size)
            end += size
        _write(table.file, 0, _safetensors_header(shapes, self._metadata, begin))
        os.truncate(table.file.fileno(), end)

    def close(self) -> None:
        """Closes the files as they are."""
        for file in self._files.values():
            file.close()


def _write(file: BinaryIO, begin: int, content: bytes | memoryview) -> None:
    """Writes at a place of a file. Raises: OSError, DiskFullError."""
    file.seek(begin)
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def _move(file: BinaryIO, begin: int, to: int, size: int) -> None:
    """Moves bytes of a file towards its beginning, in pieces."""
    for done in range(0, size if to < begin else 0, _PIECE):
        file.seek(begin + done)
        _write(file, to + done, file.read(min(_PIECE, size - done)))
