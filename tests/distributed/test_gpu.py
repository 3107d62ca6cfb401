"""The same on GPUs; each test is skipped with its reason where there is none."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from helpers.processes import run_processes
from helpers.towers import load_network
from twotower.config import InputConfig
from twotower.data.batch import Share
from twotower.data.dataset import DataSet, FileSplit
from twotower.data.feed import open_train
from twotower.distributed.exchange import InProcessExchange, WireExchange
from twotower.model.layers import LocalResponseNorm
from twotower.model.tower import Tower, forward

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch sees: make test-gpu"),
]
NUM_CLASSES, BATCH = 10, 8


def build(tower: int, device: torch.device | str) -> Tower:
    network = load_network("alexnet_2012", width=0.25)
    return Tower(network, NUM_CLASSES, tower, 0).on(torch.device(device), torch.contiguous_format).double()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, 3, 224, 224, generator=generator, dtype=torch.float64) * 50
    return images, torch.randint(NUM_CLASSES, (BATCH,), generator=generator)


def gradients(tower: Tower) -> dict[str, torch.Tensor]:
    return {name: p.grad.cpu() for name, p in tower.paper_named_parameters().items() if p.grad is not None}


def one_step(world) -> tuple[str, torch.Tensor, dict[str, torch.Tensor]]:
    tower = build(world.tower, world.device).eval()
    images, labels = (t.to(world.device) for t in batch())
    exchange = WireExchange(world.link, world.tower, tower.rows[-1].kernels)
    logits = forward([tower], images, exchange)
    F.cross_entropy(logits, labels).backward()
    return world.transport, logits.detach().cpu(), gradients(tower)


def test_two_processes_on_gpus_agree_with_one_on_the_cpu(tmp_path: Path) -> None:
    """Over NCCL where there are two GPUs, staged through pinned memory where both towers share one."""
    towers = [build(t, "cpu").eval() for t in (0, 1)]
    images, labels = batch()
    logits = forward(towers, images, InProcessExchange())
    F.cross_entropy(logits, labels).backward()
    found = run_processes(one_step, tmp_path, device="cuda", deadline=180.0)
    for t, tower in enumerate(towers):
        transport, theirs, gradient = found[t]
        assert transport == ("nccl" if torch.cuda.device_count() >= 2 else "shared_gpu")
        torch.testing.assert_close(theirs, logits.detach(), rtol=1e-8, atol=1e-10)
        expected = gradients(tower)
        assert gradient.keys() == expected.keys()
        for name in expected:
            assert (gradient[name] - expected[name]).norm() <= 1e-8 * expected[name].norm(), name


def test_lrn_is_deterministic_and_right_on_a_gpu() -> None:
    x = torch.randn(4, 48, 55, 55, dtype=torch.float64) * 20
    results = []
    torch.use_deterministic_algorithms(True)
    try:
        for device in ("cpu", "cuda", "cuda"):
            module = LocalResponseNorm(48, 5, 2.0, 1e-4, True, 0.75).to(device)
            leaf = x.to(device).requires_grad_()
            y = module(leaf)
            y.square().sum().backward()
            assert leaf.grad is not None
            results.append((y.detach().cpu(), leaf.grad.cpu()))
    finally:
        torch.use_deterministic_algorithms(False)
    for ours, theirs in zip(results[0], results[1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(a, b) for a, b in zip(results[1], results[2], strict=True))


def test_dali_on_a_gpu_agrees_with_dali_on_the_cpu(tmp_path: Path) -> None:
    """PNG, so that decoding is exact; 256 x 256, so that nothing is resized: every later stage must be equal."""
    stream = np.random.default_rng(0)
    paths = []
    for i in range(BATCH):
        Image.fromarray(stream.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        paths.append(f"{i}.png")
    split = FileSplit(tmp_path, paths, np.arange(BATCH))
    mean = stream.uniform(90, 130, (256, 256, 3)).astype(np.float32)
    dataset = DataSet(
        [f"{i}" for i in range(BATCH)], split, split, mean, np.array([400.0, 1400.0, 15000.0]), np.eye(3)
    )
    batches = []
    for device in ("cpu", "cuda:0"):
        share = Share(BATCH, 0, 1, torch.device(device), 2)
        feed = open_train(dataset, InputConfig(), share, seed=0, first_step=0)
        batches.append(next(feed))
        feed.close()
    assert batches[1].images.device.type == "cuda"
    torch.testing.assert_close(batches[1].images.cpu(), batches[0].images, rtol=0, atol=1e-3)
    assert torch.equal(batches[1].labels.cpu(), batches[0].labels)
