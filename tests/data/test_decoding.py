"""Decoding and resizing against Pillow and NumPy, pixel by pixel."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from helpers.feeds import (
    PLAIN,
    Pixels,
    all_at_once,
    colourful,
    in_order,
    placed,
    take,
    take_all,
    train_feed,
    val_feed,
    val_only,
    window,
)
from twotower.config import InputConfig


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
    config = InputConfig(crop_size=crop, offsets=offsets, colour_noise="none")
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
    config = InputConfig(crop_size=45, offsets=36, colour_noise="none")
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
