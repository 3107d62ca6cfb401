"""How fast: the two towers in two processes against one process, from what input, and what each part of a step takes.

All contestants stay alive and take turns in each round, so that a slow minute of the machine hits all of them;
ratios are taken within a round, and medians over the rounds.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from twotower.benchmarks.baseline import build_baseline
from twotower.benchmarks.contest import Contestant, Turn, synchronize, timed
from twotower.benchmarks.input import benchmark_input, make_files
from twotower.config import BenchmarkConfig, Config, DataConfig, LoggingConfig, ScheduleConfig
from twotower.data.batch import Feed
from twotower.data.dataset import DataSet
from twotower.data.feed import open_train
from twotower.data.load_data import load
from twotower.distributed.transport import Link
from twotower.distributed.world import (
    Place,
    cores,
    die_with_parent,
    open_world,
    stay_on_this_host,
    threads_per_process,
)
from twotower.ground.devices import choose_device
from twotower.ground.memory import peak_megabytes
from twotower.model.layers import LocalResponseNorm
from twotower.model.table import plan
from twotower.training.trainer import Trainer

TOWERS = 2  # what is compared with one process

# What the towers are fed in their turns; `once`: each decodes half of a batch, `twice`: both decode all of it.
FEEDS = ("prepared once", "prepared twice", "raw once", "raw twice")


def _trainer_config(settings: BenchmarkConfig, data: DataConfig) -> Config:
    return Config(
        network=settings.network,
        data=data,
        input=settings.input,
        optim=settings.optim,
        schedule=ScheduleConfig(rule="fixed", epochs=1_000_000),
        logging=LoggingConfig(wandb="disabled"),
        machine=settings.machine,
        name="benchmark",
    )


def _synthetic(settings: BenchmarkConfig) -> DataConfig:
    batch = settings.optim.batch_size
    return DataConfig(kind="synthetic", num_train=batch * 100, num_val=batch, num_classes=settings.num_classes)


def _tower_process(
    tower: int, settings: BenchmarkConfig, files: dict[str, DataConfig], rendezvous: str, pipe: Connection
) -> None:
    """One of the two towers: answers `synthetic`, `training` and `parts` with a Turn."""
    die_with_parent()
    with open_world(settings.machine, Place(tower, TOWERS, tower, TOWERS), rendezvous) as world:
        datasets = {name: load(one) for name, one in {"synthetic": _synthetic(settings), **files}.items()}
        # One network serves all inputs, so that memory is that of one training.
        config = _trainer_config(settings, _synthetic(settings))
        trainer = Trainer(config, world, datasets["synthetic"], Path("."), None)
        trainer.optimiser.set_rate(1e-6)  # the weights must stay finite over any number of steps
        while (what := pipe.recv()) != "end":
            if what == "parts":
                pipe.send(Turn(0.0, 0.0, _parts(trainer, settings), peak_megabytes(world.device)))
                continue
            if what == "training":
                pipe.send(Turn(0.0, series=_alternate(trainer, datasets, settings)))
                continue
            with closing(open_train(datasets[what], settings.input, trainer.share, seed=0, first_step=0)) as feed:
                step = partial(_step, trainer, feed)
                step()  # buffers, caches
                world.link.read_waited_ms()
                seconds = timed(world.device, settings.steps, step)
            waited = world.link.read_waited_ms() / settings.steps
            trainer.window.pending.clear()
            pipe.send(Turn(seconds, waited, None, peak_megabytes(world.device)))


def _alternate(trainer: Trainer, datasets: dict[str, DataSet], settings: BenchmarkConfig) -> dict[str, list[float]]:
    """Single steps from each kind of input in turn, so that a slow second of the machine hits all of them.

    What a step takes out of a feed is replaced while that same step computes, so its cost falls into it.
    """
    world, series = trainer.world, {}
    with ExitStack() as stack:
        feeds = {}
        for name in ("synthetic", *FEEDS):
            kind, _, decoding = name.partition(" ")
            if kind in datasets:
                share = replace(trainer.share, partner=world.link if decoding == "once" else None)
                feed = open_train(datasets[kind], settings.input, share, seed=0, first_step=0)
                feeds[name] = stack.enter_context(closing(feed))
                _step(trainer, feed)
                series[name] = list[float]()
        names = list(feeds)
        for cycle in range(settings.steps):
            for place in range(len(names)):
                name = names[(place + cycle) % len(names)]  # none always follows the same one
                series[name].append(timed(world.device, 1, partial(_step, trainer, feeds[name])))
                trainer.window.pending.clear()
    world.link.read_waited_ms()
    return series


def _step(trainer: Trainer, feed: Feed) -> None:
    trainer.train_step(next(feed))


def _swap(link: Link, half: Tensor) -> None:
    link.swap(half).wait()


def _parts(trainer: Trainer, settings: BenchmarkConfig) -> dict[str, float]:
    """Milliseconds of single parts of a step in this tower, while the other tower does the same."""
    world, batch = trainer.world, settings.optim.batch_size
    parts: dict[str, float] = {}

    def forward_backward(module: torch.nn.Module, x: Tensor) -> Callable[[], None]:
        def step() -> None:
            x.grad = None
            module(x).sum().backward()

        return step

    for row in trainer.tower.rows:
        if "lrn" in row.config.then and settings.network.lrn is not None:
            size = row.size_out if row.config.then.index("lrn") > row.config.then.index("pool") else row.size_conv
            x = torch.randn(batch, row.kernels[0], size, size, device=world.device)
            x = x.contiguous(memory_format=world.memory_format).requires_grad_()
            lrn = settings.network.lrn
            module = LocalResponseNorm(row.kernels[0], lrn.n, lrn.k, lrn.alpha, lrn.alpha_over_n, lrn.beta)
            step = forward_backward(module.to(world.device), x)
            step()
            parts[f"LRN after {row.name}"] = 1e3 * timed(world.device, 3, step)
    for row in trainer.tower.rows:
        if row.reads_both:
            shape = (
                (batch, row.maps_in[0])
                if row.config.kind == "linear"
                else (batch, row.maps_in[0], row.size_in, row.size_in)
            )
            half = torch.randn(shape, device=world.device)
            parts[f"swap before {row.name}, nothing to overlap"] = 1e3 * timed(
                world.device, 5, partial(_swap, world.link, half)
            )

    x = torch.randn(64, 48, 55, 55, device=world.device).contiguous(memory_format=world.memory_format)
    ours = LocalResponseNorm(48, 5, 2.0, 1e-4, True, 0.75).to(world.device)
    torchs = torch.nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0)
    norms: dict[str, torch.nn.Module] = {"ours": ours, "torch's": torchs}
    for name, norm in norms.items():
        step = forward_backward(norm, x.requires_grad_())
        step()
        parts[f"LRN of 64 x 48 x 55 x 55, {name}"] = 1e3 * timed(world.device, 3, step)

    def update() -> None:
        for parameter in trainer.tower.parameters():
            parameter.grad = torch.zeros_like(parameter)
        began = time.perf_counter()
        trainer.optimiser.step()
        synchronize(world.device)
        update_seconds.append(time.perf_counter() - began)

    update_seconds: list[float] = []
    for _ in range(4):
        update()
    parts["update"] = 1e3 * statistics.median(update_seconds)
    return parts


def _single_process(settings: BenchmarkConfig, memory_format: torch.memory_format, pipe: Connection) -> None:
    """The network in one piece, all cores: answers `synthetic` with a Turn."""
    die_with_parent()
    torch.set_num_threads(cores())
    device = choose_device(settings.machine.device)
    torch.manual_seed(0)
    network = build_baseline(settings.network, settings.num_classes).to(device).to(memory_format=memory_format)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)
    size = settings.network.image_size
    images = torch.randn(settings.optim.batch_size, 3, size, size, device=device) * 50
    images = images.contiguous(memory_format=memory_format)
    labels = torch.randint(settings.num_classes, (settings.optim.batch_size,), device=device)

    def step() -> None:
        optimiser.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimiser.step()

    while pipe.recv() != "end":
        step()
        pipe.send(Turn(timed(device, settings.steps, step), 0.0, None, peak_megabytes(device)))


def benchmark(settings: BenchmarkConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs all rounds. Returns what benchmark.json holds: per round and medians, units in the names.

    Raises: ValueError for a folder that cannot be used.
    """
    plan(settings.network, settings.num_classes)
    if settings.network.towers != TOWERS and settings.part != "input":
        raise ValueError(
            f"network={settings.network.name} is one tower, and there is nothing to compare it with; choose a "
            "network of two towers, or part=input."
        )
    if settings.part in ("all", "towers"):
        with torch.device("meta"):
            build_baseline(settings.network, settings.num_classes)
    found: dict[str, Any] = {"cores": cores()}
    with tempfile.TemporaryDirectory(prefix="twotower-", ignore_cleanup_errors=True) as scratch:
        files = make_files(settings, Path(scratch), say)
        if settings.part in ("all", "input"):
            found["input"] = _with_medians(benchmark_input(settings, files, say))
        if settings.part in ("all", "towers", "training"):
            found |= _benchmark_towers(settings, files, Path(scratch), say)
    return found


