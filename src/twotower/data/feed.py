"""Batches for one replica: bytes from files or shards, cropped by a loader, partly by way of the other tower."""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from twotower.config import InputConfig
from twotower.data.augment import Changes, draw_changes
from twotower.data.batch import Batch, Feed, Share, label_checksum
from twotower.data.choose_loader import open_loader
from twotower.data.crops import check_crops, crop_span, ten_views
from twotower.data.dataset import DataSet, Split
from twotower.data.decoded_squares import open_decoded
from twotower.data.loader import PREFETCH, Cutting, Encoded, Indices
from twotower.data.normalise import Normaliser, choose_mean
from twotower.data.order import epoch_order, replica_rows, steps_per_epoch
from twotower.data.read_ahead import ReadAhead
from twotower.data.shared_decoding import SharedDecoding
from twotower.data.synthetic import SyntheticFeed
from twotower.ground.host_copies import send


def _make_batch(images: Tensor, split: Split, indices: Indices, device: torch.device) -> Batch:
    """Turns crops [..., H, W, 3] into a batch [..., 3, H, W], which is torch's channels_last format in memory."""
    labels = split.labels[indices]
    return Batch(images.movedim(-1, -3), send(torch.from_numpy(labels), device), label_checksum(labels))


def _open_normaliser(dataset: DataSet, config: InputConfig, device: torch.device) -> Normaliser:
    assert dataset.mean_image is not None
    mean = choose_mean(dataset.mean_image, config)
    return Normaliser(mean, config.mean, config.crop_size, device, config.std)


def _cut_alone(config: InputConfig, share: Share) -> Share:
    """Without the other tower where both have all pixels in their GPUs: to cut is quicker than to swap there."""
    return replace(share, partner=None) if config.cache == "device" else share


class _TrainingSteps:
    """The images and the random changes of each training step of a replica, by global step.

    Attributes:
        per_epoch: steps in an epoch.
    """

    def __init__(self, dataset: DataSet, config: InputConfig, share: Share, seed: int) -> None:
        self._dataset, self._config, self._share, self._seed = dataset, config, share, seed
        self._span = crop_span(config, dataset.size)
        self.per_epoch = steps_per_epoch(len(dataset.train), share.batch_size, share.num_replicas)
        self._read_order = lru_cache(maxsize=2)(self._make_order)  # two: the loader may be an epoch ahead
        self.draw = lru_cache(maxsize=PREFETCH + 4)(self._draw)  # read by the loader, then by the normaliser

    def _make_order(self, epoch: int) -> Indices:
        return epoch_order(len(self._dataset.train), self._seed, epoch)

    def indices(self, step: int) -> Indices:
        """The indices of the replica's images in the training split, int64 [B]."""
        epoch, within = divmod(step, self.per_epoch)
        num_images = self._share.batch_size * self._share.num_replicas
        batch = self._read_order(epoch)[within * num_images : (within + 1) * num_images]
        return batch[replica_rows(self._share.batch_size, self._share.replica)]

    def _draw(self, step: int) -> Changes:
        epoch, within = divmod(step, self.per_epoch)
        return draw_changes(
            self._config,
            self._dataset.eigenvalues,
            self._dataset.eigenvectors,
            seed=self._seed,
            epoch=epoch,
            step=within,
            batch_size=self._share.batch_size,
            replica=self._share.replica,
            num_replicas=self._share.num_replicas,
            span=self._span,
            epochs_done=step / self.per_epoch,
        )


