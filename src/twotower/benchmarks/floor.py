"""The floor under a step: its convolutions and matrix products alone, as torch computes them, one after the other.

Each tower's process computes those of its tower, both at the same time, as in training. No tower can be faster with
the same arithmetic, and what it takes longer is the cost of all else.
"""

import math
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from twotower.benchmarks.take_turns import count_steps, time_steps
from twotower.config import BenchmarkConfig
from twotower.ground.devices import choose_memory_format
from twotower.ground.memory import keep_freed_memory
from twotower.ground.precision import set_precision
from twotower.ground.processes import die_with_parent
from twotower.model.layer_table import Row, plan


class Work(NamedTuple):
    """A convolution or a product of a tower, forward and backward."""

    layer: str
    run: Callable[[], object]


def _convolution(row: Row, tower: int, batch: int, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    c, memory_format = row.config, choose_memory_format(device)
    side = row.size_in + c.overhang

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=memory_format)

    x = draw(batch, row.maps_in[tower], side, side)
    weight = draw(row.kernels[tower], row.maps_in[tower] // c.groups, c.size, c.size)
    bias = torch.zeros(row.kernels[tower], dtype=dtype, device=device)
    grad = draw(batch, row.kernels[tower], row.size_conv, row.size_conv)
    wanted = (c.reads != "image", True, True)  # nobody asks for the gradient of the image

    def run() -> None:
        F.conv2d(x, weight, bias, c.stride, c.pad, groups=c.groups)
        torch.ops.aten.convolution_backward(
            grad, x, weight, [len(bias)], [c.stride] * 2, [c.pad] * 2, [1, 1], False, [0, 0], c.groups, wanted
        )

    return run


def _product(row: Row, tower: int, batch: int, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    units = row.maps_in[tower] * row.size_in**2
    x = torch.randn(batch, units, device=device).to(dtype)
    weight = torch.randn(row.kernels[tower], units, device=device).to(dtype)
    grad = torch.randn(batch, row.kernels[tower], device=device).to(dtype)

    def run() -> None:
        F.linear(x, weight)
        torch.mm(grad, weight)
        torch.mm(grad.t(), x)

    return run


def _local_products(
    row: Row, tower: int, batch: int, dtype: torch.dtype, device: torch.device
) -> Callable[[], object]:
    """Of a local layer: one product for each output pixel, without the copies of the windows."""
    pixels, units, kernels = row.size_conv**2, row.fans(tower)[0], row.kernels[tower]
    x = torch.randn(pixels, batch, units, device=device).to(dtype)
    weight = torch.randn(pixels, units, kernels, device=device).to(dtype)
    grad = torch.randn(pixels, batch, kernels, device=device).to(dtype)

    def run() -> None:
        torch.bmm(x, weight)
        torch.bmm(grad, weight.transpose(1, 2))
        torch.bmm(x.transpose(1, 2), grad)

    return run


MAKERS = {"conv": _convolution, "local": _local_products, "linear": _product}


def plan_work(settings: BenchmarkConfig, tower: int, precision: str, device: torch.device) -> list[Work]:
    """All that a tower computes in a step; a layer that reads both towers has two of each."""
    dtype, work = torch.bfloat16 if precision == "bf16" else torch.float32, []
    for row in plan(settings.network, settings.num_classes):
        run = MAKERS[row.config.kind](row, tower, settings.optim.batch_size, dtype, device)
        work += [Work(row.name, run)] * (2 if row.reads_both else 1)
    return work


def count_flops(settings: BenchmarkConfig) -> float:
    """Multiplications and additions of one image in both towers, forward and backward."""
    total = 0.0
    for row in plan(settings.network, settings.num_classes):
        c = row.config
        for kernels, maps in zip(row.kernels, row.maps_in, strict=True):
            inputs = maps * (row.size_in**2 if c.kind == "linear" else c.size**2 / c.groups)
            outputs = kernels * (1 if c.kind == "linear" else row.size_conv**2)
            ways = 2 if c.reads == "image" else 3
            total += 2 * inputs * outputs * ways * (2 if row.reads_both else 1)
    return total


def run_floor(tower: int, settings: BenchmarkConfig, precision: str, device: str, pipe: Connection) -> None:
    """Answers with a Turn, until `end`; `parts_ms` has the milliseconds of each layer."""
    die_with_parent()
    keep_freed_memory()
    set_precision(precision)
    place = torch.device(device)
    torch.set_num_threads(settings.machine.threads or torch.get_num_threads())
    work = plan_work(settings, tower, precision, place)

    def step() -> None:
        for each in work:
            each.run()

    while pipe.recv() != "end":
        step()
        timed = time_steps(place, count_steps(place, settings.steps), step)
        parts: dict[str, float] = {}
        for each in work:
            seconds = time_steps(place, 1, each.run).seconds
            parts[each.layer] = parts.get(each.layer, 0.0) + 1e3 * seconds
        assert math.isfinite(timed.seconds)
        pipe.send(timed.turn(parts_ms=parts))