def _with_medians(rounds: list[dict[str, float]]) -> dict[str, Any]:
    return {"medians": {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}, "rounds": rounds}


def _benchmark_towers(
    settings: BenchmarkConfig, files: dict[str, DataConfig], scratch: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    stay_on_this_host()
    towers = Contestant(
        _tower_process,
        [(t, settings, files, str(scratch / "rendezvous")) for t in range(TOWERS)],
        threads_per_process(settings.machine, TOWERS),
    )
    formats = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
    singles = {
        name: Contestant(_single_process, [(settings, memory_format)], cores())
        for name, memory_format in (formats.items() if settings.part != "training" else ())
    }
    found: dict[str, Any] = {}
    try:
        if settings.part != "training":
            rounds = [_round(towers, singles, settings, number, say) for number in range(settings.rounds)]
            found = {"towers": _with_medians(rounds), "parts_ms": towers.turn("parts")[0].parts_ms}
        if settings.part != "towers":
            rounds = [_training_round(towers, settings, number, say) for number in range(settings.rounds)]
            found["training"] = _with_medians(rounds)
    finally:
        for contestant in (towers, *singles.values()):
            contestant.end()
    return found


def _round(
    towers: Contestant,
    singles: dict[str, Contestant],
    settings: BenchmarkConfig,
    number: int,
    say: Callable[[str], None],
) -> dict[str, float]:
    batch = settings.optim.batch_size
    pair = towers.turn("synthetic")
    one = {name: contestant.turn("synthetic")[0] for name, contestant in singles.items()}
    seconds = max(turn.seconds_per_step for turn in pair)
    single = min(turn.seconds_per_step for turn in one.values())
    result = {
        "two_towers_images_per_second": batch / seconds,
        **{f"one_process_{name}_images_per_second": batch / t.seconds_per_step for name, t in one.items()},
        "two_towers_over_one_process": single / seconds,
        "exchange_wait_percent_tower0": pair[0].wait_ms / seconds / 10,
        "exchange_wait_percent_tower1": pair[1].wait_ms / seconds / 10,
        "peak_megabytes_tower0": pair[0].peak_megabytes,
        "peak_megabytes_tower1": pair[1].peak_megabytes,
        "peak_megabytes_one_process": min(turn.peak_megabytes for turn in one.values()),
    }
    say(
        f"round {number + 1}/{settings.rounds}: two towers {result['two_towers_images_per_second']:.1f} images/s, "
        f"one process {batch / single:.1f}, ratio {result['two_towers_over_one_process']:.2f}"
    )
    return result


def _training_round(
    towers: Contestant, settings: BenchmarkConfig, number: int, say: Callable[[str], None]
) -> dict[str, float]:
    """Training from each kind of input; the shares are medians over cycles in which each had one step."""
    first, second = (turn.series for turn in towers.turn("training"))
    assert first is not None
    assert second is not None
    seconds = {name: [max(pair) for pair in zip(first[name], second[name], strict=True)] for name in first}
    result: dict[str, float] = {}
    for name, steps in seconds.items():
        key = name.replace(" ", "_decoded_")
        result[f"{key}_images_per_second"] = settings.optim.batch_size / statistics.median(steps)
        shares = [100 * synthetic / step for synthetic, step in zip(seconds["synthetic"], steps, strict=True)]
        result[f"{key}_percent_of_synthetic"] = statistics.median(shares)
    text = ", ".join(
        f"{name} {result[name.replace(' ', '_decoded_') + '_percent_of_synthetic']:.1f} %" for name in seconds
    )
    say(f"training, round {number + 1}/{settings.rounds}, of the speed with synthetic input: {text}")
    return result
