"""What DALI is asked for and says, where images are decoded on a GPU."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from twotower.data.batch import Share
from twotower.data.dali_loader import MOST_THREADS_ON_GPU, DaliLoader, _pipeline, without_npp_warning
from twotower.data.loader import Cutting

pytest.importorskip("nvidia.dali")


def _warnings_of_a_gpu_build(monkeypatch: pytest.MonkeyPatch, missing: str) -> list[str]:
    """What DALI warns of when a pipeline for a GPU is built and the library `missing` is not there."""
    from nvidia.dali import backend

    monkeypatch.setattr(backend, "cuda_checked", False)
    for library in ("GetCudaVersion", "GetCufftVersion", "GetNppVersion"):
        monkeypatch.setattr(backend, library, lambda found=-1 if library == missing else 13000: found)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with without_npp_warning():
            backend.check_cuda_runtime()
    return [str(warning.message) for warning in caught]


def test_a_missing_npp_which_nothing_here_uses_frightens_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _warnings_of_a_gpu_build(monkeypatch, "GetNppVersion") == []


def test_what_else_dali_misses_is_still_said(monkeypatch: pytest.MonkeyPatch) -> None:
    (warning,) = _warnings_of_a_gpu_build(monkeypatch, "GetCufftVersion")
    assert "cuFFT" in warning


@pytest.mark.parametrize(
    ("device", "threads", "taken"), [("gpu", 32, MOST_THREADS_ON_GPU), ("gpu", 2, 2), ("cpu", 32, 32)]
)
def test_threads_that_decode_on_a_gpu_are_few(
    device: str, threads: int, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from twotower.data import dali_pipeline

    given: dict[str, Any] = {}
    monkeypatch.setattr(dali_pipeline, "training_crops", lambda *arguments, **options: given.update(options))
    cutting = Cutting(crop_size=224, size=256, resize=False, mirrors=True, views=None)
    _pipeline(lambda step: None, cutting, Share(8, 0, 1, torch.device("cpu"), threads), device)
    assert given["num_threads"] == taken


def test_images_of_a_gpu_are_copied_on_the_stream_that_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """By fakes: DALI's own memory would be given back only after the whole GPU has been waited for."""
    from nvidia.dali.plugin import pytorch

    seen: list[Any] = []

    def copy(tensor: Any, arr: torch.Tensor, cuda_stream: Any) -> None:
        seen.append(cuda_stream)
        arr.fill_(7)

    monkeypatch.setattr(pytorch, "feed_ndarray", copy)
    loader = object.__new__(DaliLoader)
    loader._share, loader._device = Share(2, 0, 1, torch.device("cpu"), 1), "gpu"
    monkeypatch.setattr(DaliLoader, "_stream", lambda self: "torch's stream")
    images = SimpleNamespace(as_tensor=lambda: SimpleNamespace(shape=lambda: [2, 4, 4, 3]))
    assert torch.equal(loader._to_torch(images), torch.full((2, 4, 4, 3), 7, dtype=torch.uint8))
    assert seen == ["torch's stream"]
