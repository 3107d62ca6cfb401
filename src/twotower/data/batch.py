"""A batch, the feed that delivers it, and the share of the images that a process gets.

This is the face of data/ for the rooms above: they open feeds by `feed.open_train` and `feed.open_validation`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Images and labels of one step of a replica.

    Attributes:
        images: float32 [B, 3, H, W], or [B, 10, 3, H, W] for ten views, (pixel - mean) / std in channels_last order;
            H = W = 224 in the paper.
        labels: int64 [B], indices of classes.
        label_checksum: of the labels, computed on the host, where they come from.
    """

    images: Tensor
    labels: Tensor
    label_checksum: int = 0


class Partner(Protocol):
    """The other tower of this replica, with which decoded images can be swapped."""

    tower: int  # number of this process's own tower, 0 or 1

    def swap_images(self, mine: Tensor, num_theirs: int) -> Tensor:
        """Sends images and receives `num_theirs` others of the same shape, dtype and device."""
        ...


@dataclass(frozen=True)
class Share:
    """The part of the images that a process gets, and where it gets them.

    Attributes:
        batch_size: images in a batch of one replica.
        replica: number of this process's replica, from 0.
        num_replicas: replicas that share the images of an epoch.
        device: place of the delivered batches.
        threads: threads of the loader.
        loader_device: `machine.loader_device`, the place where DALI decodes: auto (where the batches go), cpu or gpu.
        partner: the other tower, which decodes half of each batch; None: this process decodes all of it.
    """

    batch_size: int
    replica: int
    num_replicas: int
    device: torch.device
    threads: int
    partner: Partner | None = None
    loader_device: str = "auto"

    def own_rows(self, num_images: int) -> slice:
        """The rows of a batch that this process decodes: half of them with a partner, unless there is only one."""
        if self.partner is None or num_images < 2:
            return slice(0, num_images)
        middle = (num_images + 1) // 2
        return slice(middle, num_images) if self.partner.tower else slice(0, middle)


class Feed(Protocol):
    """An iterator of batches that holds resources until it is closed."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...
    def __len__(self) -> int: ...
    def close(self) -> None: ...


def label_checksum(labels: NDArray[np.int64]) -> int:
    """A number that is the same for the same labels in the same order."""
    return int((labels * np.arange(1, len(labels) + 1)).sum())


def pixel_checksum(batch: Batch) -> Tensor:
    """A number that is the same for the same images, bit for bit, in the same order: int64, where the images are.

    Sums over rows and over columns count by their places, so that mirrored or shifted images have another one.
    """
    bits = batch.images.view(torch.int32)
    rows, columns = (_count_by_place(bits.sum(dim, dtype=torch.int64)) for dim in (-1, -2))
    return _count_by_place((rows + 3 * columns)[None])[0]


def _count_by_place(sums: Tensor) -> Tensor:
    """[N, ...] -> [N]: the sum of 1 x the first value, 2 x the second one and so on; it may wrap around."""
    values = sums.flatten(1)
    return (values * torch.arange(1, values.shape[1] + 1, device=values.device)).sum(1)
