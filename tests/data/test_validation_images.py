"""Validation images: the centre or ten crops less the mean, each image once."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.feeds import (
    NUM_VAL,
    Known,
    in_order,
    take_all,
    val_feed,
    window,
)
from twotower.config import InputConfig
from twotower.data.dataset import FileSplit


@pytest.mark.parametrize("mean", ["central", "aligned"])
@pytest.mark.parametrize("noise", ["2012", "paper"])
def test_validation_is_the_centre_less_the_mean(known: Known, mean: str, noise: str) -> None:
    """Neither noise nor the division by 1.1 belongs to validation."""
    config = InputConfig(mean=mean, colour_noise=noise)
    seen = dict(in_order(take_all(val_feed(known.dataset, config))))
    assert sorted(seen) == list(range(NUM_VAL))
    for label, image in seen.items():
        wanted = window(known.val[label], 16, 16, False) - window(known.mean, 16, 16, False)
        np.testing.assert_array_equal(image, wanted)


@pytest.mark.parametrize("mean", ["central", "aligned"])
def test_ten_crops(known: Known, mean: str) -> None:
    """The order is top left, top right, centre, bottom left, bottom right, then their mirrors."""
    config = InputConfig(mean=mean, colour_noise="2012")
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
