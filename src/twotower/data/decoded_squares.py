"""Decodes a prepared set once and for all: its squares as plain pixels in one file a split, which stays mapped.

    root/train/*.tar  ->  root/decoded/train-<checksum>.npy   uint8 [N, size, size, 3], RGB, in the order of the index

All processes of a host share the pages of that file, so a set that fits into memory is there once, and is decoded by
no later run either. 256 x 256 pixels take 196,608 bytes: the 1.28 million training images of ILSVRC-2012 252 GB.
The pixels are those that every loader makes on a CPU (libjpeg-turbo's exact transform).
"""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twotower.config import DataConfig
from twotower.data.dataset import DataSet, Split
from twotower.data.decode import UnusableError, decode_image
from twotower.data.folder_cache import find_root
from twotower.data.prepared_set import is_prepared
from twotower.ground.files import DiskFullError, written_whole
from twotower.ground.links import refuse_links
from twotower.ground.processes import cores
from twotower.ground.progress import metered
from twotower.ground.stored_files import read_npy

AT_ONCE = 256  # images that are decoded before their pixels are written: 50 MB
CHANNELS = 3


@dataclass(frozen=True)
class DecodedSplit:
    """A split whose images are pixels: `read` gives a view of them, and the disk is read when they are used.

    Attributes:
        split: the split with the encoded images.
        path: the file of the pixels.
        squares: uint8 [N, size, size, 3], RGB, 0..255.
    """

    split: Split
    path: Path
    squares: NDArray[np.uint8]

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.split.labels

    def __len__(self) -> int:
        return len(self.split)

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.squares[index]

    def name(self, index: int) -> str:
        return self.split.name(index)


def _list_splits(dataset: DataSet) -> dict[str, Split]:
    return {"train": dataset.train, "val": dataset.val}


NOT_PREPARED = (
    "input.cache is for a set that launch/prepare_data.py has made, in data.root=DIR; use input.cache=none for other "
    "images."
)


def check_cache(cache: str, data: DataConfig) -> None:
    """Checks, before any work, that `input.cache` can be used. Raises: ValueError for images in no prepared set."""
    if cache != "none" and data.kind != "synthetic" and not is_prepared(find_root(data)):
        raise ValueError(NOT_PREPARED)


def _find_file(dataset: DataSet, name: str) -> Path:
    """Where the pixels of a split lie. Raises: ValueError for images in no prepared set."""
    if dataset.decoded is None:
        raise ValueError(NOT_PREPARED)
    return dataset.decoded.folder / f"{name}-{dataset.decoded.checksum}.npy"


def _open(path: Path, split: Split, size: int) -> NDArray[np.uint8]:
    """The mapped pixels. Raises: ValueError if the file is another one, or cannot be read."""
    shape = (len(split), size, size, CHANNELS)
    squares = read_npy(path, "delete it, and the images are decoded again", mapped=True)
    if squares.shape != shape or squares.dtype != np.uint8:
        raise ValueError(
            f"{path} is damaged (it holds {squares.dtype} {list(squares.shape)}, not uint8 {list(shape)}); delete "
            "it, and the images are decoded again."
        )
    mapped: NDArray[np.uint8] = squares
    return mapped


def decode_squares(dataset: DataSet, progress: bool = True) -> None:
    """Writes the pixels of both splits, unless they are there.

    Raises: ValueError if there is no room for them, or the set cannot be decoded or written beside.
    """
    for name, split in _list_splits(dataset).items():
        path = _find_file(dataset, name)
        if path.exists():
            _open(path, split, dataset.size)
        else:
            _decode(split, dataset.size, path, name, progress)


def _decode(split: Split, size: int, path: Path, name: str, progress: bool) -> None:
    needed = len(split) * size * size * CHANNELS
    remedy = "choose another folder with data.cache=DIR, or input.cache=none"
    if is_prepared(path.parents[1]):  # else it is a folder that the user named, which may be a link
        refuse_links(path.parents[1], path.parent.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < needed:
            raise ValueError(f"{path} would take {needed:,} bytes for pixels, and {free:,} are free there; {remedy}.")
        # Pages of a mapped file that find no room on the disk kill the process; a write that finds none is an error.
        with written_whole(path, shared=True, needed=needed) as pending, pending.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(split), size, size, CHANNELS)}
            np.lib.format.write_array_header_1_0(file, header)
            for squares in _decode_in_order(split, size, f"decoding {name} once", progress):
                file.write(squares.data)
    except DiskFullError as error:
        raise ValueError(f"{error} Make room, or {remedy}.") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"{path} cannot be written ({reason}); {remedy}.") from error


def _decode_in_order(split: Split, size: int, title: str, progress: bool) -> Iterator[NDArray[np.uint8]]:
    """uint8 [up to AT_ONCE, size, size, 3], until all images are decoded."""

    def decode(index: int) -> NDArray[np.uint8]:
        try:
            square = decode_image(split.read(index).tobytes())
        except UnusableError as error:
            raise ValueError(f"{split.name(index)} cannot be decoded any more: {error}.") from error
        if square.shape != (size, size, CHANNELS):
            raise ValueError(f"{split.name(index)} does not have {size} x {size} pixels; prepare the data set again.")
        return square

    with ThreadPoolExecutor(cores()) as threads, metered(title, len(split), silent=not progress) as meter:
        for begin in range(0, len(split), AT_ONCE):
            squares = list(threads.map(decode, range(begin, min(begin + AT_ONCE, len(split)))))
            yield np.stack(squares)
            meter.advance(len(squares))


def open_decoded(dataset: DataSet) -> DataSet:
    """The data set with pixels in place of encoded images. Raises: ValueError, OSError."""
    decoded = _list_splits(dataset)
    for name, split in decoded.items():
        if not isinstance(split, DecodedSplit):
            path = _find_file(dataset, name)
            decoded[name] = DecodedSplit(split, path, _open(path, split, dataset.size))
    return replace(dataset, train=decoded["train"], val=decoded["val"])
