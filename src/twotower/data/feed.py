"""Batches for one replica: bytes from files or shards, through DALI, some of them by way of the other tower."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from twotower.config import InputConfig
from twotower.data.batch import Batch, Feed, Share
from twotower.data.dataset import DataSet, Split
from twotower.data.normalise import Normaliser, subtracted_mean
from twotower.data.order import Draws, check_crops, crop_span, draws, epoch_order, replica_rows, steps_per_epoch
from twotower.data.synthetic import SyntheticFeed

PREFETCH = 2  # batches that DALI works ahead
READERS = 4  # threads that wait for the disk

Indices = NDArray[np.int64]


def decoding_device(config: InputConfig, device: torch.device) -> str:
    """`cpu` or `gpu`. Raises: ValueError if decoding is asked of a GPU that is not used."""
    if config.device == "gpu" and device.type != "cuda":
        raise ValueError("input.device=gpu, but the towers are on the CPU; use input.device=auto.")
    return config.device if config.device != "auto" else ("gpu" if device.type == "cuda" else "cpu")


def ten_views(span: int) -> list[tuple[int, int, int]]:
    """Four corners and the centre, then their mirrors, in the order of the 2012 code (convdata_jpeg.py:224-236)."""
    places = ((0, 0), (0, span), (span // 2, span // 2), (span, 0), (span, span))
    return [(y, x, mirror) for mirror in (0, 1) for y, x in places]


class _ReadAhead:
    """Reads the bytes of the batch after the one that is asked for."""

    def __init__(self, split: Split, rows: Callable[[int], Indices | None]) -> None:
        self._split, self._rows = split, rows
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="read")
        self._coming: dict[int, list[Future[list[NDArray[np.uint8]]]]] = {}

    def _start(self, number: int) -> None:
        rows = self._rows(number)
        if rows is not None and number not in self._coming:
            parts = np.array_split(rows, min(READERS, len(rows)))
            self._coming[number] = [self._threads.submit(self._read, part) for part in parts]

    def _read(self, rows: Indices) -> list[NDArray[np.uint8]]:
        return [self._split.read(int(row)) for row in rows]

    def take(self, number: int) -> list[NDArray[np.uint8]]:
        """The encoded images of batch `number`. Raises: OSError naming the file that cannot be read any more."""
        self._start(number)
        self._start(number + 1)
        return [image for part in self._coming.pop(number) for image in part.result()]

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)


class _Decoder:
    """A DALI pipeline that decodes this process's rows of each batch, and gets the other rows from its partner."""

    def __init__(self, pipeline: Any, reader: _ReadAhead, split: Split, share: Share) -> None:
        pipeline.build()
        self._pipeline, self._reader, self._split, self._share = pipeline, reader, split, share

    def run(self, indices: Indices) -> Tensor:
        """The next batch, uint8; `indices` are those of all its rows. It is overwritten by the next call."""
        share, own = self._share, self._share.own_rows(len(indices))
        try:
            (images,) = self._pipeline.run(self._stream())
        except RuntimeError as error:
            names = ", ".join(self._split.name(int(i)) for i in indices[own])
            raise RuntimeError(
                f"DALI failed on a batch of these files, which it once could decode: {names}"
            ) from error
        crops = from_dlpack(images.as_tensor())
        num_missing = len(indices) - len(crops)
        if share.partner is None or num_missing == 0:
            return crops
        mine = crops.to(share.device)
        theirs = share.partner.swap_images(mine, num_missing)
        return torch.cat((theirs, mine) if share.partner.tower else (mine, theirs))

    def _stream(self) -> Any:
        """In the order of torch's kernels, so that DALI writes to its memory again only after they have read it."""
        return torch.cuda.current_stream(self._share.device) if self._share.device.type == "cuda" else None

    def close(self) -> None:
        self._pipeline = None  # DALI frees its memory and threads with the object
        self._reader.close()


def _options(share: Share, device: str) -> dict[str, Any]:
    return {
        "batch_size": len(range(*share.own_rows(share.batch_size).indices(share.batch_size))),
        "num_threads": share.threads,
        "device_id": (share.device.index or 0) if device == "gpu" else None,
        "prefetch_queue_depth": PREFETCH,
    }


def _deliver(images: Tensor, split: Split, indices: Indices, device: torch.device) -> Batch:
    """DALI's layout NHWC is torch's channels_last."""
    return Batch(images.movedim(-1, -3), torch.from_numpy(split.labels[indices]).to(device))


def _normaliser(dataset: DataSet, config: InputConfig, device: torch.device) -> Normaliser:
    assert dataset.mean_image is not None
    mean = subtracted_mean(dataset.mean_image, config)
    return Normaliser(mean, config.mean, config.crop_size, device, config.std)


