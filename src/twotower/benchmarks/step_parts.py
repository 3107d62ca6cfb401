"""Times of single parts of a training step in one tower, while the other tower does the same."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from twotower.benchmarks.take_turns import synchronize, time_steps
from twotower.config import BenchmarkConfig
from twotower.distributed.transport import Link
from twotower.model.layers import LocalResponseNorm
from twotower.training.trainer import Trainer

CONV1 = (64, 48, 55, 55)  # 64 images of conv1 in one tower: 48 kernels of 55 x 55 pixels (section 3.5 of the paper)
NORM_TIMES, SWAP_TIMES, UPDATE_TIMES = 3, 5, 4  # times that a part is repeated


def time_parts(trainer: Trainer, settings: BenchmarkConfig) -> dict[str, float]:
    """Milliseconds of each part: the norms and swaps of this network, two implementations of a norm, the update."""
    return {
        **_time_norms(trainer, settings),
        **_time_swaps(trainer, settings.optim.batch_size),
        **_compare_norms(trainer),
        "update": _time_update(trainer),
    }


def _both_ways(module: torch.nn.Module, x: Tensor) -> Callable[[], None]:
    """A function that goes forward and backward through the module."""

    def step() -> None:
        x.grad = None
        module(x).sum().backward()

    return step


def _draw_maps(trainer: Trainer, shape: tuple[int, ...]) -> Tensor:
    world = trainer.world
    maps = torch.randn(shape, device=world.device).contiguous(memory_format=world.memory_format)
    return maps.requires_grad_()


def _time_norm(trainer: Trainer, norm: torch.nn.Module, maps: Tensor) -> float:
    step = _both_ways(norm, maps)
    step()
    return 1e3 * time_steps(trainer.world.device, NORM_TIMES, step)


def _time_norms(trainer: Trainer, settings: BenchmarkConfig) -> dict[str, float]:
    lrn, parts = settings.network.lrn, {}
    for row in trainer.tower.rows:
        if lrn is not None and "lrn" in row.config.then:
            size = row.size_out if row.config.then.index("lrn") > row.config.then.index("pool") else row.size_conv
            maps = _draw_maps(trainer, (settings.optim.batch_size, row.kernels[0], size, size))
            norm = LocalResponseNorm(row.kernels[0], lrn.n, lrn.k, lrn.alpha, lrn.alpha_over_n, lrn.beta)
            parts[f"LRN after {row.name}"] = _time_norm(trainer, norm.to(trainer.world.device), maps)
    return parts


def _swap(link: Link, half: Tensor) -> None:
    link.swap(half).wait()


def _time_swaps(trainer: Trainer, batch: int) -> dict[str, float]:
    world, parts = trainer.world, {}
    for row in trainer.tower.rows:
        if row.reads_both:
            size = () if row.config.kind == "linear" else (row.size_in, row.size_in)
            half = torch.randn((batch, row.maps_in[0], *size), device=world.device)
            seconds = time_steps(world.device, SWAP_TIMES, partial(_swap, world.link, half))
            parts[f"swap before {row.name}, nothing to overlap"] = 1e3 * seconds
    return parts


def _compare_norms(trainer: Trainer) -> dict[str, float]:
    """Our norm and torch's, with the constants of the paper (section 3.3)."""
    maps = _draw_maps(trainer, CONV1)
    norms: dict[str, torch.nn.Module] = {
        "ours": LocalResponseNorm(CONV1[1], 5, 2.0, 1e-4, True, 0.75).to(trainer.world.device),
        "torch's": torch.nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0),
    }
    shape = " x ".join(str(size) for size in CONV1)
    return {f"LRN of {shape}, {name}": _time_norm(trainer, norm, maps) for name, norm in norms.items()}


def _time_update(trainer: Trainer) -> float:
    """Median milliseconds of the optimiser's step."""
    seconds = []
    for _ in range(UPDATE_TIMES):
        for parameter in trainer.tower.parameters():
            parameter.grad = torch.zeros_like(parameter)
        synchronize(trainer.world.device)  # filling the gradients is no part of the update
        began = time.perf_counter()
        trainer.optimiser.step()
        synchronize(trainer.world.device)
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds)
