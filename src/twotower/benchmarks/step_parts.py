"""Where the time of a training step goes, in one tower, while the other tower does the same."""

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from twotower.benchmarks.take_turns import synchronize, time_steps
from twotower.config import BenchmarkConfig
from twotower.distributed.transport import Link
from twotower.model.tower import Tower
from twotower.training.trainer import Trainer

PROFILED_STEPS, STEP_TIMES, SWAP_TIMES, UPDATE_TIMES = 3, 3, 5, 4  # times that a part is repeated

# Operators of torch by the part of a step that they belong to; the rest is told apart by the shape of its weights.
_STEPS = "ReLU, norms and pooling"
_PARTS = {
    _STEPS: ("Fused", "ResponseNorm", "pool", "threshold_backward", "clamp_min", "relu", "tanh", "sigmoid"),
    "update": ("sgd",),
}


def time_parts(trainer: Trainer, step: Callable[[], None], settings: BenchmarkConfig) -> dict[str, float]:
    """Milliseconds of each part of a step, then of single parts by themselves.

    Args:
        step: makes one step of training.
    """
    return {
        **{f"step: {name}": value for name, value in _profile_step(trainer, step).items()},
        **_time_steps_of_layers(trainer, settings),
        **_time_swaps(trainer, settings.optim.batch_size),
        "update alone": _time_update(trainer),
    }


def _profile_step(trainer: Trainer, step: Callable[[], None]) -> dict[str, float]:
    """A step by the profiler of torch, without what the profiler itself costs."""
    world = trainer.world
    step()
    world.link.read_waited_ms()
    wall = 1e3 * time_steps(world.device, PROFILED_STEPS, step).seconds
    waited = world.link.read_waited_ms() / PROFILED_STEPS
    on_gpu = world.device.type == "cuda"
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes lines of its own
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, record_shapes=True) as profiler:
        for _ in range(PROFILED_STEPS):
            step()
        synchronize(world.device)
    trainer.window.pending.clear()
    world.link.read_waited_ms()
    shapes = _shapes_of(trainer.tower)
    parts: dict[str, float] = {}
    for event in profiler.key_averages(group_by_input_shape=True):
        name = _name_part(event.key, event.input_shapes, shapes)
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if name is not None:
            parts[name] = parts.get(name, 0.0) + spent / 1e3 / PROFILED_STEPS
    layers = {name: parts.pop(name, 0.0) for name in dict.fromkeys(shapes.values())}
    return {
        **layers,
        **parts,
        "exchange": waited,
        "other": max(0.0, wall - waited - sum([*layers.values(), *parts.values()])),
    }


def _shapes_of(tower: Tower) -> dict[tuple[int, ...], str]:
    """The layers by the shape of their weights; layers of equal shape share a name."""
    shapes: dict[tuple[int, ...], str] = {}
    for name, parameter in tower.paper_named_parameters().items():
        layer, _, kind = name.partition(".")
        if kind.startswith("weight"):
            shape = tuple(parameter.shape)
            known = shapes.get(shape, layer)
            shapes[shape] = layer if layer in known.split("+") else f"{known}+{layer}"
    return shapes


def _name_part(operator: str, given: Any, shapes: dict[tuple[int, ...], str]) -> str | None:
    """The part that an operator belongs to; None for what is counted as other."""
    for part, words in _PARTS.items():
        if any(word in operator for word in words):
            return part
    found = [tuple(shape) for shape in given if isinstance(shape, list | tuple)]
    if "convolution" in operator:
        return next((shapes[shape] for shape in found if shape in shapes), None)
    if operator in ("aten::mm", "aten::addmm"):
        # The gradient of a weight is a product of two others, whose outer sizes are its own.
        two = [shape for shape in found if len(shape) == 2]
        candidates = [*two, *(shape[::-1] for shape in two)]
        if len(two) >= 2:
            candidates.append((two[-2][0], two[-1][1]))
        return next((shapes[shape] for shape in candidates if shape in shapes), None)
    return None


def _both_ways(call: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Callable[[], None]:
    """A function that goes forward and backward."""

    def step() -> None:
        x.grad = None
        call(x).backward(grad)

    return step


def _time_steps_of_layers(trainer: Trainer, settings: BenchmarkConfig) -> dict[str, float]:
    """ReLU, norms and pooling of each layer that has norms: in one pass, and one torch call after the other."""
    world, parts = trainer.world, {}
    for row, layer in zip(trainer.tower.rows, trainer.tower.table(), strict=True):
        if "lrn" not in row.config.then and "spatial_norm" not in row.config.then:
            continue
        shape = (settings.optim.batch_size, row.kernels[trainer.tower.tower], row.size_conv, row.size_conv)
        maps = torch.randn(shape, device=world.device) * 20
        maps = maps.contiguous(memory_format=world.memory_format).requires_grad_()
        one_by_one = nn.Sequential(*[nn.ReLU() if isinstance(step, nn.ReLU) else step for step in layer.after])
        ways: dict[str, Callable[[Tensor], Tensor]] = {"one by one": one_by_one}
        if layer.fused is not None and layer.fused.fits(maps):
            ways["in one pass"] = layer.fused
        with torch.no_grad():
            grad = torch.randn_like(one_by_one(maps))
        for name, way in ways.items():
            step = _both_ways(way, maps, grad)
            step()
            milliseconds = 1e3 * time_steps(world.device, STEP_TIMES, step).seconds
            parts[f"{', '.join(row.config.then)} of {row.name}, {name}"] = milliseconds
    return parts


def _swap(link: Link, half: Tensor) -> None:
    link.swap(half).wait()


def _time_swaps(trainer: Trainer, batch: int) -> dict[str, float]:
    world, parts = trainer.world, {}
    for row in trainer.tower.rows:
        if row.reads_both:
            size = () if row.config.kind == "linear" else (row.size_in, row.size_in)
            half = torch.randn((batch, row.maps_in[0], *size), device=world.device)
            half = half.bfloat16() if world.precision == "bf16" else half
            seconds = time_steps(world.device, SWAP_TIMES, partial(_swap, world.link, half)).seconds
            parts[f"swap before {row.name}, nothing to overlap"] = 1e3 * seconds
    return parts


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