class TrainFeed:
    """Endless batches from global step `first_step` on, the same whatever came before."""

    def __init__(self, dataset: DataSet, config: InputConfig, share: Share, *, seed: int, first_step: int) -> None:
        from twotower.data.pipeline import training_crops

        check_crops(config, dataset.size)
        split, span = dataset.train, crop_span(config, dataset.size)
        self._split, self._share, self._first_step, self._taken = split, share, first_step, 0
        self._length = steps_per_epoch(len(split), share.batch_size, share.num_replicas)
        whole = share.batch_size * share.num_replicas

        @lru_cache(maxsize=2)
        def order(epoch: int) -> Indices:
            return epoch_order(len(split), seed, epoch)

        def indices(step: int) -> Indices:
            epoch, within = divmod(step, self._length)
            batch = order(epoch)[within * whole : (within + 1) * whole]
            return batch[replica_rows(share.batch_size, share.replica)]

        @lru_cache(maxsize=PREFETCH + 4)
        def drawn(step: int) -> Draws:
            epoch, within = divmod(step, self._length)
            return draws(
                config,
                dataset.eigenvalues,
                dataset.eigenvectors,
                seed=seed,
                epoch=epoch,
                step=within,
                batch_size=share.batch_size,
                replica=share.replica,
                num_replicas=share.num_replicas,
                span=span,
                epochs_done=step / self._length,
            )

        own = share.own_rows(share.batch_size)
        reader = _ReadAhead(split, lambda step: indices(step)[own])

        def source(info: Any) -> Any:
            step = first_step + info.iteration
            batch = drawn(step)
            inputs = (reader.take(step), batch.offsets[own], batch.flips[own])
            return inputs if config.flip else inputs[:2]

        self._indices, self._draws = indices, drawn
        device = decoding_device(config, share.device)
        pipeline = training_crops(
            source,
            config.crop_size,
            dataset.size,
            dataset.needs_resize,
            config.flip,
            device,
            **_options(share, device),
        )
        self._decoder = _Decoder(pipeline, reader, split, share)
        self._normalise = _normaliser(dataset, config, share.device)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        step = self._first_step + self._taken
        self._taken += 1
        indices, batch = self._indices(step), self._draws(step)
        crops = self._decoder.run(indices)
        images = self._normalise(crops, batch.offsets, batch.flips, batch.noise, batch.scale)
        return _deliver(images, self._split, indices, self._share.device)

    def __len__(self) -> int:
        """Steps in an epoch."""
        return self._length

    def close(self) -> None:
        self._decoder.close()


class ValidationFeed:
    """This replica's share of a split, once, the last partial batch included."""

    def __init__(self, dataset: DataSet, split: Split, config: InputConfig, share: Share, *, crops: str) -> None:
        from twotower.data.pipeline import validation_crops

        count, span = len(split), crop_span(config, dataset.size)
        part = np.arange(
            share.replica * count // share.num_replicas, (share.replica + 1) * count // share.num_replicas
        )
        self._parts = [part[i : i + share.batch_size] for i in range(0, len(part), share.batch_size)]
        self._split, self._share, self._next = split, share, 0
        self._views = ten_views(span) if crops == "ten" else [(span // 2, span // 2, 0)]

        def own(number: int) -> Indices | None:
            return (
                self._parts[number][share.own_rows(len(self._parts[number]))] if number < len(self._parts) else None
            )

        reader = _ReadAhead(split, own)

        def source(info: Any) -> Any:
            if info.iteration >= len(self._parts):
                raise StopIteration
            return reader.take(info.iteration)

        device = decoding_device(config, share.device)
        pipeline = validation_crops(
            source,
            self._views,
            config.crop_size,
            dataset.size,
            dataset.needs_resize,
            device,
            **_options(share, device),
        )
        self._decoder = _Decoder(pipeline, reader, split, share)
        self._normalise = _normaliser(dataset, config, share.device)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._next >= len(self._parts):
            raise StopIteration
        indices = self._parts[self._next]
        self._next += 1
        crops = self._decoder.run(indices)
        views = np.tile(np.array(self._views, np.int32), (len(indices), 1))
        single = crops.view(-1, *crops.shape[-3:])
        images = self._normalise(single, views[:, :2], views[:, 2]).view(crops.shape)
        return _deliver(images, self._split, indices, self._share.device)

    def __len__(self) -> int:
        """Batches."""
        return len(self._parts)

    def close(self) -> None:
        self._decoder.close()


def open_train(dataset: DataSet, config: InputConfig, share: Share, *, seed: int, first_step: int) -> Feed:
    """Endless training batches. Raises: ValueError if the set has not one whole batch."""
    if dataset.is_synthetic:
        return SyntheticFeed(dataset, config, share, seed=seed, num_batches=None, crops="centre")
    return TrainFeed(dataset, config, share, seed=seed, first_step=first_step)


def open_validation(
    dataset: DataSet, config: InputConfig, share: Share, *, crops: str = "centre", split: str = "val"
) -> Feed:
    """This replica's part of the images of `val` or `test`, in the `centre` crop or in `ten`.

    Raises: ValueError if the data set has no such split, or smaller images than the crops.
    """
    images = dataset.split(split)
    if dataset.is_synthetic:
        num_batches = max(1, len(images) // share.num_replicas // share.batch_size)
        return SyntheticFeed(dataset, config, share, seed=0, num_batches=num_batches, crops=crops)
    return ValidationFeed(dataset, images, config, share, crops=crops)
