"""What a feed delivers, and to whom."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """float32 images [B, 3, 224, 224] (or [B, 10, 3, 224, 224]) less the mean, over the std; int64 labels [B]."""

    images: Tensor
    labels: Tensor


class Partner(Protocol):
    """The way to the other tower of this replica, for decoded images."""

    tower: int  # this one, 0 or 1

    def swap_images(self, mine: Tensor, num_theirs: int) -> Tensor:
        """Sends some images and receives `num_theirs` of the same shape, dtype and device."""
        ...


@dataclass(frozen=True)
class Share:
    """Which part of the images a process is given, and where it wants them.

    Attributes:
        batch_size: images in a batch of one replica.
        device: on which the batches are delivered.
        threads: of the loader.
        partner: the other tower decodes half of each batch; None: this process decodes all of it.
    """

    batch_size: int
    replica: int
    num_replicas: int
    device: torch.device
    threads: int
    partner: Partner | None = None

    def own_rows(self, num_images: int) -> slice:
        """The rows of a batch that this process decodes. A single image is not worth a swap."""
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


def label_checksum(batch: Batch) -> int:
    """A number that is the same for the same labels in the same order."""
    weights = torch.arange(1, len(batch.labels) + 1, device=batch.labels.device)
    return int((batch.labels * weights).sum())


def pixel_checksum(batch: Batch) -> int:
    """A number that is the same for the same images, bit for bit, in the same order."""
    bits = batch.images.view(torch.int32).flatten(1).sum(1, dtype=torch.int64)
    return int((bits * torch.arange(1, len(bits) + 1, device=bits.device)).sum())
