"""Crops cut on a GPU from pixels in its memory: nothing is decoded, and only offsets travel there.

The same crops as from the files; see `decoded_squares`. The rest of the input (mean, mirrored mean, colour noise) is
computed where the crops are, as for every loader.
"""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from twotower.data.batch import Share
from twotower.data.decoded_squares import DecodedSplit
from twotower.data.loader import Cutting, Indices, Source
from twotower.ground.host_copies import send

AT_ONCE = 2048  # images that are copied to the device in one go: 400 MB


@cache  # each validation opens its loader anew, and the pixels stay
def _copy_to(device: torch.device, path: Path) -> Tensor:
    """The pixels of a file in a device's memory, uint8 [N, size, size, 3]. Raises: ValueError if it has no room."""
    squares = np.load(path, mmap_mode="r", allow_pickle=False)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if free < squares.nbytes:
            raise ValueError(
                f"input.cache=device would take {squares.nbytes / 1e9:,.1f} GB of {device} for {path.name}, and "
                f"{free / 1e9:,.1f} GB are free; use input.cache=host."
            )
    pixels = torch.empty(squares.shape, dtype=torch.uint8, device=device)
    for begin in range(0, len(squares), AT_ONCE):
        part = np.array(squares[begin : begin + AT_ONCE])  # torch takes no memory that cannot be written
        pixels[begin : begin + len(part)] = torch.from_numpy(part)
    return pixels


class DeviceLoader:
    """The loader of `input.cache=device`; see `loader.Loader`. Its results are not overwritten."""

    def __init__(self, source: Source, split: DecodedSplit, cutting: Cutting, share: Share) -> None:
        self._source, self._cutting, self._device = source, cutting, share.device
        self._pixels = _copy_to(share.device, split.path)
        self._ahead = torch.arange(cutting.crop_size, device=share.device)
        self._number = 0

    def _cut(self, rows: Tensor, y: Tensor, x: Tensor, mirror: Tensor) -> Tensor:
        """The crop at y and x of each row, mirrored where `mirror` is 1: uint8 [N, crop, crop, 3]."""
        columns = torch.where(mirror[:, None] == 1, self._ahead.flip(0), self._ahead) + x[:, None]
        lines = self._ahead + y[:, None]
        return self._pixels[rows[:, None, None], lines[:, :, None], columns[:, None, :]]

    def run(self, rows: Indices) -> Tensor:
        encoded = self._source(self._number)
        assert encoded is not None, "no batch is asked for after the last one"
        self._number += 1
        if self._cutting.views is None:
            places = np.concatenate((encoded.offsets, encoded.flips[:, None]), axis=1)[None]
        else:
            places = np.repeat(np.array(self._cutting.views)[:, None], len(rows), axis=1)
        numbers = np.concatenate((np.broadcast_to(rows[:, None], (*places.shape[:2], 1)), places), axis=2)
        views = send(torch.from_numpy(numbers.astype(np.int64)), self._device)  # [views, N, 4]
        crops = [self._cut(*view.unbind(1)) for view in views]
        return crops[0] if len(crops) == 1 else torch.stack(crops, dim=1)

    def close(self) -> None:
        pass
