"""Training images: crops, mirrors, mean and noise, exactly as drawn, and as their numbers are distributed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from helpers.feeds import (
    FULL,
    PLAIN,
    Known,
    all_at_once,
    assert_same,
    in_order,
    placed,
    take,
    take_all,
    train_feed,
    val_feed,
    window,
)
from twotower.config import InputConfig
from twotower.data.augment import draw_changes
from twotower.data.batch import Batch
from twotower.data.dataset import DataSet
from twotower.data.preparing.mean_and_pca import Fit


@pytest.mark.parametrize("mean", ["central", "aligned"])
@pytest.mark.parametrize("noise", ["none", "2012", "paper"])
def test_training_image_is_exact(known: Known, mean: str, noise: str) -> None:
    """(crop - mean + noise) * scale in float32, in this order, for the drawn crop, mirror and noise.

    The central mean is neither moved nor mirrored; the aligned one is both, as the image is. Only 2012 divides.
    """
    config = InputConfig(mean=mean, colour_noise=noise)
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
    config = InputConfig(crop_size=crop, offsets=offsets, mean=mean, colour_noise="none")
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
    config = InputConfig(crop_size=24, offsets=9, colour_noise="none")
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


@pytest.mark.slow
def test_delivered_crops_of_full_size_are_uniform(tmp_path: Path) -> None:
    """There are 33 offsets in each direction, and half of the images are mirrored."""
    dataset = coordinates(tmp_path, 256, 40)
    config = InputConfig(colour_noise="none")
    seen = np.concatenate([read_off(batch) for batch in take(train_feed(dataset, config, batch_size=40), 10)])
    for axis, choices in ((0, 33), (1, 33), (2, 2)):
        assert is_uniform(np.bincount(seen[:, axis], minlength=choices))
    assert seen[:, :2].max() == 32


def test_delivered_crops_change_with_image_epoch_seed_and_replica(tmp_path: Path) -> None:
    """Both towers of a replica see the same. Another seed, step or replica brings other images and positions."""
    dataset = coordinates(tmp_path, 32, 40)
    config = InputConfig(crop_size=24, offsets=9, colour_noise="none")

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
    config = InputConfig(crop_size=24, offsets=9, images_per_draw=20, colour_noise="none")
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
    config = InputConfig(crop_size=8, offsets=1, flip=False, colour_noise="2012")
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
    config = InputConfig(mean="aligned", colour_noise="2012")
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
