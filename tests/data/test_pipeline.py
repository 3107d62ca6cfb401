"""Batches against NumPy and Pillow, pixel by pixel: decoding, resizing, crops, mirrors, mean and noise."""

import gc
import io
import os
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from twotower.config import InputConfig
from twotower.data.augment import draw_changes
from twotower.data.batch import Batch, Feed, Share, label_checksum, pixel_checksum
from twotower.data.crops import check_crops
from twotower.data.dataset import DataSet, FileSplit
from twotower.data.feed import open_train, open_validation
from twotower.data.normalise import Normaliser
from twotower.data.preparing.mean_and_pca import Fit
from twotower.data.shards import INDEX_FILE, ShardSplit, ShardWriter, shard_name
from twotower.data.synthetic import make_synthetic_dataset

NUM_TRAIN, NUM_VAL = 11, 7
CPU = torch.device("cpu")
PLAIN = InputConfig(colour_noise="none", flip=False, random_crop=False, device="cpu")
FULL = InputConfig(colour_noise="2012", mean="aligned", images_per_draw=3, device="cpu")

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


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """256 x 256 PNGs of random pixels, and a quite different mean image, so that each mistake shows everywhere."""
    root = tmp_path_factory.mktemp("known")
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


def triangle(pixels: int, side: int) -> NDArray[np.float64]:
    """Weights [pixels, side] of an antialiased linear filter that brings `side` pixels to `pixels`.

    The outermost pixels are repeated beyond the edge.
    """
    scale = side / pixels
    reach = max(scale, 1.0)
    weights = np.zeros((pixels, side))
    for i in range(pixels):
        centre = (i + 0.5) * scale
        for j in range(int(np.floor(centre - reach)) - 1, int(np.ceil(centre + reach)) + 1):
            weights[i, min(max(j, 0), side - 1)] += max(0.0, 1 - abs(j + 0.5 - centre) / reach)
    normalised: NDArray[np.float64] = weights / weights.sum(1, keepdims=True)
    return normalised


def centre_square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def resized(square: NDArray[np.uint8], size: int) -> NDArray[np.float64]:
    """The oracle's resized square, not rounded to whole levels."""
    weights = triangle(size, len(square))
    across = np.tensordot(weights, square.astype(np.float64), axes=(1, 0))
    both: NDArray[np.float64] = np.tensordot(across, weights, axes=(1, 1)).swapaxes(1, 2)
    return both


# Decoding and resizing


def test_decoding_equals_pillow(tmp_path: Path) -> None:
    """Bit for bit: every sampling of JPEG, grey and palette images as RGB, without alpha, EXIF turns ignored."""
    stream = np.random.default_rng(1)
    image = colourful(stream, 256, 256)
    alpha = Image.fromarray(np.dstack([np.asarray(image), stream.integers(0, 256, (256, 256), dtype=np.uint8)]))
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: a quarter turn
    variants: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("420.jpg", image, {"quality": 85}),
        ("422.jpg", image, {"subsampling": 1}),
        ("444.JPEG", image, {"subsampling": 0, "quality": 95}),
        ("progressive.jpg", image, {"progressive": True}),
        ("grey.jpg", image.convert("L"), {}),
        ("turned.jpg", image, {"exif": turned}),
        ("rgb.png", image, {}),
        ("grey.png", image.convert("L"), {}),
        ("palette.png", image.convert("P"), {}),
        ("alpha.png", alpha, {}),
    ]
    paths = []
    for name, picture, options in variants:
        picture.save(tmp_path / name, **options)
        paths.append(tmp_path / name)
    seen = dict(in_order(take_all(val_feed(val_only(paths)))))
    assert sorted(seen) == list(range(len(paths)))
    for i, path in enumerate(paths):
        with Image.open(path) as opened:
            wanted = np.asarray(opened.convert("RGB"))
        np.testing.assert_array_equal(seen[i], window(wanted, 16, 16, False), err_msg=path.name)


@pytest.mark.parametrize(
    ("width", "height", "cells"),
    [
        (512, 512, 512),
        (640, 480, 640),
        (480, 640, 640),
        (100, 170, 170),
        (64, 64, 64),
        (1000, 259, 1000),
        (301, 256, 301),
        (256, 301, 301),
        (100, 171, 12),
        (1000, 260, 12),
    ],
)
def test_resizing_agrees_with_pillow(tmp_path: Path, width: int, height: int, cells: int) -> None:
    """The centre square at 256 x 256, within 2 of 255, because both round to whole levels twice.

    On fine noise, shrinking without antialiasing, a stretched image or a square off by a pixel are far off.
    """
    stream = np.random.default_rng(width * height)
    image = colourful(stream, width, height, cells)
    image.save(tmp_path / "a.png")
    side = min(width, height)
    # Where the rest is odd, the square lies half a pixel to the left or above.
    top, left = (height - side) // 2, (width - side) // 2
    square = image.crop((left, top, left + side, top + side))
    resized = np.asarray(square.resize((256, 256), Image.Resampling.BILINEAR))  # Pillow's filter is antialiased
    wanted = window(resized, 16, 16, False)
    ((_, seen),) = in_order(take_all(val_feed(val_only([tmp_path / "a.png"]))))
    error = abs(seen - wanted)
    assert error.max() <= 2
    assert error.mean() < 0.5
    if min(width, height) == 256:
        assert error.max() == 0


