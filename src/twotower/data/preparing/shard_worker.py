"""What a worker process does with one shard: makes it from entries of a source, or checks it."""

import hashlib
import io
import json
import os
import re
import signal
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from twotower.data.decode import UnusableError, cut_square, decode_image, encode_jpeg
from twotower.data.prepared_set import WORK
from twotower.data.preparing.mean_and_pca import Fit
from twotower.data.shards import ShardWriter, shard_name
from twotower.data.sources.source import CIFAR10, Entry
from twotower.data.sources.tree import CIFAR_SIDE
from twotower.ground.files import write_whole
from twotower.ground.processes import die_with_parent

SHOWN_HEIGHT = 192  # pixels of the originals that are kept for the picture


@dataclass(frozen=True)
class Task:
    """The making of one shard, for a worker."""

    output: str
    split: str
    number: int
    first: int  # place of the first entry in its split
    entries: list[Entry]
    labels: list[int]
    contents: list[bytes] | None  # None: the worker reads them itself
    shown: list[int]  # places of the images whose original is kept for the picture
    size: int
    quality: int


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _clean(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[-90:].lstrip(".") or "_"


def name_in_shard(entry: Entry) -> str:
    """`<class>/<file>.jpg` with characters that every file system takes."""
    base = entry.name.rpartition("/")[2]
    stem, _, suffix = base.rpartition(".")
    if suffix.lower() not in ("jpg", "jpeg", "jpe") or not stem:
        stem = base
    return f"{_clean(entry.class_name)}/{_clean(stem)}.jpg"


def start_worker() -> None:
    """Called once in each worker process."""
    import torch

    die_with_parent()
    parent = parent_process()
    if parent is not None and not parent.is_alive():  # it was killed while this process was starting
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    torch.set_num_threads(1)


def _read(entry: Entry) -> bytes:
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
    """Writes one shard, and then its sums and rejects, which makes it count. Returns images and rejects.

    Raises: OSError if the disk is full.
    """
    writer, fit, rejects, shown = ShardWriter(task.number), Fit(task.size), [], {}
    for place, (entry, label) in enumerate(zip(task.entries, task.labels, strict=True)):
        try:
            if entry.problem:
                raise UnusableError(entry.problem)
            content = task.contents[place] if task.contents is not None else _read(entry)
            original = _decode(entry, content)
            image = cut_square(original, task.size)
        except UnusableError as error:
            rejects.append((entry.name, str(error)))
            continue
        if task.split == "train":
            fit.add(image)
        if task.first + place in task.shown:
            shown[f"shown-{writer.count}"] = _small(original)
        writer.add(name_in_shard(entry), encode_jpeg(image, task.quality), label)
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


def sums_path(output: Path, split: str, number: int) -> Path:
    """The file that makes a shard count as done."""
    return output / WORK / f"{split}-{number:05d}.npz"


def about_shard(sums: Any) -> dict[str, Any]:
    """Checksum and rejects from such a file, opened."""
    content: dict[str, Any] = json.loads(sums["about"].tobytes())
    return content


def check_file(path: Path, checksum: str) -> list[str]:
    """What is wrong with a file as a whole; empty if nothing is."""
    if not path.exists():
        return [f"{path} is missing"]
    return [] if sha256_of(path) == checksum else [f"{path} has been changed: its checksum is another one"]


def check_shard(path: Path, checksum: str, index: NDArray[np.void], size: int) -> list[str]:
    """What is wrong with a shard: its bytes, or the first bad image in it; empty if nothing is."""
    if found := check_file(path, checksum):
        return found
    with path.open("rb") as file:
        for entry in index:
            file.seek(int(entry["offset"]))
            content = file.read(int(entry["length"]))
            try:
                shape = decode_image(content).shape
            except UnusableError as error:
                return [f"{path}: the image at byte {int(entry['offset'])} cannot be decoded ({error})"]
            if shape != (size, size, 3):
                return [f"{path}: the image at byte {int(entry['offset'])} has shape {shape}"]
    return []
