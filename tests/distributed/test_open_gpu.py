"""What is set before a GPU is used, with the answers of torch patched."""

import os

import pytest
import torch

from twotower.distributed import world

GPU = torch.device("cuda", 1)


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(world, "check_capability", lambda device: None)
    monkeypatch.setattr(world, "check_free", lambda device: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    for name in ("TORCH_NCCL_HIGH_PRIORITY", "TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("_gpu")
def test_swaps_go_before_convolutions_and_those_are_searched() -> None:
    world.open_gpu(GPU)
    assert torch.backends.cudnn.benchmark
    assert os.environ["TORCH_NCCL_HIGH_PRIORITY"] == "1"
    assert os.environ["TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC"] == "1000"


@pytest.mark.usefixtures("_gpu")
def test_a_persons_own_settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_NCCL_HIGH_PRIORITY", "0")
    world.open_gpu(GPU)
    assert os.environ["TORCH_NCCL_HIGH_PRIORITY"] == "0"
