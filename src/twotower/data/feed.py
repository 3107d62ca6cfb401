"""Batches for one replica: bytes from files or shards, through a loader, some of them by way of the other tower."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from twotower.config import InputConfig
from twotower.data.batch import Batch, Feed, Share
from twotower.data.choose_loader import open_loader
from twotower.data.dataset import DataSet, Split
from twotower.data.loader import PREFETCH, Crops, Cutting, Encoded, Indices, View
from twotower.data.normalise import Normaliser, subtracted_mean
from twotower.data.order import Draws, check_crops, crop_span, draws, epoch_order, replica_rows, steps_per_epoch
from twotower.data.read_ahead import ReadAhead
from twotower.data.synthetic import SyntheticFeed


def ten_views(span: int) -> list[View]:
    """Four corners and the centre, then their mirrors, in the order of the 2012 code (convdata_jpeg.py:224-236)."""
    places = ((0, 0), (0, span), (span // 2, span // 2), (span, 0), (span, span))
    return [(y, x, mirror) for mirror in (0, 1) for y, x in places]


def _deliver(images: Tensor, split: Split, indices: Indices, device: torch.device) -> Batch:
    """The loaders' layout NHWC is torch's channels_last."""
    return Batch(images.movedim(-1, -3), torch.from_numpy(split.labels[indices]).to(device))


def _normaliser(dataset: DataSet, config: InputConfig, device: torch.device) -> Normaliser:
    assert dataset.mean_image is not None
    mean = subtracted_mean(dataset.mean_image, config)
    return Normaliser(mean, config.mean, config.crop_size, device, config.std)


class TrainFeed:
    """Endless batches from global step `first_step` on, the same whatever came before."""

    def __init__(self, dataset: DataSet, config: InputConfig, share: Share, *, seed: int, first_step: int) -> None:
        check_crops(config, dataset.size)
        split, span = dataset.train, crop_span(config, dataset.size)
        self._split, self._share, self._first_step, self._taken = split, share, first_step, 0
        self._length = steps_per_epoch(len(split), share.batch_size, share.num_replicas)
        whole = share.batch_size * share.num_replicas

        @lru_cache(maxsize=2)
        def order(epoch: int) -> Indices:
            return epoch_order(len(split), seed, epoch)

        def indices(step: int) -> Indices:
            epoch, within = divmod(step, self._length)
            batch = order(epoch)[within * whole : (within + 1) * whole]
            return batch[replica_rows(share.batch_size, share.replica)]

        @lru_cache(maxsize=PREFETCH + 4)
        def drawn(step: int) -> Draws:
            epoch, within = divmod(step, self._length)
            return draws(
                config,
                dataset.eigenvalues,
                dataset.eigenvectors,
                seed=seed,
                epoch=epoch,
                step=within,
                batch_size=share.batch_size,
                replica=share.replica,
                num_replicas=share.num_replicas,
                span=span,
                epochs_done=step / self._length,
            )

        own = share.own_rows(share.batch_size)
        self._reader = ReadAhead(split, lambda step: indices(step)[own])

        def source(number: int) -> Encoded:
            step = first_step + number
            batch = drawn(step)
            return Encoded(self._reader.take(step), batch.offsets[own], batch.flips[own])

        self._indices, self._draws = indices, drawn
        cutting = Cutting(config.crop_size, dataset.size, dataset.needs_resize, mirrors=config.flip)
        self._crops = Crops(open_loader(source, split, cutting, config, share), share)
        self._normalise = _normaliser(dataset, config, share.device)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        step = self._first_step + self._taken
        self._taken += 1
        indices, batch = self._indices(step), self._draws(step)
        crops = self._crops.run(indices)
        images = self._normalise(crops, batch.offsets, batch.flips, batch.noise, batch.scale)
        return _deliver(images, self._split, indices, self._share.device)

    def __len__(self) -> int:
        """Steps in an epoch."""
        return self._length

    def close(self) -> None:
        self._crops.close()
        self._reader.close()


class ValidationFeed:
    """This replica's share of a split, once, the last partial batch included."""

    def __init__(self, dataset: DataSet, split: Split, config: InputConfig, share: Share, *, crops: str) -> None:
        count, span = len(split), crop_span(config, dataset.size)
        part = np.arange(
            share.replica * count // share.num_replicas, (share.replica + 1) * count // share.num_replicas
        )
        self._parts = [part[i : i + share.batch_size] for i in range(0, len(part), share.batch_size)]
        self._split, self._share, self._next = split, share, 0
        self._views = ten_views(span) if crops == "ten" else [(span // 2, span // 2, 0)]

        def own(number: int) -> Indices | None:
            return (
                self._parts[number][share.own_rows(len(self._parts[number]))] if number < len(self._parts) else None
            )

        self._reader = ReadAhead(split, own)
        nowhere = np.zeros((share.batch_size, 2), np.int32)  # all have the same views

        def source(number: int) -> Encoded | None:
            if number >= len(self._parts):
                return None
            return Encoded(self._reader.take(number), nowhere, nowhere[:, 0])

        cutting = Cutting(config.crop_size, dataset.size, dataset.needs_resize, self._views)
        self._crops = Crops(open_loader(source, split, cutting, config, share), share)
        self._normalise = _normaliser(dataset, config, share.device)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._next >= len(self._parts):
            raise StopIteration
        indices = self._parts[self._next]
        self._next += 1
        crops = self._crops.run(indices)
        views = np.tile(np.array(self._views, np.int32), (len(indices), 1))
        single = crops.view(-1, *crops.shape[-3:])
        images = self._normalise(single, views[:, :2], views[:, 2]).view(crops.shape)
        return _deliver(images, self._split, indices, self._share.device)

    def __len__(self) -> int:
        """Batches."""
        return len(self._parts)

    def close(self) -> None:
        self._crops.close()
        self._reader.close()


def open_train(dataset: DataSet, config: InputConfig, share: Share, *, seed: int, first_step: int) -> Feed:
    """Endless training batches. Raises: ValueError if the set has not one whole batch."""
    if dataset.is_synthetic:
        return SyntheticFeed(dataset, config, share, seed=seed, num_batches=None, crops="centre")
    return TrainFeed(dataset, config, share, seed=seed, first_step=first_step)


def open_validation(
    dataset: DataSet, config: InputConfig, share: Share, *, crops: str = "centre", split: str = "val"
) -> Feed:
    """This replica's part of the images of `val` or `test`, in the `centre` crop or in `ten`.

    Raises: ValueError if the data set has no such split, or smaller images than the crops.
    """
    images = dataset.split(split)
    if dataset.is_synthetic:
        num_batches = max(1, len(images) // share.num_replicas // share.batch_size)
        return SyntheticFeed(dataset, config, share, seed=0, num_batches=num_batches, crops=crops)
    return ValidationFeed(dataset, images, config, share, crops=crops)
