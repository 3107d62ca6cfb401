"""Prepared images in shards: plain tar files of JPEGs, `<class>/<name>.jpg`, and an index of where each begins.

Any tool can unpack a shard into a folder for each class; here the images are read where they lie, in any order.
"""

import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# shard: number of the file; offset, length: bytes of the JPEG within it; label: 0-based class.
INDEX_TYPE = np.dtype([("shard", "<u4"), ("offset", "<u8"), ("length", "<u4"), ("label", "<u4")])
INDEX_FILE = "index.npy"
HEADER = tarfile.BLOCKSIZE


def shard_name(number: int) -> str:
    return f"{number:05d}.tar"


class ShardWriter:
    """Collects the images of one shard in memory; the same images give the same bytes."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._file = io.BytesIO()
        # USTAR: one header block before each image, whatever its name.
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        self._entries: list[tuple[int, int, int, int]] = []

    @property
    def count(self) -> int:
        """Images so far."""
        return len(self._entries)

    def add(self, name: str, jpeg: bytes, label: int) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(jpeg)
        self._entries.append((self.number, self._file.tell() + HEADER, len(jpeg), label))
        self._tar.addfile(info, io.BytesIO(jpeg))

    def close(self) -> tuple[bytes, NDArray[np.void], str]:
        """The bytes of the file, the part of the index that describes them, and their SHA-256."""
        self._tar.close()
        content = self._file.getvalue()  # without a copy; a view would stop the file from being closed
        return content, np.array(self._entries, INDEX_TYPE), hashlib.sha256(content).hexdigest()


@dataclass
class ShardSplit:
    """The images of `folder`, which holds shards and their index. Raises: ValueError if either is missing."""

    folder: Path

    def __post_init__(self) -> None:
        try:
            self._index = np.load(self.folder / INDEX_FILE)
            shards, last = np.unique(self._index["shard"][::-1], return_index=True)
            for number, row in zip(shards, len(self._index) - 1 - last, strict=True):
                path, end = self.folder / shard_name(number), self._index["offset"][row] + self._index["length"][row]
                if path.stat().st_size < end:
                    raise ValueError(f"{path.name} is cut short")
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.folder} is damaged ({error}); prepare the data set again.") from error
        self.labels: NDArray[np.int64] = self._index["label"].astype(np.int64)

    def __len__(self) -> int:
        return len(self._index)

    def _place(self, index: int) -> tuple[int, int, int]:
        shard, offset, length, _ = self._index[index].tolist()
        return shard, offset, length

    def read(self, index: int) -> NDArray[np.uint8]:
        shard, offset, length = self._place(index)
        # Opened each time, as there can be more shards than a process may hold open.
        content = np.fromfile(self.folder / shard_name(shard), np.uint8, length, offset=offset)
        if len(content) < length:
            raise OSError(f"{self.folder / shard_name(shard)} is cut short; prepare the data set again.")
        return content

    def name(self, index: int) -> str:
        shard, offset, _ = self._place(index)
        header = np.fromfile(self.folder / shard_name(shard), np.uint8, HEADER, offset=offset - HEADER)
        try:
            inside = tarfile.TarInfo.frombuf(header.tobytes(), "utf-8", "surrogateescape").name
        except tarfile.TarError:
            inside = f"byte {offset}"  # damaged, and this is for the sentence that says so
        return f"{self.folder.name}/{shard_name(shard)}/{inside}"
