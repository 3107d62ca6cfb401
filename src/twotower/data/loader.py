"""The interface of a loader: encoded images of a batch go in, uint8 crops come out. Three classes have it:
`dali_loader`, `torch_loader` and, for pixels in a GPU's memory, `device_loader`; `choose_loader` opens one of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from twotower.data.crops import View

PREFETCH = 2  # batches that a loader decodes ahead of the one in use

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Cutting:
    """How crops are cut from encoded images.

    Attributes:
        crop_size: pixels.
        size: sides of the square that an image is brought to and that crops are taken from, in pixels.
        resize: whether images have to be brought to that size; without, they must be such squares already.
        views: the crops of every image; None: one crop of each, whose offset comes with the image.
        mirrors: whether any of the crops whose offsets come with the images is mirrored.
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
        contents: the bytes of each image, uint8 [length]; of one that is decoded already its pixels, [size, size, 3].
        offsets: int32 [N, 2], y and x of each crop. Not read where `Cutting.views` is given.
        flips: int32 [N], 1 where the crop is mirrored. Not read where `Cutting.views` is given.
    """

    contents: list[NDArray[np.uint8]]
    offsets: NDArray[np.int32]
    flips: NDArray[np.int32]


Source = Callable[[int], Encoded | None]  # this process's images of batch 0, 1, ...; None after the last batch


class Loader(Protocol):
    """Decodes and cuts the batches of a source one after the other, some of them ahead of time."""

    def run(self, rows: Indices) -> Tensor:
        """uint8 [N, crop, crop, 3], or [N, views, crop, crop, 3] for several views; overwritten by the next call.

        Args:
            rows: the indices of these images in their split, for error messages.

        Raises: RuntimeError naming an image that could be decoded once and cannot be any more, OSError.
        """
        ...

    def close(self) -> None: ...
