"""The same batches in all circumstances: threads, first steps, replicas, other feeds; and checksums of batches."""

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.feeds import (
    FULL,
    NUM_VAL,
    PLAIN,
    Known,
    assert_same,
    in_order,
    take,
    take_all,
    train_feed,
    val_feed,
    window,
)
from twotower.config import InputConfig
from twotower.data.batch import Batch, label_checksum, pixel_checksum


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
    assert len({int(pixel_checksum(batch)) for batch in through}) == 8
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


# Checksums


def test_checksums_notice_what_differs(known: Known) -> None:
    (batch,) = take(train_feed(known.dataset, FULL), 1)
    again = Batch(batch.images.clone(), batch.labels.clone())
    assert pixel_checksum(again) == pixel_checksum(batch)
    assert batch.label_checksum == label_checksum(batch.labels.numpy()) != 0
    contiguous = Batch(batch.images.contiguous(), batch.labels)
    assert pixel_checksum(contiguous) == pixel_checksum(batch)  # counts values, in whatever order they lie in memory

    touched = batch.images.clone()
    touched[2, 1, 100, 50] = torch.nextafter(touched[2, 1, 100, 50], torch.tensor(1e9))
    assert pixel_checksum(Batch(touched, batch.labels)) != pixel_checksum(batch)
    images = batch.images
    for moved in (images.flip(3), images.flip(2), images.roll(1, dims=3), images.flip(1), images[2:3].flip(3)):
        other = moved if len(moved) == 4 else torch.cat([images[:2], moved, images[3:]])
        assert pixel_checksum(Batch(other, batch.labels)) != pixel_checksum(batch), "the same values at other places"
    for order in ([1, 0, 2, 3], [0, 3, 2, 1], [3, 0, 1, 2]):
        swapped = Batch(batch.images[order], batch.labels[order])
        assert pixel_checksum(swapped) != pixel_checksum(batch)
        assert label_checksum(swapped.labels.numpy()) != batch.label_checksum
    for row in range(4):
        labels = batch.labels.clone()
        labels[row] += 1
        assert label_checksum(labels.numpy()) != batch.label_checksum
