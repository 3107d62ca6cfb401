"""Random tensors in place of images, for timing: nothing is read, nothing can be learned."""

from collections.abc import Iterator

import torch

from twotower.config import UNSCALED, InputConfig
from twotower.data.batch import Batch, Share
from twotower.data.dataset import DataSet
from twotower.ground.streams import torch_stream


class SyntheticFeed:
    """The same few random batches again and again: as large as images less their mean, over the std."""

    NUM_DIFFERENT = 2
    STD = 70.0  # grey levels, about that of ILSVRC's pixels

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
            images = torch.randn(share.batch_size, *views, size, size, 3, generator=stream) * self.STD
            if tuple(config.std) != UNSCALED:
                images /= torch.tensor(config.std)
            labels = torch.randint(len(dataset.classes), (share.batch_size,), generator=stream)
            self._batches.append(Batch(images.movedim(-1, -3).to(share.device), labels.to(share.device)))

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
