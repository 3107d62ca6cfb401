"""The normaliser: exact in float32, and its memory is used again only when nothing refers to it."""

import sys
import tracemalloc

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers.feeds import (
    CPU,
    window,
)
from twotower.data.normalise import Normaliser


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
