"""Crops made by DALI, on the CPU or on a GPU: feeds the graph of `dali_pipeline` from a source."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from twotower.data.batch import Share
from twotower.data.dataset import Split
from twotower.data.loader import PREFETCH, Cutting, Indices, Source

# Each thread of a pipeline that decodes on a GPU holds 16 MB there and 16 MB of pinned memory (DALI's defaults), and
# only hands images over; so many threads serve any GPU, and a host with 64 cores would spend gigabytes on more.
MOST_THREADS_ON_GPU = 8


@contextmanager
def without_npp_warning() -> Iterator[None]:
    """Silences DALI where it misses NPP, a library that comes with no wheel and that no operator here uses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s).*\bNPP is typically")
        yield


class DaliLoader:
    """The loader of `input.loader=dali`; see `loader.Loader`.

    Args:
        device: `cpu` or `gpu`, the place of the decoding.
    """

    def __init__(self, source: Source, split: Split, cutting: Cutting, share: Share, device: str) -> None:
        self._split, self._share, self._device = split, share, device
        self._pipeline = _pipeline(source, cutting, share, device)
        with without_npp_warning():
            self._pipeline.build()

    def run(self, rows: Indices) -> Tensor:
        try:
            (images,) = self._pipeline.run(self._stream())
        except RuntimeError as error:
            names = ", ".join(self._split.name(int(row)) for row in rows)
            raise RuntimeError(
                f"DALI failed on a batch of these files, which it once could decode: {names}"
            ) from error
        return self._to_torch(images)

    def _to_torch(self, images: Any) -> Tensor:
        """The images in memory of torch: on a GPU a copy, which takes microseconds.

        Without it DALI would wait for the whole GPU before it reuses its own memory, in a thread of its own.
        """
        if self._device == "cpu":
            return from_dlpack(images.as_tensor())
        from nvidia.dali.plugin.pytorch import feed_ndarray

        tensor = images.as_tensor()
        copied = torch.empty(tensor.shape(), dtype=torch.uint8, device=self._share.device)
        feed_ndarray(tensor, copied, cuda_stream=self._stream())
        return copied

    def _stream(self) -> Any:
        """The CUDA stream of torch's kernels: DALI then reuses its memory only after they have read it."""
        return torch.cuda.current_stream(self._share.device) if self._share.device.type == "cuda" else None

    def close(self) -> None:
        self._pipeline = None  # DALI frees its memory and threads with the object


def _pipeline(source: Source, cutting: Cutting, share: Share, device: str) -> Any:
    from twotower.data import dali_pipeline

    options = {
        "batch_size": len(range(*share.own_rows(share.batch_size).indices(share.batch_size))),
        "num_threads": min(share.threads, MOST_THREADS_ON_GPU) if device == "gpu" else share.threads,
        "device_id": (share.device.index or 0) if device == "gpu" else None,
        "prefetch_queue_depth": PREFETCH,
    }

    def drawn(info: Any) -> Any:
        encoded = source(info.iteration)
        assert encoded is not None, "training does not end"
        inputs = (encoded.contents, encoded.offsets, encoded.flips)
        return inputs if cutting.mirrors else inputs[:2]

    def fixed(info: Any) -> Any:
        encoded = source(info.iteration)
        if encoded is None:
            raise StopIteration
        return encoded.contents

    if cutting.views is None:
        return dali_pipeline.training_crops(
            drawn, cutting.crop_size, cutting.size, cutting.resize, cutting.mirrors, device, **options
        )
    return dali_pipeline.validation_crops(
        fixed, cutting.views, cutting.crop_size, cutting.size, cutting.resize, device, **options
    )
