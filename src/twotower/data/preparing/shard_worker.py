"""Makes one shard from entries of a source, in a worker process."""

import hashlib
import io
import json
import re
import signal
from collections.abc import Container
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twotower.data.decode import UnusableError, cut_square, decode_image, encode_jpeg
from twotower.data.preparing.mean_and_pca import Fit
from twotower.data.preparing.shard_sums import sums_path
from twotower.data.shards import ShardWriter, shard_name
from twotower.data.sources.source import CIFAR10, Entry
from twotower.data.sources.tree import CIFAR_SIDE
from twotower.ground.files import write_whole
from twotower.ground.processes import die_with_parent, start_resource_tracker

SHOWN_HEIGHT = 192  # height of the originals that are kept for the picture, in pixels


@dataclass(frozen=True)
class Task:
    """The making of one shard, for a worker.

    Attributes:
        output: folder of the prepared set.
        split: `train`, `val` or `test`.
        number: number of the shard in its split, from 0.
        first: index of the first entry in its split.
        entries: images to convert.
        labels: index of the class of each entry.
        contents: the bytes of each entry; None: the worker reads them itself.
        shown: indices in the split of the images whose original is kept for the picture.
        size: sides of the prepared squares, in pixels.
        quality: that of the JPEGs, 1 to 100.
    """

    output: str
    split: str
    number: int
    first: int
    entries: list[Entry]
    labels: list[int]
    contents: list[bytes] | None
    shown: list[int]
    size: int
    quality: int


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[-90:].lstrip(".") or "_"


def name_in_shard(entry: Entry, index: int, taken: Container[str] = ()) -> str:
    """The path of an image in its shard, `<class>/<file>.jpg`, in characters that every file system takes.

    Names that are changed for that differ where those of the source do, so that unpacking loses none: a class gets
    the beginning of its name's SHA-256, and a file its index, also where its path is taken in this shard.

    Args:
        index: of the image in its split.
    """
    base = entry.name.rpartition("/")[2]
    stem = re.sub(r"\.(jpg|JPEG)$", "", base) or base
    folder, file = _clean(entry.class_name), _clean(stem)
    if folder != entry.class_name:
        folder += f"-{hashlib.sha256(entry.class_name.encode(errors='surrogatepass')).hexdigest()[:8]}"
    path = f"{folder}/{file}.jpg"
    return path if file == stem and path not in taken else f"{folder}/{file[-75:]}-{index}.jpg"


def start_pool(workers: int) -> ProcessPoolExecutor:
    """Worker processes, each of which starts with its first work."""
    start_resource_tracker()
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)


def _start_worker() -> None:
    """Prepares a worker process for its work; called once in each."""
    import torch

    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    torch.set_num_threads(1)


def read_entry(entry: Entry) -> bytes:
    """The bytes of an image of a source. Raises: UnusableError if they cannot be read."""
    try:
        with open(entry.file, "rb") as file:
            file.seek(entry.offset)
            content = file.read(entry.size)
    except OSError as error:
        raise UnusableError(f"it cannot be read ({error.strerror})") from error
    if len(content) < entry.size:
        raise UnusableError("it has become shorter since it was listed")
    return content


def _decode(entry: Entry, content: bytes) -> NDArray[np.uint8]:
    if entry.form == CIFAR10:
        planes = np.frombuffer(content, np.uint8).reshape(3, CIFAR_SIDE, CIFAR_SIDE)
        return np.ascontiguousarray(planes.transpose(1, 2, 0))
    return decode_image(content)


def convert_shard(task: Task) -> tuple[int, int]:
    """Writes one shard, and then the file of its sums and rejects, which makes the shard count as done.

    Returns: the numbers of images and of rejects.

    Raises: OSError if the disk is full.
    """
    writer, fit, rejects, shown = ShardWriter(task.number), Fit(task.size), [], {}
    taken: set[str] = set()
    for position, (entry, label) in enumerate(zip(task.entries, task.labels, strict=True)):
        try:
            if entry.problem:
                raise UnusableError(entry.problem)
            content = task.contents[position] if task.contents is not None else read_entry(entry)
            original = _decode(entry, content)
            image = cut_square(original, task.size)
        except UnusableError as error:
            rejects.append((entry.name, str(error)))
            continue
        if task.split == "train":
            fit.add(image)
        if task.first + position in task.shown:
            shown[f"shown-{writer.count}"] = _small(original)
        name = name_in_shard(entry, task.first + position, taken)
        taken.add(name)
        writer.add(name, encode_jpeg(image, task.quality), label)
    tar, index, checksum = writer.close()
    write_whole(Path(task.output) / task.split / shard_name(task.number), tar)
    about = json.dumps({"sha256": checksum, "rejects": rejects}).encode()
    arrays: dict[str, Any] = {"index": index, "about": np.frombuffer(about, np.uint8)} | shown
    if task.split == "train":
        arrays |= {"image_sum": fit.image_sum.astype(np.uint32), "products": fit.products}
    file = io.BytesIO()
    np.savez(file, **arrays)
    write_whole(sums_path(Path(task.output), task.split, task.number), file.getvalue())
    return len(index), len(rejects)


def _small(original: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = Image.fromarray(original)
    image.thumbnail((2 * SHOWN_HEIGHT, SHOWN_HEIGHT))
    return np.asarray(image)
