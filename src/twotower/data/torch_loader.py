"""Crops without DALI, on any system: libjpeg-turbo or Pillow decodes, torch resizes, in threads of this process.

Prepared images come out as the bits that DALI gives on a CPU, as both decode with libjpeg-turbo's exact transform.
Images that are resized are the squares that launch/prepare_data.py makes of them (`cut_square`), which round to
whole levels after each direction and cut the filter at the edge, where DALI rounds once and continues the edge. Over
100 ILSVRC photographs that is 0.16 of 255 levels in the mean, at most 1 within the square, and at most 11 in its
outermost rows and columns.

Threads rather than the worker processes of torch's DataLoader: decoding and resizing leave Python's lock to others,
and a process needs seconds and hundreds of MB for importing torch, again for each validation. An image takes as much
of a core as with DALI (2.8 and 2.9 ms from a photograph with resizing, 0.8 and 0.9 ms prepared).
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

_Made = tuple[NDArray[np.uint8], dict[int, str]]  # crops, and what is wrong with which of the images


def cut(content: bytes, views: list[View], cutting: Cutting, out: NDArray[np.uint8]) -> None:
    """Writes the crops of one encoded image to `out`, uint8 [views, crop, crop, 3].

    Raises: UnusableError if it cannot be decoded, or has not the size that it should have.
    """
    image, size, crop = decode_image(content), cutting.size, cutting.crop_size
    if cutting.resize:
        image = cut_square(image, size)
    elif image.shape != (size, size, 3):
        height, width = image.shape[:2]
        raise UnusableError(f"it has {width} x {height} pixels, not {size} x {size}")
    for place, (y, x, mirror) in enumerate(views):
        part = image[y : y + crop, x : x + crop]
        if mirror:
            for channel in range(3):  # a quarter of the time of mirroring pixels of three bytes
                out[place, ..., channel] = part[:, ::-1, channel]
        else:
            out[place] = part


class TorchLoader:
    """The loader of `input.loader=torch`; see `loader.Loader`."""

    def __init__(self, source: Source, split: Split, cutting: Cutting, share: Share) -> None:
        self._source, self._split, self._cutting = source, split, cutting
        most = len(range(*share.own_rows(share.batch_size).indices(share.batch_size)))
        self._num_views = 1 if cutting.views is None else len(cutting.views)
        shape = (most, self._num_views, cutting.crop_size, cutting.crop_size, 3)
        # One is in use while the others are filled.
        self._memory = [np.empty(shape, np.uint8) for _ in range(1 + PREFETCH)]
        self._threads = ThreadPoolExecutor(share.threads, thread_name_prefix="decode")
        self._order = ThreadPoolExecutor(1, thread_name_prefix="order")  # makes one batch after the other
        self._coming: list[Future[_Made]] = []
        self._begun = 0

    def _make(self, number: int) -> _Made:
        encoded = self._source(number)
        if encoded is None:
            return np.empty(0, np.uint8), {}
        crops = self._memory[number % len(self._memory)][: len(encoded.contents)]
        places = range(len(crops))
        wrong = list(self._threads.map(lambda place: self._fill(encoded, place, crops[place]), places))
        return crops, {place: reason for place, reason in zip(places, wrong, strict=True) if reason}

    def _fill(self, encoded: Encoded, place: int, out: NDArray[np.uint8]) -> str:
        """Why it cannot be done; empty if it is."""
        y, x = (int(n) for n in encoded.offsets[place])
        views = self._cutting.views or [(y, x, int(encoded.flips[place]))]
        try:
            cut(encoded.contents[place].tobytes(), views, self._cutting, out)
        except UnusableError as error:
            return str(error)
        return ""

    def run(self, rows: Indices) -> Tensor:
        while len(self._coming) <= PREFETCH:
            self._coming.append(self._order.submit(self._make, self._begun))
            self._begun += 1
        crops, wrong = self._coming.pop(0).result()
        for place, reason in wrong.items():
            raise RuntimeError(f"{self._split.name(int(rows[place]))} cannot be decoded any more: {reason}")
        return torch.from_numpy(crops[:, 0] if self._num_views == 1 else crops)

    def close(self) -> None:
        self._order.shutdown(wait=False, cancel_futures=True)
        self._threads.shutdown(cancel_futures=True)
        self._order.shutdown()
        self._coming.clear()
