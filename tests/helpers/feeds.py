"""Data sets whose labels name their images, feeds over them, and what these feeds should deliver."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from twotower.config import InputConfig
from twotower.data.augment import draw_changes
from twotower.data.batch import Batch, Feed, Share
from twotower.data.dataset import DataSet, FileSplit
from twotower.data.feed import open_train, open_validation

NUM_TRAIN, NUM_VAL = 11, 7
CPU = torch.device("cpu")
PLAIN = InputConfig(colour_noise="none", flip=False, random_crop=False)
FULL = InputConfig(colour_noise="2012", mean="aligned", images_per_draw=3)
SMALL = InputConfig(crop_size=40, offsets=9, mean="aligned", colour_noise="2012", images_per_draw=3)

Pixels = NDArray[np.uint8]


@dataclass
class Known:
    """A data set with a class for every image, so that the label names the image."""

    dataset: DataSet
    train: list[Pixels]
    val: list[Pixels]

    @property
    def mean(self) -> NDArray[np.float32]:
        assert self.dataset.mean_image is not None
        return self.dataset.mean_image


def colourful(stream: np.random.Generator, width: int, height: int, cells: int = 32) -> Image.Image:
    """A picture that has neither symmetry nor a period."""
    small = Image.fromarray(stream.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def make_known(root: Path) -> Known:
    """256 x 256 PNGs of random pixels, and a quite different mean image, so that each mistake shows everywhere."""
    stream = np.random.default_rng(7)
    pixels: dict[str, list[Pixels]] = {"train": [], "val": []}
    splits = {}
    for split, count in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        for i in range(count):
            pixels[split].append(stream.integers(0, 256, (256, 256, 3), dtype=np.uint8))
            Image.fromarray(pixels[split][-1]).save(root / f"{split}{i}.png", compress_level=1)
        splits[split] = FileSplit(root, [f"{split}{i}.png" for i in range(count)], np.arange(count))
    mean = stream.uniform(0, 255, (256, 256, 3)).astype(np.float32)
    axes = np.linalg.qr(stream.normal(size=(3, 3)))[0]
    classes = [str(i) for i in range(NUM_TRAIN)]
    dataset = DataSet(classes, splits["train"], splits["val"], mean, np.array([90.0, 800.0, 9000.0]), axes)
    return Known(dataset, pixels["train"], pixels["val"])


def val_only(paths: list[Path]) -> DataSet:
    """A set with these files as `val`, labelled 0, 1, ..., and a mean of zero."""
    split = FileSplit(paths[0].parent, [path.name for path in paths], np.arange(len(paths)))
    return DataSet(["a"], split, split, np.zeros((256, 256, 3), np.float32), np.ones(3), np.eye(3))


def share(**options: Any) -> Share:
    usual: dict[str, Any] = {"batch_size": 4, "replica": 0, "num_replicas": 1, "device": CPU, "threads": 1}
    return Share(**(usual | options))


def train_feed(dataset: DataSet, config: InputConfig, **options: Any) -> Feed:
    seed, first_step = options.pop("seed", 3), options.pop("first_step", 0)
    return open_train(dataset, config, share(**options), seed=seed, first_step=first_step)


def val_feed(dataset: DataSet, config: InputConfig = PLAIN, **options: Any) -> Feed:
    crops = options.pop("crops", "centre")
    return open_validation(dataset, config, share(**options), crops=crops)


def take(feed: Feed, count: int) -> list[Batch]:
    with closing(feed):
        batches = list(islice(feed, count))
    assert len(batches) == count
    return batches


def take_all(feed: Feed) -> list[Batch]:
    with closing(feed):
        return list(feed)


def in_order(batches: list[Batch]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Label and image [..., 224, 224, 3] of every image in the batches."""
    for batch in batches:
        for label, image in zip(batch.labels, batch.images, strict=True):
            yield int(label), image.movedim(-3, -1).numpy()


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.images, b.images)


def window(image: NDArray[Any], y: int, x: int, mirrored: bool, pixels: int = 224) -> NDArray[np.float32]:
    cut = image[y : y + pixels, x : x + pixels].astype(np.float32)
    assert cut.shape == (pixels, pixels, 3)
    return cut[:, ::-1] if mirrored else cut


def all_at_once(root: Path, names: list[str], size: int = 256, needs_resize: bool = True) -> DataSet:
    """A set with these files as both splits, labelled 0, 1, ..., and a mean of zero."""
    split = FileSplit(root, names, np.arange(len(names)))
    zero = np.zeros((size, size, 3), np.float32)
    return DataSet(["a"], split, split, zero, np.ones(3), np.eye(3), needs_resize=needs_resize, size=size)


def placed(
    dataset: DataSet, config: InputConfig, steps: int
) -> Iterator[tuple[int, NDArray[np.float32], tuple[int, int, bool]]]:
    """Label, image, and the y, x and mirror drawn for it; each step has all images of the set."""
    count = len(dataset.train)
    for epoch, batch in enumerate(take(train_feed(dataset, config, batch_size=count), steps)):
        drawn = draw_changes(
            config,
            dataset.eigenvalues,
            dataset.eigenvectors,
            seed=3,
            epoch=epoch,
            step=0,
            batch_size=count,
            span=dataset.size - config.crop_size,
        )
        for row, (label, image) in enumerate(in_order([batch])):
            (y, x), flip = drawn.offsets[row].tolist(), bool(drawn.flips[row])
            yield label, image, (y, x, flip)
