"""The input as people usually write it: a torch DataLoader whose workers decode with Pillow.

The benchmark compares the pipeline with it. It takes the same steps, one image at a time, on as many cores: centre
square to 256 x 256 (raw images), crop, mirror, mean, colour noise, scale and std.
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from twotower.config import InputConfig
from twotower.data.colour_noise import colour_shifts, noise_scale
from twotower.data.dataset import DataSet, FileSplit
from twotower.data.normalise import choose_mean


class PillowImages(Dataset[tuple[Tensor, int]]):
    """Images of files as the network receives them: float32 [3, crop, crop] and the label."""

    def __init__(self, dataset: DataSet, files: FileSplit, config: InputConfig, training: bool) -> None:
        assert dataset.mean_image is not None
        self._dataset, self._files, self._config, self._training = dataset, files, config, training
        self._mean: NDArray[np.float32] = choose_mean(dataset.mean_image, config)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        config, size, crop = self._config, self._dataset.size, self._config.crop_size
        image = Image.open(self._files.root / self._files.paths[index]).convert("RGB")
        if self._dataset.needs_resize:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR)
        y = x = (size - crop) // 2
        flip = False
        if self._training:
            y, x = (int(n) for n in torch.randint(config.offsets or self._dataset.size - crop + 1, (2,)))
            flip = bool(torch.rand(()) < 0.5)
        pixels = np.asarray(image.crop((x, y, x + crop, y + crop)), np.float32)
        centre = (size - crop) // 2
        top, left = (y, x) if config.mean == "aligned" else (centre, centre)
        if flip:
            pixels = pixels[:, ::-1]
        pixels = pixels - self._mean[top : top + crop, left : left + crop]
        if self._training and config.colour_noise != "none":
            alpha = torch.randn(1, 3).numpy().astype(np.float64) * config.colour_noise_std
            shift = colour_shifts(config.colour_noise, alpha, self._dataset.eigenvalues, self._dataset.eigenvectors)
            pixels += shift[0]
            pixels *= np.float32(noise_scale(config.colour_noise, config.colour_noise_std))
        pixels /= np.array(config.std, np.float32)
        tensor = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
        return tensor, int(self._files.labels[index])


def prepare_with_pillow(content: bytes, size: int, quality: int, sums: list[NDArray[Any]]) -> bytes:
    """One image brought to size x size and encoded again, and added to the sums of mean and covariance."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    side = min(image.size)
    width, height = round(image.width * size / side), round(image.height * size / side)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.crop((left, top, left + size, top + size))
    pixels = np.asarray(image)
    sums[0] += pixels
    flat = pixels.reshape(-1, 3).astype(np.float64)
    sums[1] += flat.T @ flat
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def open_loader(
    dataset: DataSet,
    files: FileSplit,
    config: InputConfig,
    training: bool,
    batch_size: int,
    workers: int,
    num_batches: int,
) -> Iterator[Any]:
    """Batches of images drawn at random. Take them all: a loader that is dropped while it works may abort."""
    images = PillowImages(dataset, files, config, training)
    sampler = RandomSampler(images, replacement=True, num_samples=num_batches * batch_size)
    # The workers are not forked, because the process that calls this has threads of its own.
    return iter(DataLoader(images, batch_size, sampler=sampler, num_workers=workers, multiprocessing_context="spawn"))
