"""The data set `data=synthetic`, for timing: random tensors in place of images, with nothing to read or to learn."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from twotower.config import UNSCALED, InputConfig
from twotower.data.batch import Batch, Share, label_checksum
from twotower.data.dataset import DataSet, FileSplit
from twotower.ground.random_streams import torch_stream


def make_synthetic_dataset(num_train: int, num_val: int, num_classes: int) -> DataSet:
    """Makes a data set without files, for timing. Raises: ValueError for a count that is too small."""
    for key, value, least in (("num_train", num_train, 1), ("num_val", num_val, 1), ("num_classes", num_classes, 2)):
        if value < least:
            raise ValueError(f"data.{key}={value} is too small for data=synthetic; give at least {least}.")
    splits = [FileSplit(Path(), [], np.arange(n, dtype=np.int64) % num_classes) for n in (num_train, num_val)]
    classes = [f"class{i}" for i in range(num_classes)]
    return DataSet(
        classes=classes,
        train=splits[0],
        val=splits[1],
        mean_image=None,
        eigenvalues=np.ones(3),
        eigenvectors=np.eye(3),
    )


class SyntheticFeed:
    """The same few random batches again and again, with values about as large as those of real images."""

    NUM_DIFFERENT = 2
    STD = 70.0  # grey levels, about the standard deviation of ILSVRC's pixels

    def __init__(
        self,
        dataset: DataSet,
        config: InputConfig,
        share: Share,
        *,
        seed: int,
        num_batches: int | None,
        crops: str,
    ) -> None:
        self._num_batches, self._taken, self._batches = num_batches, 0, []
        views, size = (10,) if crops == "ten" else (), config.crop_size
        for number in range(self.NUM_DIFFERENT):
            stream = torch_stream("synthetic", seed, number)
            images = torch.randn(share.batch_size, *views, size, size, 3, generator=stream).mul_(self.STD)
            if tuple(config.std) != UNSCALED:
                images /= torch.tensor(config.std)
            labels = torch.randint(len(dataset.classes), (share.batch_size,), generator=stream)
            images, checksum = images.movedim(-1, -3).to(share.device), label_checksum(labels.numpy())
            self._batches.append(Batch(images, labels.to(share.device), checksum))

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._num_batches is not None and self._taken >= self._num_batches:
            raise StopIteration
        self._taken += 1
        return self._batches[self._taken % self.NUM_DIFFERENT]

    def __len__(self) -> int:
        return self._num_batches or 0

    def close(self) -> None:
        self._batches = []
