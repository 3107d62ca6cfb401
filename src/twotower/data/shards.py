"""Prepared images in shards: plain tar files of JPEGs, `<class>/<name>.jpg`, and an index of where each begins.

Any tool can unpack a shard into a folder for each class; this module reads the images where they lie, in any order.
"""

import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twotower.ground.stored_files import damaged, read_numbers

# shard: number of the file; offset, length: bytes of the JPEG within it; label: 0-based class.
INDEX_TYPE = np.dtype([("shard", "<u4"), ("offset", "<u8"), ("length", "<u4"), ("label", "<u4")])
INDEX_FILE = "index.npy"
HEADER = tarfile.BLOCKSIZE


def shard_name(number: int) -> str:
    """The file name of shard `number`: 00000.tar, ..."""
    return f"{number:05d}.tar"


class ShardWriter:
    """Collects the images of one shard in memory. The same images give the same bytes."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._file = io.BytesIO()
        # USTAR: one header block before each image, whatever its name.
        self._tar = tarfile.TarFile(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)
        self._entries: list[tuple[int, int, int, int]] = []

    @property
    def count(self) -> int:
        """Number of images so far."""
        return len(self._entries)

    def add(self, name: str, jpeg: bytes, label: int) -> None:
        """Appends an image under a path within the shard."""
        info = tarfile.TarInfo(name)
        info.size = len(jpeg)
        self._entries.append((self.number, self._file.tell() + HEADER, len(jpeg), label))
        self._tar.addfile(info, io.BytesIO(jpeg))

    def close(self) -> tuple[bytes, NDArray[np.void], str]:
        """Ends the shard. Returns the bytes of the file, its part of the index, and the SHA-256 of the bytes."""
        self._tar.close()
        content = self._file.getvalue()  # makes no copy; a view would keep the file from being closed
        return content, np.array(self._entries, INDEX_TYPE), hashlib.sha256(content).hexdigest()


@dataclass
class ShardSplit:
    """The split in `folder`, which holds shards and their index. Raises: ValueError if either is damaged."""

    folder: Path
    num_classes: int

    def __post_init__(self) -> None:
        path, remedy = self.folder / INDEX_FILE, "prepare the data set again"
        self._index = read_numbers(path, INDEX_TYPE, (None,), remedy)
        shards, offsets, lengths, labels = (self._index[name].astype(np.uint64) for name in INDEX_TYPE.names or ())
        if not len(self._index) or int(labels.max()) >= self.num_classes:
            reason = f"label {int(labels.max())} is no class of {self.num_classes}" if len(labels) else "it is empty"
            raise damaged(path, reason, remedy)
        # Offsets are below 2^63 in any file that is, so that the sum of both fits.
        if int(offsets.max()) >= 1 << 62 or int(offsets.min()) < HEADER or int(lengths.min()) < 1:
            raise damaged(path, "an image has no place in its shard", remedy)
        for number in np.unique(shards):
            shard, end = self.folder / shard_name(int(number)), int((offsets + lengths)[shards == number].max())
            if not shard.is_file():
                raise damaged(shard, "it is missing", remedy)
            if shard.stat().st_size < end:
                raise damaged(shard, f"it is cut short: {end:,} bytes are indexed", remedy)
        self.labels: NDArray[np.int64] = self._index["label"].astype(np.int64)

    def __len__(self) -> int:
        return len(self._index)

    def _find(self, index: int) -> tuple[int, int, int]:
        """The shard of an image, and its offset and length there in bytes."""
        shard, offset, length, _ = self._index[index].tolist()
        return shard, offset, length

    def read(self, index: int) -> NDArray[np.uint8]:
        """The bytes of one JPEG, uint8 [length]. Raises: OSError if its shard cannot be read, or is cut short."""
        shard, offset, length = self._find(index)
        # The file is opened each time, because there can be more shards than a process may hold open.
        content = np.fromfile(self.folder / shard_name(shard), np.uint8, length, offset=offset)
        if len(content) < length:
            raise OSError(f"{self.folder / shard_name(shard)} is cut short; prepare the data set again.")
        return content

    def name(self, index: int) -> str:
        """Where an image lies, for error messages: <split>/<shard>/<path within the shard>."""
        shard, offset, _ = self._find(index)
        header = np.fromfile(self.folder / shard_name(shard), np.uint8, HEADER, offset=offset - HEADER)
        try:
            inside = tarfile.TarInfo.frombuf(header.tobytes(), "utf-8", "surrogateescape").name
        except tarfile.TarError:
            inside = f"byte {offset}"  # the header is damaged, and the name is for the error that says so
        return f"{self.folder.name}/{shard_name(shard)}/{inside}"
