"""uint8 crops of a batch: a loader decodes this process's rows of it, and the other tower gives the rest."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twotower.data.batch import Share

PREFETCH = 2  # batches that a loader works ahead

Indices = NDArray[np.int64]
View = tuple[int, int, int]  # y and x of a crop in the prepared square, and 1 where it is mirrored


@dataclass(frozen=True)
class Cutting:
    """How crops are cut from encoded images.

    Attributes:
        crop_size: pixels.
        size: pixels of the square that an image is brought to, and that crops are taken from.
        resize: whether images have to be brought to it; without, they must be such squares already.
        views: the crops of every image; None: one crop of each, which comes with it.
        mirrors: whether any crop that comes with its image is mirrored.
    """

    crop_size: int
    size: int
    resize: bool
    views: list[View] | None = None
    mirrors: bool = False


@dataclass(frozen=True)
class Encoded:
    """Images of a batch as they lie on the disk.

    Attributes:
        contents: the bytes of each, uint8 [length].
        offsets: int32 [N, 2], y and x of each crop, and
        flips: int32 [N], 1 where it is mirrored; both without meaning where all images have the same views.
    """

    contents: list[NDArray[np.uint8]]
    offsets: NDArray[np.int32]
    flips: NDArray[np.int32]


Source = Callable[[int], Encoded | None]  # the own rows of batch 0, 1, ...; None after the last one


class Loader(Protocol):
    """Decodes and cuts the batches of a source one after the other, some of them ahead of time."""

    def run(self, rows: Indices) -> Tensor:
        """uint8 [N, crop, crop, 3], or [N, views, crop, crop, 3] if there are several; overwritten by the next call.

        Args:
            rows: the places of these images in their split, to name them.

        Raises: RuntimeError naming what could be decoded once and cannot be any more, OSError.
        """
        ...

    def close(self) -> None: ...


class Crops:
    """The crops of whole batches: the loader's, and the other tower's where decoding is shared."""

    def __init__(self, loader: Loader, share: Share) -> None:
        self._loader, self._share = loader, share

    def run(self, indices: Indices) -> Tensor:
        """The next batch, uint8; `indices` are those of all its rows. It is overwritten by the next call."""
        share = self._share
        crops = self._loader.run(indices[share.own_rows(len(indices))])
        num_missing = len(indices) - len(crops)
        if share.partner is None or num_missing == 0:
            return crops
        mine = crops.to(share.device)
        theirs = share.partner.swap_images(mine, num_missing)
        return torch.cat((theirs, mine) if share.partner.tower else (mine, theirs))

    def close(self) -> None:
        self._loader.close()