@pytest.mark.parametrize(("size", "crop", "offsets"), [(256, 224, 33), (32, 24, 9)])
def test_resized_crops_are_right_wherever_they_lie(tmp_path: Path, size: int, crop: int, offsets: int) -> None:
    """Decoding and resizing only the part around a crop must not show, least of all at the edges.

    Each crop is within one level of 255 of NumPy's triangle filter over the whole square; the ten crops, too.
    A crop that is off by one pixel, one that is not mirrored, and a filter without antialiasing are far off.
    """
    stream = np.random.default_rng(size)
    shapes = [(512, 512), (640, 480), (100, 171), (64, 64), (301, 256), (1000, 259), (31, 33)]
    squares: list[Pixels] = []
    names = []
    for i, (width, height) in enumerate(shapes):
        names.append(f"{i}.{'jpg' if i % 2 else 'png'}")
        colourful(stream, width, height, max(width, height)).save(tmp_path / names[-1], quality=90)
        with Image.open(tmp_path / names[-1]) as opened:
            squares.append(centre_square(np.asarray(opened)))
    wholes = [resized(square, size) for square in squares]
    config = InputConfig(crop_size=crop, offsets=offsets, colour_noise="none", device="cpu")
    dataset = all_at_once(tmp_path, names, size)
    places = set()
    for label, image, (y, x, flip) in placed(dataset, config, 12):
        places |= {y, x}
        assert abs(image - window(wholes[label], y, x, flip, crop)).max() <= 1
        beside = x + 1 if x < offsets - 1 else x - 1
        assert abs(image - window(wholes[label], y, x, not flip, crop)).max() > 5
        assert abs(image - window(wholes[label], y, beside, flip, crop)).max() > 5
        every = len(squares[label]) // size
        if every > 1:
            without = squares[label][::every, ::every]
            assert abs(image - window(without, y, x, flip, crop)).max() > 5
    assert {0, offsets - 1} <= places
    span = size - crop
    corners = [(0, 0), (0, span), (span // 2, span // 2), (span, 0), (span, span)]
    for label, views in in_order(take_all(val_feed(dataset, config, crops="ten", batch_size=3))):
        for view, (y, x, flip) in zip(views, [(*c, f) for f in (False, True) for c in corners], strict=True):
            assert abs(view - window(wholes[label], y, x, flip, crop)).max() <= 1
    for label, image in in_order(take_all(val_feed(dataset, config, batch_size=3))):
        assert abs(image - window(wholes[label], span // 2, span // 2, False, crop)).max() <= 1


@pytest.mark.parametrize("needs_resize", [False, True])
def test_decoding_a_part_equals_cutting_it_from_the_whole(tmp_path: Path, needs_resize: bool) -> None:
    """Crops begin and end anywhere within the blocks of a JPEG, whose colours are interpolated across blocks."""
    stream = np.random.default_rng(5)
    variants: list[tuple[str, dict[str, Any]]] = [
        ("420.jpg", {"quality": 85}),
        ("422.jpg", {"subsampling": 1, "quality": 90}),
        ("444.jpg", {"subsampling": 0}),
        ("progressive.jpg", {"progressive": True}),
        ("restarts.jpg", {"restart_marker_rows": 1, "quality": 50}),
        ("rgb.png", {}),
    ]
    wholes = []
    for name, options in variants:
        colourful(stream, 80, 80, 80).save(tmp_path / name, **options)
        with Image.open(tmp_path / name) as opened:
            wholes.append(np.asarray(opened))
    config = InputConfig(crop_size=45, offsets=36, colour_noise="none", device="cpu")
    dataset = all_at_once(tmp_path, [name for name, _ in variants], 80, needs_resize)
    places = set()
    for label, image, (y, x, flip) in placed(dataset, config, 60):
        np.testing.assert_array_equal(image, window(wholes[label], y, x, flip, 45), err_msg=variants[label][0])
        places.add((label, y % 16, x % 16))
    assert len(places) > 150


@pytest.mark.parametrize(("channel", "colour"), [(0, "red"), (1, "lime"), (2, "blue")])
def test_channels_are_red_green_blue(tmp_path: Path, channel: int, colour: str) -> None:
    Image.new("RGB", (256, 256), colour).save(tmp_path / "a.png")
    dataset = val_only([tmp_path / "a.png"])
    wanted = torch.zeros(3)
    wanted[channel] = 255
    for feed in (train_feed(dataset, PLAIN, batch_size=1), val_feed(dataset), val_feed(dataset, crops="ten")):
        (batch,) = take(feed, 1)
        assert (batch.images.movedim(-3, -1) == wanted).all()


# Changes to a training image


@pytest.mark.parametrize("mean", ["central", "aligned"])
@pytest.mark.parametrize("noise", ["none", "2012", "paper"])
def test_training_image_is_exact(known: Known, mean: str, noise: str) -> None:
    """(crop - mean + noise) * scale in float32, in this order, for the drawn crop, mirror and noise.

    The central mean is neither moved nor mirrored; the aligned one is both, as the image is. Only 2012 divides.
    """
    config = InputConfig(mean=mean, colour_noise=noise, device="cpu")
    scale = np.float32(1 / 1.1 if noise == "2012" else 1.0)
    drawn_settings = []
    batches = take(train_feed(known.dataset, config), 4)
    for step, batch in enumerate(batches):
        drawn = draw_changes(
            config,
            known.dataset.eigenvalues,
            known.dataset.eigenvectors,
            seed=3,
            epoch=step // 2,
            step=step % 2,
            batch_size=4,
        )
        assert batch.images.shape == (4, 3, 224, 224)
        assert batch.images.dtype == torch.float32
        assert batch.labels.dtype == torch.int64
        for row, (label, image) in enumerate(in_order([batch])):
            (y, x), flip = drawn.offsets[row].tolist(), bool(drawn.flips[row])
            drawn_settings.append((y, x, flip))
            crop = window(known.train[label], y, x, flip)
            less = window(known.mean, y, x, flip) if mean == "aligned" else window(known.mean, 16, 16, False)
            np.testing.assert_array_equal(image, (crop - less + drawn.noise[row]) * scale)
    assert {flip for _, _, flip in drawn_settings} == {False, True}
    assert len({(y, x) for y, x, _ in drawn_settings}) > 8
    assert len({image.tobytes() for _, image in in_order(batches)}) == 16


def test_division_follows_the_strength_of_the_noise(known: Known) -> None:
    """The factor is 1 / (1 + coefficient) of the 2012 code, not always 1 / 1.1."""
    config = replace(PLAIN, colour_noise="2012", colour_noise_std=0.25)
    dataset = replace(known.dataset, eigenvalues=np.zeros(3))
    for label, image in in_order(take(train_feed(dataset, config), 1)):
        wanted = window(known.train[label], 16, 16, False) - window(known.mean, 16, 16, False)
        np.testing.assert_allclose(image, wanted / 1.25, rtol=1e-6)


def test_offset_zero_and_offset_32_reach_the_edges(known: Known) -> None:
    """Of many positions that a rounded division could miss by one, every drawn one is whole."""
    seen = set()
    config = replace(FULL, colour_noise="none", images_per_draw=1, flip=False, mean="central")
    zero = replace(known.dataset, mean_image=np.zeros((256, 256, 3), np.float32))
    for step, batch in enumerate(take(train_feed(zero, config, batch_size=10), 12)):
        offsets = draw_changes(config, np.ones(3), np.eye(3), seed=3, epoch=step, step=0, batch_size=10).offsets
        for (y, x), (label, image) in zip(offsets.tolist(), in_order([batch]), strict=True):
            np.testing.assert_array_equal(image, window(known.train[label], y, x, False))
            seen |= {y, x}
    assert seen == set(range(33))


@pytest.mark.parametrize(("size", "crop", "offsets"), [(32, 24, 9), (31, 24, 8), (40, 40, 1)])
@pytest.mark.parametrize("mean", ["central", "aligned"])
def test_other_sizes_are_exact(tmp_path: Path, size: int, crop: int, offsets: int, mean: str) -> None:
    """Training, centre and ten crops of prepared images that are not 256 pixels wide, with an odd span."""
    stream = np.random.default_rng(size)
    images = [stream.integers(0, 256, (size, size, 3), dtype=np.uint8) for _ in range(6)]
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    mean_image = stream.uniform(0, 255, (size, size, 3)).astype(np.float32)
    dataset = replace(
        all_at_once(tmp_path, [f"{i}.png" for i in range(6)], size, needs_resize=False), mean_image=mean_image
    )
    config = InputConfig(crop_size=crop, offsets=offsets, mean=mean, colour_noise="none", device="cpu")
    middle = (size - crop) // 2

    def wanted(label: int, y: int, x: int, flip: bool) -> NDArray[np.float32]:
        place = (y, x, flip) if mean == "aligned" else (middle, middle, False)
        return window(images[label], y, x, flip, crop) - window(mean_image, *place, crop)

    seen = list(placed(dataset, config, 10))
    assert {flip for _, _, (_, _, flip) in seen} == {False, True}
    for label, crop_seen, place in seen:
        np.testing.assert_array_equal(crop_seen, wanted(label, *place))
    for label, centre in in_order(take_all(val_feed(dataset, config))):
        np.testing.assert_array_equal(centre, wanted(label, middle, middle, False))
    last = size - crop
    corners = [(0, 0), (0, last), (middle, middle), (last, 0), (last, last)]
    for label, views in in_order(take_all(val_feed(dataset, config, crops="ten"))):
        for view, place in zip(views, [(*c, f) for f in (False, True) for c in corners], strict=True):
            np.testing.assert_array_equal(view, wanted(label, *place))


# The output by itself, without the numbers that were drawn


def coordinates(root: Path, size: int, count: int) -> DataSet:
    """Each pixel names its position: red is x, green is y, and blue names the image."""
    for i in range(count):
        image = np.zeros((size, size, 3), np.uint8)
        image[..., 0], image[..., 1], image[..., 2] = np.arange(size), np.arange(size)[:, None], i
        Image.fromarray(image).save(root / f"{i}.png", compress_level=1)
    return all_at_once(root, [f"{i}.png" for i in range(count)], size, needs_resize=False)


def read_off(batch: Batch) -> NDArray[np.int64]:
    """y, x and flip of each crop, [B, 3], read from its corner. Every pixel must agree with the corner."""
    images = batch.images.movedim(1, -1).numpy()
    pixels = images.shape[1]
    flips = images[:, 0, 0, 0] > images[:, 0, 1, 0]
    y, x = images[:, 0, 0, 1], images[:, 0, :, 0].min(1)
    steps = np.arange(pixels)
    across = np.where(flips[:, None], steps[::-1], steps)
    assert (images[..., 0] == (x[:, None] + across)[:, None]).all()
    assert (images[..., 1] == (y[:, None] + steps)[:, :, None]).all()
    assert (images[..., 2] == batch.labels.numpy()[:, None, None]).all()
    return np.column_stack([y, x, flips]).astype(np.int64)


def is_uniform(counts: NDArray[np.int64]) -> bool:
    """Pearson's chi-square is within 5 of its standard deviations of that of a uniform choice."""
    counts = counts.ravel()
    expected = counts.sum() / counts.size
    assert expected >= 10, "too few crops for this test"
    freedom = counts.size - 1
    chi_square = ((counts - expected) ** 2 / expected).sum()
    return bool(abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom))


@pytest.mark.parametrize("decoded", ["prepared", "raw"])
def test_delivered_crops_are_uniform(tmp_path: Path, decoded: str) -> None:
    """All 9 x 9 positions of a 24 crop in 32 pixels, mirrored and not, come equally often: 16 of each."""
    dataset = replace(coordinates(tmp_path, 32, 60), needs_resize=decoded == "raw")
    config = InputConfig(crop_size=24, offsets=9, colour_noise="none", device="cpu")
    seen = np.concatenate([read_off(batch) for batch in take(train_feed(dataset, config, batch_size=60), 44)])
    assert seen[:, :2].min() == 0
    assert seen[:, :2].max() == 8
    counts = np.zeros((9, 9, 2), np.int64)
    np.add.at(counts, tuple(seen.T), 1)
    assert is_uniform(counts)
    assert is_uniform(counts.sum((0, 1)))
    # A position that is drawn too seldom fails, and so does a mirror that depends on the position.
    lacking = counts.copy()
    lacking[8, :, :] = 0
    assert not is_uniform(lacking)
    tied = np.stack([counts.sum(2) * (np.arange(9) < 5), counts.sum(2) * (np.arange(9) >= 5)], axis=2)
    assert not is_uniform(tied)


def test_delivered_crops_of_full_size_are_uniform(tmp_path: Path) -> None:
    """There are 33 offsets in each direction, and half of the images are mirrored."""
    dataset = coordinates(tmp_path, 256, 40)
    config = InputConfig(colour_noise="none", device="cpu")
    seen = np.concatenate([read_off(batch) for batch in take(train_feed(dataset, config, batch_size=40), 10)])
    for axis, choices in ((0, 33), (1, 33), (2, 2)):
        assert is_uniform(np.bincount(seen[:, axis], minlength=choices))
    assert seen[:, :2].max() == 32


def test_delivered_crops_change_with_image_epoch_seed_and_replica(tmp_path: Path) -> None:
    """Both towers of a replica see the same. Another seed, step or replica brings other images and positions."""
    dataset = coordinates(tmp_path, 32, 40)
    config = InputConfig(crop_size=24, offsets=9, colour_noise="none", device="cpu")

    def seen(count: int = 2, **options: Any) -> list[tuple[Any, ...]]:
        batches = take(train_feed(dataset, config, batch_size=20, **options), count)
        return [(batch.labels.tolist(), read_off(batch).tolist()) for batch in batches]

    usual = seen(4)  # two epochs
    assert seen(4, threads=2) == usual  # the other tower
    assert len({tuple(labels) for labels, _ in usual}) == 4
    assert sorted(usual[0][0] + usual[1][0]) == sorted(usual[2][0] + usual[3][0]) == list(range(40))
    other_seed = seen(seed=4)
    first, second = (seen(1, replica=replica, num_replicas=2)[0] for replica in (0, 1))
    assert not set(first[0]) & set(second[0])
    crops = [crop for _, crop in (*usual, *other_seed, second)]
    for i, one in enumerate(crops):
        assert len({tuple(place) for place in one}) > 10  # each image has its own draw
        for other in crops[:i]:
            assert sum(a == b for a, b in zip(one, other, strict=True)) < 6  # of 20 images, 1 in 162 agrees by chance


def test_groups_of_images_share_their_crop(tmp_path: Path) -> None:
    """One draw does for 32 images, as in 2012."""
    dataset = coordinates(tmp_path, 32, 50)
    config = InputConfig(crop_size=24, offsets=9, images_per_draw=20, colour_noise="none", device="cpu")
    (batch,) = take(train_feed(dataset, config, batch_size=50), 1)
    places = read_off(batch)
    groups = [{tuple(place) for place in places[i : i + 20].tolist()} for i in (0, 20, 40)]
    assert [len(group) for group in groups] == [1, 1, 1]
    assert len(set.union(*groups)) == 3


def test_covariance_of_the_noise_in_delivered_images(tmp_path: Path) -> None:
    """2012: 0.1^2 times the covariance of the training set's pixels, and all of it divided by 1.1.

    The covariance is NumPy's, of the same pixels. The noise moves all pixels of an image alike.
    """
    stream = np.random.default_rng(2)
    mixing = stream.normal(size=(3, 3)) * [[9], [20], [15]]
    values = (stream.uniform(-1, 1, (100, 8, 8, 3)) @ mixing + 128).clip(0, 255).astype(np.uint8)
    fit = Fit(8)
    for i, image in enumerate(values):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        fit.add(image)
    covariance = np.cov(values.reshape(-1, 3).T.astype(np.float64), bias=True)
    eigenvalues, eigenvectors = fit.colour_pca()
    dataset = replace(
        all_at_once(tmp_path, [f"{i}.png" for i in range(100)], 8, needs_resize=False),
        eigenvalues=eigenvalues,
        eigenvectors=eigenvectors,
    )
    config = InputConfig(crop_size=8, offsets=1, flip=False, colour_noise="2012", device="cpu")
    noise = []
    for label, image in in_order(take(train_feed(dataset, config, batch_size=100), 80)):
        added = image.reshape(-1, 3) - values[label].reshape(-1, 3) / 1.1
        assert np.ptp(added, axis=0).max() < 1e-3
        noise.append(added.mean(0, dtype=np.float64))
    measured = np.cov(np.array(noise).T)

    def fits(wanted: NDArray[np.float64]) -> bool:
        error = np.sqrt((np.outer(np.diag(wanted), np.diag(wanted)) + wanted**2) / len(noise))
        return bool((abs(measured - wanted) < 5 * error).all())

    wanted = 0.1**2 * covariance / 1.1**2
    assert fits(wanted)
    assert (abs(np.mean(noise, axis=0)) < 5 * np.sqrt(np.diag(wanted) / len(noise))).all()
    # No other formula fits: without the division, with axes as rows, or with eigenvalues for their roots.
    assert not fits(0.1**2 * covariance)
    assert not fits(0.1**2 * eigenvectors.T @ np.diag(eigenvalues) @ eigenvectors / 1.1**2)
    assert not fits(0.1**2 * covariance @ covariance / 1.1**2)


@pytest.mark.parametrize("last", [0, 1, 2])
def test_noise_and_division_end_together(known: Known, last: int) -> None:
    """After the noise has ended, an image is its crop less the mean. Crops and order are unchanged."""
    config = InputConfig(mean="aligned", colour_noise="2012", device="cpu")
    ending = replace(config, colour_noise_epochs=last)
    batches = take(train_feed(known.dataset, ending), 6)  # three epochs of two steps
    always = take(train_feed(known.dataset, config), 6)
    never = take(train_feed(known.dataset, replace(config, colour_noise="none")), 6)
    assert not any(torch.equal(a.images, b.images) for a, b in zip(always, never, strict=True))
    assert_same(batches, always[: 2 * last] + never[2 * last :])
    for step, batch in enumerate(never):
        drawn = draw_changes(config, np.ones(3), np.eye(3), seed=3, epoch=step // 2, step=step % 2, batch_size=4)
        for row, (label, image) in enumerate(in_order([batch])):
            (y, x), flip = drawn.offsets[row].tolist(), bool(drawn.flips[row])
            np.testing.assert_array_equal(
                image, window(known.train[label], y, x, flip) - window(known.mean, y, x, flip)
            )
    resumed = train_feed(known.dataset, ending, first_step=3)
    assert_same(take(resumed, 3), batches[3:])


# Validation


@pytest.mark.parametrize("mean", ["central", "aligned"])
@pytest.mark.parametrize("noise", ["2012", "paper"])
def test_validation_is_the_centre_less_the_mean(known: Known, mean: str, noise: str) -> None:
    """Neither noise nor the division by 1.1 belongs to validation."""
    config = InputConfig(mean=mean, colour_noise=noise, device="cpu")
    seen = dict(in_order(take_all(val_feed(known.dataset, config))))
    assert sorted(seen) == list(range(NUM_VAL))
    for label, image in seen.items():
        wanted = window(known.val[label], 16, 16, False) - window(known.mean, 16, 16, False)
        np.testing.assert_array_equal(image, wanted)


@pytest.mark.parametrize("mean", ["central", "aligned"])
def test_ten_crops(known: Known, mean: str) -> None:
    """The order is top left, top right, centre, bottom left, bottom right, then their mirrors."""
    config = InputConfig(mean=mean, colour_noise="2012", device="cpu")
    batches = take_all(val_feed(known.dataset, config, crops="ten"))
    assert [tuple(batch.images.shape) for batch in batches] == [(4, 10, 3, 224, 224), (3, 10, 3, 224, 224)]
    seen = dict(in_order(batches))
    assert sorted(seen) == list(range(NUM_VAL))
    for label, views in seen.items():
        corners = [(0, 0), (0, 32), (16, 16), (32, 0), (32, 32)]
        for view, (y, x, flip) in zip(views, [(*c, f) for f in (False, True) for c in corners], strict=True):
            less = window(known.mean, y, x, flip) if mean == "aligned" else window(known.mean, 16, 16, False)
            np.testing.assert_array_equal(view, window(known.val[label], y, x, flip) - less)


@pytest.mark.parametrize(
    ("replicas", "batch_size"), [(1, 1), (1, 3), (1, 7), (1, 50), (2, 2), (2, 3), (2, 4), (3, 1), (3, 2), (3, 5)]
)
def test_every_validation_image_counts_once(known: Known, replicas: int, batch_size: int) -> None:
    """Seven images: dropped or padded last batches and overlapping parts would change the error rate."""
    labels: list[int] = []
    for replica in range(replicas):
        feed = val_feed(known.dataset, batch_size=batch_size, replica=replica, num_replicas=replicas)
        length = len(feed)
        batches = take_all(feed)
        assert len(batches) == length
        assert all(1 <= len(batch.labels) == len(batch.images) <= batch_size for batch in batches)
        for label, image in in_order(batches):
            wanted = window(known.val[label], 16, 16, False) - window(known.mean, 16, 16, False)
            np.testing.assert_array_equal(image, wanted)
            labels.append(label)
    assert sorted(labels) == list(range(NUM_VAL))


def test_a_replica_without_validation_images_has_no_batches(known: Known) -> None:
    two = replace(known.dataset, val=FileSplit(known.dataset.val.root, known.dataset.val.paths[:2], np.arange(2)))
    counts = [len(take_all(val_feed(two, replica=replica, num_replicas=3))) for replica in range(3)]
    assert sum(counts) == 2
    assert 0 in counts


# The same batches in all circumstances


def test_threads_and_runs_do_not_matter(known: Known) -> None:
    once = take(train_feed(known.dataset, FULL), 5)
    assert_same(take(train_feed(known.dataset, FULL), 5), once)
    assert_same(take(train_feed(known.dataset, FULL, threads=2), 5), once)
    validation = [take_all(val_feed(known.dataset, FULL, threads=threads)) for threads in (1, 2)]
    assert_same(*validation)


def test_leaving_out_the_resize_changes_nothing_at_256(known: Known) -> None:
    prepared = replace(known.dataset, needs_resize=False)
    assert_same(take(train_feed(prepared, FULL), 3), take(train_feed(known.dataset, FULL), 3))
    assert_same(take_all(val_feed(prepared, FULL)), take_all(val_feed(known.dataset, FULL)))


def test_feeds_side_by_side_do_not_disturb_each_other(known: Known) -> None:
    alone = take(train_feed(known.dataset, FULL), 4)
    with closing(train_feed(known.dataset, FULL)) as one, closing(train_feed(known.dataset, FULL, seed=9)) as two:
        pairs = [(next(one), next(two)) for _ in range(4)]
    assert_same([first for first, _ in pairs], alone)
    assert not torch.equal(pairs[0][1].images, alone[0].images)


@pytest.mark.parametrize("first_step", [1, 2, 3, 5])
def test_starting_at_a_step_gives_what_running_to_it_gives(known: Known, first_step: int) -> None:
    """Two steps make an epoch here, so odd first steps start within an epoch and run over its end."""
    through = take(train_feed(known.dataset, FULL), 8)
    assert len({pixel_checksum(batch) for batch in through}) == 8
    assert_same(take(train_feed(known.dataset, FULL, first_step=first_step), 8 - first_step), through[first_step:])


@pytest.mark.parametrize("config", [FULL, replace(FULL, images_per_draw=1, mean="central")])
def test_two_replicas_are_one_with_twice_the_batch(known: Known, config: InputConfig) -> None:
    whole = take(train_feed(known.dataset, config, batch_size=4), 4)
    parts = [
        take(train_feed(known.dataset, config, batch_size=2, replica=replica, num_replicas=2), 4)
        for replica in (0, 1)
    ]
    joined = [
        Batch(torch.cat([a.images, b.images]), torch.cat([a.labels, b.labels])) for a, b in zip(*parts, strict=True)
    ]
    assert_same(joined, whole)


def test_an_epoch_shows_no_image_twice(known: Known) -> None:
    """Eleven images in batches of five leave one out, another one in each epoch, and the order changes."""
    feed = train_feed(known.dataset, PLAIN, batch_size=5)
    assert len(feed) == 2
    batches = take(feed, 24)
    epochs = [torch.cat([batches[i].labels, batches[i + 1].labels]).tolist() for i in range(0, 24, 2)]
    assert all(len(set(epoch)) == 10 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 12
    assert len({frozenset(epoch) for epoch in epochs}) > 3
    for label, image in in_order(batches):
        wanted = window(known.train[label], 16, 16, False) - window(known.mean, 16, 16, False)
        np.testing.assert_array_equal(image, wanted)


def test_batches_stay_valid(known: Known) -> None:
    """Batches stay valid, though DALI writes later ones over the memory of earlier ones."""
    with closing(train_feed(known.dataset, FULL)) as feed:
        held = [next(feed) for _ in range(3)]
        copies = [Batch(batch.images.clone(), batch.labels.clone()) for batch in held]
        for _ in range(8):
            next(feed)
        assert_same(held, copies)
    assert_same(held, copies)
    with closing(val_feed(known.dataset, batch_size=1)) as feed:
        first = next(feed)
        copy = first.images.clone()
        assert len(list(feed)) == NUM_VAL - 1
    assert torch.equal(first.images, copy)


# Shards


def sharded(folder: Path, jpegs: list[bytes], labels: list[int], per_shard: int) -> ShardSplit:
    """A split in the format of launch/prepare_data.py."""
    folder.mkdir()
    indices = []
    for number, begin in enumerate(range(0, len(jpegs), per_shard)):
        writer = ShardWriter(number)
        for jpeg, label in list(zip(jpegs, labels, strict=True))[begin : begin + per_shard]:
            writer.add(f"class{label}/image{label}.jpg", jpeg, label)
        content, index, _ = writer.close()
        (folder / shard_name(number)).write_bytes(content)
        indices.append(index)
    np.save(folder / INDEX_FILE, np.concatenate(indices))
    return ShardSplit(folder)


@dataclass
class Pair:
    """The same JPEGs as files and in shards."""

    files: DataSet
    shards: DataSet
    jpegs: list[bytes]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    root = tmp_path_factory.mktemp("pair")
    stream = np.random.default_rng(9)
    names = [f"{i}.jpg" for i in range(14)]
    for name in names:
        colourful(stream, 48, 48, 48).save(root / name)
    mean = stream.uniform(0, 255, (48, 48, 3)).astype(np.float32)
    split = FileSplit(root, names, np.arange(14))
    files = DataSet(
        ["a"], split, split, mean, np.array([90.0, 800.0, 9000.0]), np.eye(3), needs_resize=False, size=48
    )
    jpegs = [(root / name).read_bytes() for name in names]
    packed = sharded(root / "packed", jpegs, list(range(14)), per_shard=5)
    return Pair(files, replace(files, train=packed, val=packed), jpegs)


SMALL = InputConfig(crop_size=40, offsets=9, mean="aligned", colour_noise="2012", images_per_draw=3, device="cpu")


def test_shards_give_the_batches_of_the_same_files(pair: Pair) -> None:
    """Training over three epochs, the centre and ten crops, in one process and in two replicas."""
    for replica, num_replicas in ((0, 1), (1, 2)):
        at = {"replica": replica, "num_replicas": num_replicas, "batch_size": 4}
        of_files, of_shards = (take(train_feed(d, SMALL, **at), 9) for d in (pair.files, pair.shards))
        assert len({pixel_checksum(batch) for batch in of_shards}) == 9
        assert_same(of_shards, of_files)
        for crops in ("centre", "ten"):
            assert_same(*(take_all(val_feed(d, SMALL, crops=crops, **at)) for d in (pair.shards, pair.files)))


def test_two_images_that_changed_places_in_a_shard_are_noticed(pair: Pair, tmp_path: Path) -> None:
    jpegs = [pair.jpegs[1], pair.jpegs[0], *pair.jpegs[2:]]
    other = replace(pair.shards, val=sharded(tmp_path / "other", jpegs, list(range(14)), 5))
    ours, theirs = (take_all(val_feed(dataset, SMALL, batch_size=14)) for dataset in (other, pair.files))
    assert torch.equal(ours[0].labels, theirs[0].labels)
    different = (ours[0].images != theirs[0].images).flatten(1).any(1)
    assert different.tolist() == [True, True] + [False] * 12


def test_images_in_shards_are_pillows_pixels(pair: Pair) -> None:
    """Each image comes once, as (crop - mean) of Pillow's pixels for the bytes that were written."""
    middle = window(pair.shards.mean_image, 4, 4, False, 40)  # type: ignore[arg-type]
    seen = dict(in_order(take_all(val_feed(pair.shards, SMALL, batch_size=5))))
    assert sorted(seen) == list(range(14))
    for label, image in seen.items():
        whole = np.asarray(Image.open(io.BytesIO(pair.jpegs[label])))
        np.testing.assert_array_equal(image, window(whole, 4, 4, False, 40) - middle)


@pytest.mark.parametrize("first_step", [1, 2, 3, 4, 7])
def test_shards_go_on_from_within_an_epoch(pair: Pair, first_step: int) -> None:
    """Three steps make an epoch, and the noise ends after two epochs."""
    config = replace(SMALL, colour_noise_epochs=2)
    through = take(train_feed(pair.shards, config), 10)
    resumed = take(train_feed(pair.shards, config, first_step=first_step, threads=2), 10 - first_step)
    assert_same(resumed, through[first_step:])


def test_a_damaged_image_in_a_shard_is_named(pair: Pair, tmp_path: Path) -> None:
    """The error names the shard and the image's name in it."""
    broken = [*pair.jpegs[:7], b"no image", *pair.jpegs[8:]]
    split = sharded(tmp_path / "val", broken, list(range(14)), 5)
    with closing(val_feed(replace(pair.shards, val=split), SMALL, batch_size=2)) as feed:
        assert len([next(feed) for _ in range(3)]) == 3
        with pytest.raises(
            RuntimeError, match=r"val/00001\.tar/class6/image6\.jpg, val/00001\.tar/class7/image7\.jpg"
        ):
            next(feed)


def test_a_shard_that_vanishes_is_named(pair: Pair, tmp_path: Path) -> None:
    split = sharded(tmp_path / "val", pair.jpegs, list(range(14)), 5)
    with closing(val_feed(replace(pair.shards, val=split), SMALL, batch_size=1)) as feed:
        next(feed)
        (tmp_path / "val" / shard_name(2)).unlink()
        with pytest.raises(FileNotFoundError, match=r"val/00002\.tar"):
            take(feed, 13)


@pytest.mark.parametrize(
    ("spoil", "kind", "named"),
    [
        (lambda content: content[:3000], OSError, r"val/00002\.tar is cut short"),
        (lambda content: bytes(len(content)), RuntimeError, r"val/00002\.tar/byte 512"),
    ],
)
def test_a_shard_that_is_spoilt_under_way_is_named(
    pair: Pair, tmp_path: Path, spoil: Any, kind: Any, named: str
) -> None:
    split = sharded(tmp_path / "val", pair.jpegs, list(range(14)), 5)
    path = tmp_path / "val" / shard_name(2)
    with closing(val_feed(replace(pair.shards, val=split), SMALL, batch_size=1)) as feed:
        next(feed)
        path.write_bytes(spoil(path.read_bytes()))
        with pytest.raises(kind, match=named):
            take(feed, 13)


# The normaliser by itself


@pytest.mark.parametrize("one_by_one", [True, False])
@pytest.mark.parametrize("mean", ["central", "aligned"])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize(("noisy", "scale"), [(True, 1 / 1.1), (True, 1.0), (False, 1.0), (False, 0.5)])
@pytest.mark.parametrize("std", [(1.0, 1.0, 1.0), (58.395, 57.12, 255.0)])
def test_normaliser_is_exact(
    one_by_one: bool, mean: str, count: int, noisy: bool, scale: float, std: tuple[float, ...]
) -> None:
    """(crop - mean + noise) * scale / std in float32, image by image as on a CPU and all at once as on a GPU."""
    stream = np.random.default_rng(count)
    mean_image = stream.uniform(0, 255, (13, 13, 3)).astype(np.float32)
    crops = stream.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    offsets = stream.integers(0, 6, (count, 2), dtype=np.int32)
    flips = (np.arange(count) % 2 == 0).astype(np.int32)
    noise = stream.normal(0, 20, (count, 3)).astype(np.float32) if noisy else None
    normaliser = Normaliser(mean_image, mean, 8, CPU, std)
    assert normaliser.one_by_one  # the order of computing on any CPU
    normaliser.one_by_one = one_by_one
    images = normaliser(torch.from_numpy(crops.copy()), offsets, flips, noise, scale)
    assert images.dtype == torch.float32
    assert images.shape == crops.shape
    for i in range(count):
        y, x, flip = (*offsets[i], flips[i]) if mean == "aligned" else (2, 2, 0)
        less = window(mean_image, y, x, bool(flip), 8)
        shift = noise[i] if noise is not None else np.zeros(3, np.float32)
        wanted = (crops[i].astype(np.float32) - less + shift) * np.float32(scale) / np.array(std, np.float32)
        np.testing.assert_array_equal(images[i].numpy(), wanted)
        wrong = window(mean_image, y, x, not flip, 8)
        other = (crops[i].astype(np.float32) - wrong + shift) * np.float32(scale) / np.array(std, np.float32)
        assert not np.array_equal(images[i].numpy(), other)


def filled(normaliser: Normaliser, value: int, count: int = 4) -> Tensor:
    """A batch of one value, from crops of 16 x 16."""
    crops = torch.full((count, 16, 16, 3), value, dtype=torch.uint8)
    return normaliser(crops, np.zeros((count, 2), np.int32), np.zeros(count, np.int32))


def test_batches_that_are_held_stay_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any part of a batch keeps it valid, in torch or in NumPy, however Python counts references (3.14: fewer)."""
    monkeypatch.setattr(sys, "getrefcount", lambda _: 3)
    normaliser = Normaliser(np.zeros((16, 16, 3), np.float32), "central", 16, CPU)
    held = [filled(normaliser, value) for value in range(6)]
    parts = [filled(normaliser, 6)[1, 2:4], filled(normaliser, 7).movedim(-1, 1), filled(normaliser, 8).view(-1)]
    arrays = [filled(normaliser, 9).numpy(), np.from_dlpack(filled(normaliser, 10))]
    for value in range(100, 110):
        filled(normaliser, value)
    for value, one in enumerate([*held, *parts, *map(torch.from_numpy, arrays)]):
        assert one.unique().tolist() == [value]


def test_memory_of_batches_is_used_again() -> None:
    """Two batches alternate while one is in use. After many were in use at once, at most two are kept."""
    normaliser = Normaliser(np.zeros((16, 16, 3), np.float32), "central", 16, CPU)
    batch, places = filled(normaliser, 0), set()
    for value in range(20):
        batch = filled(normaliser, value)
        places.add(batch.data_ptr())
    assert len(places) == 2
    size = batch.numel() * batch.element_size()
    tracemalloc.start()
    try:
        many = [filled(normaliser, value) for value in range(12)]
        assert tracemalloc.get_traced_memory()[0] > 9 * size  # NumPy's memory is counted
        del many
        batch = filled(normaliser, 1, count=3)
        assert tracemalloc.get_traced_memory()[0] < 3 * size
    finally:
        tracemalloc.stop()
    assert batch.unique().tolist() == [1]


# Refusals


def test_crops_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Both the check before a run and the feeds refuse it. The largest crop that fits is accepted."""
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    dataset = all_at_once(tmp_path, ["a.png"], 32, needs_resize=False)
    config = InputConfig(crop_size=24, offsets=9, device="cpu")
    check_crops(config, 32)
    assert take(train_feed(dataset, config, batch_size=1), 1)[0].images.shape == (1, 3, 24, 24)
    with pytest.raises(ValueError, match=r"input\.offsets=10 is more than the 9 positions.*at most 9"):
        check_crops(replace(config, offsets=10), 32)
    with pytest.raises(ValueError, match=r"input\.offsets=10 .*at most 9"):
        train_feed(dataset, replace(config, offsets=10), batch_size=1)
    centred = replace(config, offsets=10, random_crop=False)  # nothing is ever drawn from it
    check_crops(centred, 32)
    assert take(train_feed(dataset, centred, batch_size=1), 1)[0].images.shape == (1, 3, 24, 24)
    large = replace(config, crop_size=33, offsets=1)
    opens: list[Callable[[], Any]] = [
        lambda: check_crops(large, 32),
        lambda: train_feed(dataset, large, batch_size=1),
        lambda: val_feed(dataset, large),
        lambda: val_feed(dataset, large, crops="ten"),
    ]
    for open_feed in opens:
        with pytest.raises(ValueError, match=r"network\.image_size=33 is more than the 32 pixels"):
            open_feed()


def test_decoding_on_a_gpu_that_is_not_used_is_refused(known: Known) -> None:
    config = replace(PLAIN, device="gpu")
    with pytest.raises(ValueError, match=r"input\.device=gpu.*input\.device=auto"):
        train_feed(known.dataset, config)
    with pytest.raises(ValueError, match=r"input\.device=gpu.*input\.device=auto"):
        val_feed(known.dataset, config)


def test_auto_decodes_where_the_towers_are(known: Known) -> None:
    auto = take(train_feed(known.dataset, replace(FULL, device="auto")), 2)
    assert_same(auto, take(train_feed(known.dataset, FULL), 2))


def test_a_set_without_a_whole_batch_is_refused(known: Known) -> None:
    with pytest.raises(ValueError, match=r"11 images.*batch_size=6 x 2 replicas"):
        train_feed(known.dataset, PLAIN, batch_size=6, num_replicas=2)


def test_a_file_that_breaks_later_is_named(tmp_path: Path) -> None:
    for name in ("good.png", "broken.png"):
        Image.new("RGB", (256, 256), "red").save(tmp_path / name)
    dataset = val_only([tmp_path / "good.png", tmp_path / "broken.png"])
    content = (tmp_path / "broken.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(content[: len(content) // 2])
    with closing(val_feed(dataset)) as feed, pytest.raises(RuntimeError, match=r"broken\.png"):
        next(feed)


def vanish(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def become_text(path: Path) -> None:
    path.write_text("This was a photograph.")


def be_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:900])


def shrink(path: Path) -> None:
    Image.new("RGB", (20, 20)).save(path)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("change", [vanish, empty, become_text, be_cut, shrink])
def test_a_file_that_changes_under_way_is_named(tmp_path: Path, change: Any, training: bool) -> None:
    """The batches before it are right, and the error blames neither the batch before nor the one after."""
    stream = np.random.default_rng(6)
    names = [f"{i}.jpg" for i in range(24)]
    for name in names:
        colourful(stream, 48, 48).save(tmp_path / name)
    dataset = all_at_once(tmp_path, names, 48, needs_resize=False)

    def opened() -> Feed:
        if training:
            return train_feed(dataset, SMALL, batch_size=2)
        return val_feed(dataset, SMALL, batch_size=2)

    usual = take(opened(), 12)
    late = usual[8].labels[1].item()
    batches: list[Batch] = []

    def go_on(feed: Feed) -> None:
        while len(batches) < 12:
            batches.append(next(feed))

    with closing(opened()) as feed:
        batches.append(next(feed))
        change(tmp_path / f"{late}.jpg")
        with pytest.raises((OSError, RuntimeError), match=rf"(\D|^){late}\.jpg") as raised:
            go_on(feed)
    assert 4 < len(batches) <= 8
    assert_same(batches, usual[: len(batches)])
    if change is vanish:
        assert isinstance(raised.value, FileNotFoundError)
    else:
        assert str(raised.value).count(".jpg") == 2


def test_closed_feeds_leave_no_threads(known: Known, tmp_path: Path) -> None:
    """No threads stay, neither Python's readers nor DALI's decoders, whether a feed is used up, left or broken."""

    def readers() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("read")]

    def natives() -> int:
        return len(os.listdir("/proc/self/task"))

    def once() -> None:
        with closing(train_feed(known.dataset, FULL)) as feed:
            next(feed)
            assert readers()
            feed.close()  # closing twice is allowed
        take_all(val_feed(known.dataset))
        train_feed(known.dataset, FULL).close()  # nothing was taken
        Image.new("RGB", (256, 256)).save(tmp_path / "a.png")
        broken = val_only([tmp_path / "a.png"])
        vanish(tmp_path / "a.png")
        with closing(val_feed(broken)) as feed, pytest.raises(FileNotFoundError):
            next(feed)
        with pytest.raises(ValueError, match="fewer than one step"):
            train_feed(known.dataset, FULL, batch_size=50)
        gc.collect()

    assert not readers()
    once()  # torch and DALI start some threads that stay
    assert not readers()
    before = natives()
    for _ in range(3):
        once()
    assert not readers()
    assert natives() <= before + 4  # one feed has about eight


# Checksums


def test_checksums_notice_what_differs(known: Known) -> None:
    (batch,) = take(train_feed(known.dataset, FULL), 1)
    again = Batch(batch.images.clone(), batch.labels.clone())
    assert (pixel_checksum(again), label_checksum(again)) == (pixel_checksum(batch), label_checksum(batch))
    contiguous = Batch(batch.images.contiguous(), batch.labels)
    assert pixel_checksum(contiguous) == pixel_checksum(batch)  # counts values, in whatever order they lie in memory

    touched = batch.images.clone()
    touched[2, 1, 100, 50] = torch.nextafter(touched[2, 1, 100, 50], torch.tensor(1e9))
    assert pixel_checksum(Batch(touched, batch.labels)) != pixel_checksum(batch)
    for order in ([1, 0, 2, 3], [0, 3, 2, 1], [3, 0, 1, 2]):
        swapped = Batch(batch.images[order], batch.labels[order])
        assert pixel_checksum(swapped) != pixel_checksum(batch)
        assert label_checksum(swapped) != label_checksum(batch)
    for row in range(4):
        labels = batch.labels.clone()
        labels[row] += 1
        assert label_checksum(Batch(batch.images, labels)) != label_checksum(batch)


# Synthetic


def test_synthetic_training_is_endless() -> None:
    dataset = make_synthetic_dataset(64, 32, 10)
    feed = train_feed(dataset, PLAIN, batch_size=6)
    batches = take(feed, 5)
    for batch in batches:
        assert batch.images.shape == (6, 3, 224, 224)
        assert batch.images.dtype == torch.float32
        assert batch.labels.shape == (6,)
        assert batch.labels.dtype == torch.int64
        assert 0 <= int(batch.labels.min()) <= int(batch.labels.max()) < 10
        assert 30 < float(batch.images.std()) < 130  # about as large as real pixels
    assert not torch.equal(batches[0].images, batches[1].images)
    assert_same(take(train_feed(dataset, PLAIN, batch_size=6), 2), batches[:2])


@pytest.mark.parametrize(
    ("replicas", "batch_size", "batches"), [(1, 8, 4), (2, 8, 2), (3, 8, 1), (1, 5, 6), (2, 40, 1)]
)
def test_synthetic_validation_ends(replicas: int, batch_size: int, batches: int) -> None:
    """A third of 32 images has one whole batch of 8. A set smaller than a batch still gives one."""
    feed = val_feed(make_synthetic_dataset(64, 32, 10), batch_size=batch_size, num_replicas=replicas)
    assert len(feed) == batches
    seen = take_all(feed)
    assert len(seen) == batches
    assert all(batch.images.shape == (batch_size, 3, 224, 224) for batch in seen)


def test_synthetic_ten_crops() -> None:
    (batch,) = take_all(val_feed(make_synthetic_dataset(8, 2, 3), batch_size=2, crops="ten"))
    assert batch.images.shape == (2, 10, 3, 224, 224)
    assert batch.labels.shape == (2,)


@pytest.mark.parametrize(
    ("counts", "key"), [((0, 5, 5), "num_train"), ((5, 0, 5), "num_val"), ((5, 5, 1), "num_classes")]
)
def test_synthetic_counts_that_are_too_small_are_refused(counts: tuple[int, int, int], key: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.{key}=\d is too small"):
        make_synthetic_dataset(*counts)
