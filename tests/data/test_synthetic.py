"""Random tensors in place of images."""

import pytest
import torch

from helpers.feeds import (
    PLAIN,
    assert_same,
    take,
    take_all,
    train_feed,
    val_feed,
)
from twotower.data.synthetic import make_synthetic_dataset


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
