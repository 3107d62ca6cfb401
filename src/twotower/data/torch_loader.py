"""Crops made without DALI, on any system: libjpeg-turbo or Pillow decodes, torch resizes, in threads of this process.

Prepared images come out bit for bit as from DALI on a CPU, because both use libjpeg-turbo's exact transform.
Images that have to be resized become the squares that launch/prepare_data.py makes of them (`cut_square`): these
round to whole levels after each direction and cut the filter at the edge, where DALI rounds once and continues the
edge. Over 100 ILSVRC photographs the two differ by 0.16 of 255 levels in the mean, by at most 1 within the square,
and by at most 11 in its outermost rows and columns.

It uses threads rather than the worker processes of torch's DataLoader, because decoding and resizing release Python's
lock, and a process needs seconds and hundreds of MB to import torch, again for each validation. An image takes as
much time of a core as with DALI (2.8 and 2.9 ms for a photograph to resize, 0.8 and 0.9 ms for a prepared image).
"""

from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twotower.data.batch import Share
from twotower.data.crops import View
from twotower.data.dataset import Split
from twotower.data.decode import UnusableError, cut_square, decode_image
from twotower.data.loader import PREFETCH, Cutting, Encoded, Indices, Source

_Made = tuple[NDArray[np.uint8], dict[int, str]]  # crops, and the reason for each row that has none


def decode_square(content: bytes, cutting: Cutting) -> NDArray[np.uint8]:
    """The square that crops are cut from, uint8 [size, size, 3].

    Raises: UnusableError if the image cannot be decoded, or needs resizing where none should.
    """
    image, size = decode_image(content), cutting.size
    if cutting.resize:
        return cut_square(image, size)
    if image.shape != (size, size, 3):
        height, width = image.shape[:2]
        raise UnusableError(f"it has {width} x {height} pixels, not {size} x {size}")
    return image


def cut(image: NDArray[np.uint8], views: list[View], crop: int, out: NDArray[np.uint8]) -> None:
    """Writes the crops of a square to `out`, uint8 [views, crop, crop, 3]."""
    for view, (y, x, mirror) in enumerate(views):
        part = image[y : y + crop, x : x + crop]
        if mirror:
            for channel in range(3):  # takes a quarter of the time of mirroring pixels of three bytes
                out[view, ..., channel] = part[:, ::-1, channel]
        else:
            out[view] = part


class TorchLoader:
    """The loader of `input.loader=torch`; see `loader.Loader`."""

    def __init__(self, source: Source, split: Split, cutting: Cutting, share: Share) -> None:
        self._source, self._split, self._cutting = source, split, cutting
        num_rows = len(range(*share.own_rows(share.batch_size).indices(share.batch_size)))
        self._num_views = 1 if cutting.views is None else len(cutting.views)
        shape = (num_rows, self._num_views, cutting.crop_size, cutting.crop_size, 3)
        # One batch is in use while the others are filled.
        self._memory = [np.empty(shape, np.uint8) for _ in range(1 + PREFETCH)]
        self._threads = ThreadPoolExecutor(share.threads, thread_name_prefix="decode")
        self._order = ThreadPoolExecutor(1, thread_name_prefix="order")  # takes one batch after the other
        self._coming: list[Future[_Made]] = []
        self._begun = 0

    def _make(self, number: int) -> _Made:
        encoded = self._source(number)
        if encoded is None:
            return np.empty(0, np.uint8), {}
        crops = self._memory[number % len(self._memory)][: len(encoded.contents)]
        rows = range(len(crops))
        reasons = list(self._threads.map(lambda row: self._fill(encoded, row, crops[row]), rows))
        return crops, {row: reason for row, reason in zip(rows, reasons, strict=True) if reason}

    def _fill(self, encoded: Encoded, row: int, out: NDArray[np.uint8]) -> str:
        """Writes the crops of one image. Returns the reason where it cannot be decoded, else an empty string."""
        y, x = (int(n) for n in encoded.offsets[row])
        views = self._cutting.views or [(y, x, int(encoded.flips[row]))]
        try:
            content = encoded.contents[row]
            is_decoded = content.ndim > 1
            square = content if is_decoded else decode_square(content.tobytes(), self._cutting)
            cut(square, views, self._cutting.crop_size, out)
        except UnusableError as error:
            return str(error)
        return ""

    def run(self, rows: Indices) -> Tensor:
        while len(self._coming) <= PREFETCH:
            self._coming.append(self._order.submit(self._make, self._begun))
            self._begun += 1
        crops, reasons = self._coming.pop(0).result()
        for row, reason in reasons.items():
            raise RuntimeError(f"{self._split.name(int(rows[row]))} cannot be decoded any more: {reason}")
        return torch.from_numpy(crops[:, 0] if self._num_views == 1 else crops)

    def close(self) -> None:
        self._order.shutdown(wait=False, cancel_futures=True)
        self._threads.shutdown(cancel_futures=True)
        self._order.shutdown()
        self._coming.clear()
