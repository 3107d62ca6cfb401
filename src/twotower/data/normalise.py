"""The last step of the input: uint8 crops become what conv1 sees, (crop - mean + noise) * scale / std in float32.

In torch rather than in the DALI graph: crops cross between decoders, towers and devices as bytes, and on a CPU one
image at a time stays in the cache, which takes a quarter of the time of whole batches.
"""

import weakref
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twotower.config import UNSCALED, InputConfig
from twotower.ground.host_copies import send


def choose_mean(mean_image: NDArray[np.float32], config: InputConfig) -> NDArray[np.float32]:
    """The mean to subtract, float32 [size, size, 3], 0..255: `mean_value` everywhere, or else the mean image."""
    if config.mean_value is None:
        return mean_image
    return np.broadcast_to(np.array(config.mean_value, np.float32), mean_image.shape).copy()


class Normaliser:
    """Subtracts the mean and divides by the std.

    Args:
        mean_image: float32 [size, size, 3], 0..255, as `choose_mean` gives it.
        mean: `central` (the mean image's centre, whatever the crop: convdata_jpeg.py:205-211) or `aligned` (cropped
            and mirrored as the image is).
        crop_size: pixels.
        device: place of the results.
        std: divisors of R, G and B, 0..255.
    """

    def __init__(
        self,
        mean_image: NDArray[np.float32],
        mean: str,
        crop_size: int,
        device: torch.device,
        std: Sequence[float] = UNSCALED,
    ) -> None:
        self._aligned, self._crop, self._device = mean == "aligned", crop_size, device
        self._span = len(mean_image) - crop_size
        self.one_by_one = device.type == "cpu"  # a GPU takes all images of a batch in one go
        # Memory of at most two batches that nothing refers to any more: one batch is in use while another is filled.
        self._free: deque[NDArray[np.float32]] = deque(maxlen=2)
        mean_square = torch.from_numpy(np.ascontiguousarray(mean_image))
        # Pixels and channels share one axis, which makes the inner loops long. Second: the mirrored mean image.
        self._means = [m.reshape(len(mean_image), -1).to(device) for m in (mean_square, mean_square.flip(1))]
        self._std = torch.tensor(std).repeat(crop_size).to(device) if tuple(std) != UNSCALED else None

    def _memory(self, shape: torch.Size) -> Tensor:
        """Memory for a batch. On a CPU fresh pages cost as much as the arithmetic, so memory is used again.

        A batch stays valid for as long as anything refers to it: its storage alone holds a view of the memory, and
        the memory is free when that view is deleted. (Counting references would not do, because Python 3.14 counts
        fewer of them than earlier versions.)
        """
        if self._device.type != "cpu":
            return torch.empty(shape, device=self._device)
        array = np.empty(0, np.float32)
        while self._free and array.shape != shape:  # the last batch of a validation may be smaller
            array = self._free.pop()
        if array.shape != shape:
            array = np.empty(shape, np.float32)
        view = array.view()
        weakref.finalize(view, self._free.append, array).atexit = False
        return torch.from_numpy(view)

    def _mean(self, y: int, x: int, flip: int) -> Tensor:
        """The part of the mean image to subtract from a crop, [crop, 3 * crop]."""
        if not self._aligned:
            y, x, flip = self._span // 2, self._span // 2, 0
        x = self._span - x if flip else x
        return self._means[flip][y : y + self._crop, 3 * x : 3 * (x + self._crop)]

    def __call__(
        self,
        crops: Tensor,
        offsets: NDArray[np.int32],
        flips: NDArray[np.int32],
        noise: NDArray[np.float32] | None = None,
        scale: float = 1.0,
    ) -> Tensor:
        """(crops - mean + noise) * scale / std, float32 [N, crop, crop, 3].

        Args:
            crops: uint8 [N, crop, crop, 3], mirrored already where `flips` is 1.
            offsets: y and x of each crop, [N, 2].
            flips: 1 where a crop is mirrored, [N].
            noise: added to R, G, B of all pixels, [N, 3], in 0..255 units; None: nothing is added.
            scale: factor on the image after the noise.
        """
        count = len(crops)
        rows = send(crops, self._device).reshape(count, self._crop, -1)
        images = self._memory(rows.shape)
        at_once = 1 if self.one_by_one else count
        shifts = None
        if noise is not None and noise.any():
            shifts = send(torch.from_numpy(np.tile(noise, self._crop)), self._device)[:, None]
        keys = [(int(y), int(x), int(flip)) for (y, x), flip in zip(offsets, flips, strict=True)]
        for begin in range(0, count, at_once):
            part = slice(begin, begin + at_once)
            block = images[part].copy_(rows[part])
            means = [self._mean(*key) for key in (keys[part] if self._aligned else keys[begin : begin + 1])]
            block.sub_(means[0] if len(means) == 1 else torch.stack(means))
            if shifts is not None:
                block.add_(shifts[part])
            if scale != 1:
                block.mul_(scale)
            if self._std is not None:
                block.div_(self._std)
        return images.view(crops.shape)
