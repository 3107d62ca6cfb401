"""Batches against NumPy and Pillow, pixel by pixel: decoding, resizing, crops, mirrors, mean and noise."""

from collections.abc import Iterator
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

from twotower.config import InputConfig
from twotower.data import (
    Batch,
    DataSet,
    Feed,
    FileSplit,
    Share,
    label_checksum,
    open_train,
    open_validation,
    pixel_checksum,
)
from twotower.data.dataset import synthetic_dataset
from twotower.data.order import draws

NUM_TRAIN, NUM_VAL = 11, 7
CPU = torch.device("cpu")
PLAIN = InputConfig(colour_noise="none", flip=False, random_crop=False, device="cpu")
FULL = InputConfig(colour_noise="2012", mean="aligned", images_per_draw=3, device="cpu")

Pixels = NDArray[np.uint8]


@dataclass
class Known:
    """A data set with a class of its own for every image, so that the label names the image."""

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
    """256 x 256 PNGs of random pixels, and a mean image nothing like theirs: each mistake shows everywhere."""
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
    usual = {"batch_size": 4, "replica": 0, "num_replicas": 1, "device": CPU, "threads": 1}
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
    """Label and image [..., 224, 224, 3] of all batches' images."""
    for batch in batches:
        for label, image in zip(batch.labels, batch.images, strict=True):
            yield int(label), image.movedim(-3, -1).numpy()


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.images, b.images)


def window(image: NDArray[Any], y: int, x: int, mirrored: bool) -> NDArray[np.float32]:
    cut = image[y : y + 224, x : x + 224].astype(np.float32)
    return cut[:, ::-1] if mirrored else cut


# Decoding and resizing


def test_decoding_equals_pillow(tmp_path: Path) -> None:
    """Bit for bit: every sampling of JPEG, grey and palette images as RGB, alpha dropped, EXIF turns ignored."""
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
    """The centre square at 256 x 256; within 2 of 255, as both round to whole levels twice.

    On fine noise, shrinking without antialiasing, a stretched image or a square off by a pixel are far off.
    """
    stream = np.random.default_rng(width * height)
    image = colourful(stream, width, height, cells)
    image.save(tmp_path / "a.png")
    side = min(width, height)
    # Where the rest is odd, the square lies half a pixel to the left or above.
    top, left = (height - side) // 2, (width - side) // 2
    square = image.crop((left, top, left + side, top + side))
    resized = np.asarray(square.resize((256, 256), Image.Resampling.BILINEAR))  # Pillow's is antialiased
    wanted = window(resized, 16, 16, False)
    ((_, seen),) = in_order(take_all(val_feed(val_only([tmp_path / "a.png"]))))
    error = abs(seen - wanted)
    assert error.max() <= 2
    assert error.mean() < 0.5
    if min(width, height) == 256:
        assert error.max() == 0


@pytest.mark.parametrize(("channel", "colour"), [(0, "red"), (1, "lime"), (2, "blue")])
def test_channels_are_red_green_blue(tmp_path: Path, channel: int, colour: str) -> None:
    Image.new("RGB", (256, 256), colour).save(tmp_path / "a.png")
    dataset = val_only([tmp_path / "a.png"])
    wanted = torch.zeros(3)
    wanted[channel] = 255
    for feed in (train_feed(dataset, PLAIN, batch_size=1), val_feed(dataset), val_feed(dataset, crops="ten")):
        (batch,) = take(feed, 1)
        assert (batch.images.movedim(-3, -1) == wanted).all()


# What is done to a training image


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
        drawn = draws(
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
    """Many draws of positions that a rounded division could miss by one: all come out whole."""
    seen = set()
    config = replace(FULL, colour_noise="none", images_per_draw=1, flip=False, mean="central")
    zero = replace(known.dataset, mean_image=np.zeros((256, 256, 3), np.float32))
    for step, batch in enumerate(take(train_feed(zero, config, batch_size=10), 12)):
        offsets = draws(config, np.ones(3), np.eye(3), seed=3, epoch=step, step=0, batch_size=10).offsets
        for (y, x), (label, image) in zip(offsets.tolist(), in_order([batch]), strict=True):
            np.testing.assert_array_equal(image, window(known.train[label], y, x, False))
            seen |= {y, x}
    assert seen == set(range(33))


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
    """Top left, top right, centre, bottom left, bottom right, then their mirrors."""
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
    """Seven images: dropped or padded last batches and shares that overlap change the error rate."""
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


# The same batches whatever the circumstances


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
    """Two steps make an epoch here, so odd ones start within an epoch and run over its end."""
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
    """Eleven images in batches of five: one is left out, another one in each epoch, and the order changes."""
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
    """DALI writes later batches over the memory of earlier ones."""
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


# Refusals


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


# Checksums


def test_checksums_notice_what_differs(known: Known) -> None:
    (batch,) = take(train_feed(known.dataset, FULL), 1)
    again = Batch(batch.images.clone(), batch.labels.clone())
    assert (pixel_checksum(again), label_checksum(again)) == (pixel_checksum(batch), label_checksum(batch))
    contiguous = Batch(batch.images.contiguous(), batch.labels)
    assert pixel_checksum(contiguous) == pixel_checksum(batch)  # of the values, however they lie in memory

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
    dataset = synthetic_dataset(64, 32, 10)
    feed = train_feed(dataset, PLAIN, batch_size=6)
    batches = take(feed, 5)
    for batch in batches:
        assert batch.images.shape == (6, 3, 224, 224)
        assert batch.images.dtype == torch.float32
        assert batch.labels.shape == (6,)
        assert batch.labels.dtype == torch.int64
        assert 0 <= int(batch.labels.min()) <= int(batch.labels.max()) < 10
        assert 30 < float(batch.images.std()) < 130  # as large as real ones
    assert not torch.equal(batches[0].images, batches[1].images)
    assert_same(take(train_feed(dataset, PLAIN, batch_size=6), 2), batches[:2])


@pytest.mark.parametrize(
    ("replicas", "batch_size", "batches"), [(1, 8, 4), (2, 8, 2), (3, 8, 1), (1, 5, 6), (2, 40, 1)]
)
def test_synthetic_validation_ends(replicas: int, batch_size: int, batches: int) -> None:
    """A third of 32 images has one whole batch of 8; a set smaller than a batch still gives one."""
    feed = val_feed(synthetic_dataset(64, 32, 10), batch_size=batch_size, num_replicas=replicas)
    assert len(feed) == batches
    seen = take_all(feed)
    assert len(seen) == batches
    assert all(batch.images.shape == (batch_size, 3, 224, 224) for batch in seen)


def test_synthetic_ten_crops() -> None:
    (batch,) = take_all(val_feed(synthetic_dataset(8, 2, 3), batch_size=2, crops="ten"))
    assert batch.images.shape == (2, 10, 3, 224, 224)
    assert batch.labels.shape == (2,)


@pytest.mark.parametrize(
    ("counts", "key"), [((0, 5, 5), "num_train"), ((5, 0, 5), "num_val"), ((5, 5, 1), "num_classes")]
)
def test_synthetic_counts_that_are_too_small_are_refused(counts: tuple[int, int, int], key: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.{key}=\d is too small"):
        synthetic_dataset(*counts)
