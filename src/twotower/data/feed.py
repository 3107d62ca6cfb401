"""Batches for one replica, from files through DALI."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from twotower.config import InputConfig
from twotower.data.batch import Batch, Feed, Share
from twotower.data.dataset import DataSet, Split
from twotower.data.order import draws, epoch_order, noise_scale, replica_rows, steps_per_epoch
from twotower.data.synthetic import SyntheticFeed

PREFETCH = 2  # batches that DALI works ahead


def decoding_device(config: InputConfig, device: torch.device) -> str:
    """`cpu` or `gpu`. Raises: ValueError if decoding is asked of a GPU that is not used."""
    if config.device == "gpu" and device.type != "cuda":
        raise ValueError("input.device=gpu, but the towers are on the CPU; use input.device=auto.")
    return config.device if config.device != "auto" else ("gpu" if device.type == "cuda" else "cpu")


def _read(split: Split, indices: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
    return [np.fromfile(split.root / split.paths[i], np.uint8) for i in indices]


class _Pipeline:
    """A DALI pipeline whose batches become torch tensors on `device`."""

    def __init__(self, pipeline: Any, split: Split, device: torch.device) -> None:
        pipeline.build()
        self._pipeline, self._split, self._device = pipeline, split, device

    def run(self, indices: NDArray[np.int64]) -> Batch:
        """The next batch; `indices` are those that its source gave."""
        try:
            (images,) = self._pipeline.run()
        except RuntimeError as error:
            names = ", ".join(self._split.paths[i] for i in indices)
            raise RuntimeError(
                f"DALI failed on a batch of these files, which it once could decode: {names}"
            ) from error
        # DALI uses the memory again; its layout NHWC is torch's channels_last.
        whole = from_dlpack(images.as_tensor()).clone().to(self._device)
        labels = torch.from_numpy(self._split.labels[indices]).to(self._device)
        return Batch(whole.movedim(-1, -3), labels)

    def close(self) -> None:
        self._pipeline = None  # DALI frees its memory and threads with the object


def _options(share: Share, decoder: str) -> dict[str, Any]:
    return {
        "batch_size": share.batch_size,
        "num_threads": share.threads,
        "device_id": (share.device.index or 0) if decoder == "gpu" else None,
        "prefetch_queue_depth": PREFETCH,
    }


class TrainFeed:
    """Endless batches from global step `first_step` on, the same whatever came before."""

    def __init__(self, dataset: DataSet, config: InputConfig, share: Share, *, seed: int, first_step: int) -> None:
        from twotower.data.pipeline import SPAN, training_images

        self._split, self._first_step, self._taken = dataset.train, first_step, 0
        self._length = steps_per_epoch(len(dataset.train), share.batch_size, share.num_replicas)

        @lru_cache(maxsize=2)
        def order(epoch: int) -> NDArray[np.int64]:
            return epoch_order(len(dataset.train), seed, epoch)

        def indices(step: int) -> NDArray[np.int64]:
            epoch, within = divmod(step, self._length)
            whole = share.batch_size * share.num_replicas
            batch = order(epoch)[within * whole : (within + 1) * whole]
            return batch[replica_rows(share.batch_size, share.replica)]

        def source(info: Any) -> Any:
            step = first_step + info.iteration
            epoch, within = divmod(step, self._length)
            drawn = draws(
                config,
                dataset.eigenvalues,
                dataset.eigenvectors,
                seed=seed,
                epoch=epoch,
                step=within,
                batch_size=share.batch_size,
                replica=share.replica,
                num_replicas=share.num_replicas,
            )
            y, x = (drawn.offsets / np.float32(SPAN)).astype(np.float32).T
            return _read(self._split, indices(step)), y.copy(), x.copy(), drawn.flips, drawn.noise

        self._indices = indices
        decoder = decoding_device(config, share.device)
        assert dataset.mean_image is not None
        pipeline = training_images(
            source,
            dataset.mean_image,
            config.mean,
            noise_scale(config),
            dataset.needs_resize,
            decoder,
            **_options(share, decoder),
        )
        self._pipeline = _Pipeline(pipeline, self._split, share.device)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        step = self._first_step + self._taken
        self._taken += 1
        return self._pipeline.run(self._indices(step))

    def __len__(self) -> int:
        """Steps in an epoch."""
        return self._length

    def close(self) -> None:
        self._pipeline.close()


class ValidationFeed:
    """This replica's share of the validation set, once, the last partial batch included."""

    def __init__(self, dataset: DataSet, config: InputConfig, share: Share, *, crops: str) -> None:
        from twotower.data.pipeline import validation_images

        split, count = dataset.val, len(dataset.val)
        part = np.arange(
            share.replica * count // share.num_replicas, (share.replica + 1) * count // share.num_replicas
        )
        self._parts = [part[i : i + share.batch_size] for i in range(0, len(part), share.batch_size)]
        self._next = 0

        def source(info: Any) -> Any:
            if info.iteration >= len(self._parts):
                raise StopIteration
            return _read(split, self._parts[info.iteration])

        decoder = decoding_device(config, share.device)
        assert dataset.mean_image is not None
        pipeline = validation_images(
            source,
            dataset.mean_image,
            config.mean,
            crops == "ten",
            dataset.needs_resize,
            decoder,
            **_options(share, decoder),
        )
        self._pipeline = _Pipeline(pipeline, split, share.device)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._next >= len(self._parts):
            raise StopIteration
        self._next += 1
        return self._pipeline.run(self._parts[self._next - 1])

    def __len__(self) -> int:
        """Batches."""
        return len(self._parts)

    def close(self) -> None:
        self._pipeline.close()


def open_train(dataset: DataSet, config: InputConfig, share: Share, *, seed: int, first_step: int) -> Feed:
    """Endless training batches. Raises: ValueError if the set has not one whole batch."""
    if dataset.is_synthetic:
        return SyntheticFeed(dataset, share, seed=seed, num_batches=None, crops="centre")
    return TrainFeed(dataset, config, share, seed=seed, first_step=first_step)


def open_validation(dataset: DataSet, config: InputConfig, share: Share, *, crops: str = "centre") -> Feed:
    """This replica's part of the validation images, in the `centre` crop or in `ten`."""
    if dataset.is_synthetic:
        num_batches = max(1, len(dataset.val) // share.num_replicas // share.batch_size)
        return SyntheticFeed(dataset, share, seed=0, num_batches=num_batches, crops=crops)
    return ValidationFeed(dataset, config, share, crops=crops)