class TrainFeed:
    """Endless batches from global step `first_step` on, the same whatever came before."""

    def __init__(self, dataset: DataSet, config: InputConfig, share: Share, *, seed: int, first_step: int) -> None:
        check_crops(config, dataset.size)
        share = _cut_alone(config, share)
        self._split, self._share, self._next_step = dataset.train, share, first_step
        self._steps = steps = _TrainingSteps(dataset, config, share, seed)
        rows = share.own_rows(share.batch_size)
        self._reader = reader = ReadAhead(dataset.train, lambda step: steps.indices(step)[rows])

        def read(number: int) -> Encoded:
            step = first_step + number
            changes = steps.draw(step)
            return Encoded(reader.take(step), changes.offsets[rows], changes.flips[rows])

        cutting = Cutting(config.crop_size, dataset.size, dataset.needs_resize, mirrors=config.flip)
        self._crops = SharedDecoding(open_loader(read, dataset.train, cutting, config, share), share)
        self._normalise = _open_normaliser(dataset, config, share.device)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        step = self._next_step
        self._next_step += 1
        indices, changes = self._steps.indices(step), self._steps.draw(step)
        crops = self._crops.run(indices)
        images = self._normalise(crops, changes.offsets, changes.flips, changes.noise, changes.scale)
        return _make_batch(images, self._split, indices, self._share.device)

    def __len__(self) -> int:
        """Steps in an epoch."""
        return self._steps.per_epoch

    def close(self) -> None:
        self._crops.close()
        self._reader.close()


class ValidationFeed:
    """This replica's part of a split, once, the last and perhaps smaller batch included.

    Args:
        crops: `centre` or `ten`.
    """

    def __init__(self, dataset: DataSet, split: Split, config: InputConfig, share: Share, *, crops: str) -> None:
        share = _cut_alone(config, share)
        count, span = len(split), crop_span(config, dataset.size)
        part = np.arange(
            share.replica * count // share.num_replicas, (share.replica + 1) * count // share.num_replicas
        )
        batches = [part[i : i + share.batch_size] for i in range(0, len(part), share.batch_size)]
        self._batches, self._split, self._share, self._next = batches, split, share, 0
        self._views = ten_views(span) if crops == "ten" else [(span // 2, span // 2, 0)]

        def own_rows(number: int) -> Indices | None:
            if number >= len(batches):
                return None
            return batches[number][share.own_rows(len(batches[number]))]

        self._reader = reader = ReadAhead(split, own_rows)
        no_offsets = np.zeros((share.batch_size, 2), np.int32)  # every image has the same views

        def read(number: int) -> Encoded | None:
            if number >= len(batches):
                return None
            return Encoded(reader.take(number), no_offsets, no_offsets[:, 0])

        cutting = Cutting(config.crop_size, dataset.size, dataset.needs_resize, self._views)
        self._crops = SharedDecoding(open_loader(read, split, cutting, config, share), share)
        self._normalise = _open_normaliser(dataset, config, share.device)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._next >= len(self._batches):
            raise StopIteration
        indices = self._batches[self._next]
        self._next += 1
        crops = self._crops.run(indices)
        views = np.tile(np.array(self._views, np.int32), (len(indices), 1))
        single = crops.view(-1, *crops.shape[-3:])  # views as images of their own
        images = self._normalise(single, views[:, :2], views[:, 2]).view(crops.shape)
        return _make_batch(images, self._split, indices, self._share.device)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._batches)

    def close(self) -> None:
        self._crops.close()
        self._reader.close()


def open_train(dataset: DataSet, config: InputConfig, share: Share, *, seed: int, first_step: int) -> Feed:
    """Opens endless training batches.

    Raises: ValueError if the set has fewer images than a batch, or smaller ones than the crops need.
    """
    if dataset.is_synthetic:
        return SyntheticFeed(dataset, config, share, seed=seed, num_batches=None, crops="centre")
    if config.cache != "none":
        dataset = open_decoded(dataset)
    return TrainFeed(dataset, config, share, seed=seed, first_step=first_step)


def open_validation(
    dataset: DataSet, config: InputConfig, share: Share, *, crops: str = "centre", split: str = "val"
) -> Feed:
    """Opens this replica's part of the images of `val` or `test`, in the `centre` crop or in `ten`.

    Raises: ValueError if the data set has no such split, or smaller images than the crops.
    """
    if config.cache != "none" and not dataset.is_synthetic:
        dataset = open_decoded(dataset)
    images = dataset.split(split)
    if dataset.is_synthetic:
        num_batches = max(1, len(images) // share.num_replicas // share.batch_size)
        return SyntheticFeed(dataset, config, share, seed=0, num_batches=num_batches, crops=crops)
    return ValidationFeed(dataset, images, config, share, crops=crops)
