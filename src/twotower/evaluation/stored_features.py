"""The outputs of a layer for all images of a split, stored beside the run.

    RUN/features/step-00000120-train-fc7.npy    float32 [N, D], tower 0's units first
    RUN/features/step-00000120-train-fc7.json   what it depends on, as for stored predictions

It is what the layers above read: after activation, norms and pooling, without dropout. A table is computed once and
then read from a memory map. Those of 4096 units take 21 GB for ILSVRC-2012's 1,281,167 training images and 0.8 GB
for its 50,000 others; the folder can be deleted.
"""

import os
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from twotower.config import NetworkConfig
from twotower.data.batch import Share
from twotower.data.choose_loader import say_fallback
from twotower.data.dataset import DataSet, Split
from twotower.data.feed import ValidationFeed
from twotower.distributed.exchange import InProcessExchange
from twotower.evaluation.layer_outputs import read_outputs
from twotower.evaluation.subject import Subject, load_towers
from twotower.ground.devices import choose_device
from twotower.ground.files import write_json, written_whole
from twotower.ground.progress import metered
from twotower.ground.stored_files import ANYTHING, read_json, read_npy

FOLDER = "features"
REMEDY = "delete it, and the features are computed again"
BATCH = 128  # images at a time


@dataclass(frozen=True)
class Features:
    """Outputs for N images in the order of the split: float32 [N, D]; `stored`: whether they came from a file."""

    values: NDArray[np.float32]
    layer: str
    stored: bool


def choose_split(dataset: DataSet, split: str) -> Split:
    """`train`, `val` or `test`. Raises: ValueError if there is no such split, or there are no images."""
    if dataset.is_synthetic:
        raise ValueError("the run was trained on data=synthetic, which has no images; choose a run on real ones.")
    return dataset.train if split == "train" else dataset.split(split)


def last_hidden(network: NetworkConfig) -> str:
    """The layer before the classifier: fc7 in the paper. Raises: ValueError if there is none."""
    layers = list(network.layers)
    if len(layers) < 2:
        raise ValueError(
            f"network={network.name} has no layer before its classifier {layers[-1]}; choose a run of a deeper one."
        )
    return layers[-2]


def locate_features(run_dir: Path, checkpoint_name: str, split: str, layer: str) -> Path:
    """Where features lie."""
    return run_dir / FOLDER / f"{checkpoint_name}-{split}-{layer}.npy"


def read(path: Path, identity: dict[str, Any]) -> NDArray[np.float32] | None:
    """A memory map of stored features; None unless they depend on exactly what `identity` says."""
    try:
        about = path.with_suffix(".json")
        if not about.exists() or read_json(about, ANYTHING, REMEDY) != identity:
            return None
        values: NDArray[np.float32] = read_npy(path, REMEDY, mapped=True)
    except ValueError:
        return None
    fits = values.dtype == np.float32 and values.ndim == 2 and len(values) == identity["num_images"]
    return values if fits else None


def make_features(subject: Subject, split: str, layer: str) -> Features:
    """The outputs of a layer for the centre crop of all images of `train`, `val` or `test`.

    Raises: ValueError if the data set has no such split, or the disk no room; OSError if it cannot be written.
    """
    images = choose_split(subject.dataset, split)
    identity = {**subject.identity, "split": split, "layer": layer, "num_images": len(images)}
    path = locate_features(subject.run_dir, subject.checkpoint.name, split, layer)
    values = read(path, identity)
    if values is not None:
        return Features(values, layer, stored=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path, shared=True) as pending:
        _compute(subject, images, layer, f"{layer} of {split}", pending)
        # A table without its identity is never used, so the old identity goes before the new table comes.
        path.with_suffix(".json").unlink(missing_ok=True)
    write_json(path.with_suffix(".json"), identity, shared=True)
    return Features(np.load(path, mmap_mode="r"), layer, stored=False)


def _compute(subject: Subject, images: Split, layer: str, title: str, path: Path) -> None:
    """Writes the table, batch by batch."""
    config, dataset, device = subject.config, subject.dataset, choose_device()
    towers = load_towers(subject.checkpoint, subject.manifest, config, len(dataset.classes), device)
    exchange = InProcessExchange(config.network.exchange_precision)
    share = Share(BATCH, 0, 1, device, config.machine.loader_threads or torch.get_num_threads())
    table, done = None, 0
    say_fallback(config.input.loader)
    with (
        closing(ValidationFeed(dataset, images, config.input, share, crops="centre")) as feed,
        metered(title, len(images)) as meter,
    ):
        for batch in feed:
            outputs = read_outputs(towers, [layer], batch.images, exchange)[layer]
            rows = torch.cat([output.flatten(1) for output in outputs], dim=1).float().cpu().numpy()
            if table is None:
                needed = len(images) * rows.shape[1] * rows.itemsize
                _check_room(path, needed)
                table = open_memmap(path, "w+", np.float32, (len(images), rows.shape[1]))
                _reserve(path)
            table[done : done + len(rows)] = rows
            done += len(rows)
            meter.advance(len(rows))
    assert table is not None
    table.flush()


def _check_room(path: Path, needed: int) -> None:
    """Raises: ValueError: a memory map on a full disk would kill the process."""
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise ValueError(
            f"{path.parent} has {free:,} bytes free, and the features of all images take {needed:,}; make room, or "
            "copy the run to a larger disk."
        )


def _reserve(path: Path) -> None:
    """Takes the room, as others may fill the disk before the pages of the map are written. Raises: OSError."""
    if hasattr(os, "posix_fallocate"):
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
