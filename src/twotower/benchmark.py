"""How fast: the two towers in two processes against one process, and what each part of a step takes.

All contestants stay alive and take turns in each round, so that a slow minute of the machine hits all of them;
ratios are taken within a round, and medians over the rounds.
"""

import multiprocessing as mp
import os
import resource
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from twotower.baseline import build_baseline
from twotower.config import (
    BenchmarkConfig,
    Config,
    DataConfig,
    LoggingConfig,
    ScheduleConfig,
)
from twotower.data import Feed, open_train, prepare
from twotower.data.shapes import CLASSES, draw_image
from twotower.layers import LocalResponseNorm
from twotower.network import NUM_TOWERS, plan
from twotower.train import Trainer
from twotower.transport import Link
from twotower.world import Place, cores, die_with_parent, open_world, threads_per_process

NUM_DRAWN = 512  # JPEGs of the drawn set


@dataclass(frozen=True)
class Turn:
    """What one process did in its turn; `wait_ms` a step."""

    seconds_per_step: float
    wait_ms: float = 0.0
    parts_ms: dict[str, float] | None = None
    peak_megabytes: float = 0.0


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(device: torch.device, steps: int, step: Callable[[], object]) -> float:
    _synchronize(device)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    _synchronize(device)
    return (time.perf_counter() - began) / steps


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
    tower: int, settings: BenchmarkConfig, files: DataConfig, rendezvous: str, pipe: Connection
) -> None:
    """One of the two towers: answers `synthetic`, `files` and `parts` with a Turn."""
    die_with_parent()
    with open_world(settings.machine, Place(tower, NUM_TOWERS, tower, NUM_TOWERS), rendezvous) as world:
        data = {"synthetic": _synthetic(settings), "files": files}
        datasets = {name: prepare(one, progress=False) for name, one in data.items()}
        # One network serves both inputs, so that memory is that of one training.
        config = _trainer_config(settings, data["synthetic"])
        trainer = Trainer(config, world, datasets["synthetic"], Path("."), None)
        feeds = {
            name: open_train(dataset, settings.input, trainer.share, seed=0, first_step=0)
            for name, dataset in datasets.items()
        }
        trainer.optimiser.set_rate(1e-6)  # the weights must stay finite over any number of steps
        while (what := pipe.recv()) != "end":
            if what == "parts":
                pipe.send(Turn(0.0, 0.0, _parts(trainer, settings), _peak_megabytes()))
                continue
            step = partial(_step, trainer, feeds[what])
            step()  # buffers, caches, DALI's first batches
            world.link.read_waited_ms()
            seconds = _timed(world.device, settings.steps, step)
            waited = world.link.read_waited_ms() / settings.steps
            trainer.window.pending.clear()
            pipe.send(Turn(seconds, waited, None, _peak_megabytes()))


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
            parts[f"LRN after {row.name}"] = 1e3 * _timed(world.device, 3, step)
    for row in trainer.tower.rows:
        if row.reads_both:
            shape = (
                (batch, row.maps_in[0])
                if row.config.kind == "linear"
                else (batch, row.maps_in[0], row.size_in, row.size_in)
            )
            half = torch.randn(shape, device=world.device)
            parts[f"swap before {row.name}, nothing to overlap"] = 1e3 * _timed(
                world.device, 5, partial(_swap, world.link, half)
            )

    x = torch.randn(64, 48, 55, 55, device=world.device).contiguous(memory_format=world.memory_format)
    ours = LocalResponseNorm(48, 5, 2.0, 1e-4, True, 0.75).to(world.device)
    torchs = torch.nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0)
    norms: dict[str, torch.nn.Module] = {"ours": ours, "torch's": torchs}
    for name, norm in norms.items():
        step = forward_backward(norm, x.requires_grad_())
        step()
        parts[f"LRN of 64 x 48 x 55 x 55, {name}"] = 1e3 * _timed(world.device, 3, step)

    def update() -> None:
        for parameter in trainer.tower.parameters():
            parameter.grad = torch.zeros_like(parameter)
        began = time.perf_counter()
        trainer.optimiser.step()
        _synchronize(world.device)
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
    device = torch.device("cuda" if settings.machine.device != "cpu" and torch.cuda.is_available() else "cpu")
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
        pipe.send(Turn(_timed(device, settings.steps, step), 0.0, None, _peak_megabytes()))


class Contestant:
    """Processes that take their turns together."""

    def __init__(self, target: Callable[..., None], arguments: list[tuple[Any, ...]], threads: int) -> None:
        context = mp.get_context("spawn")
        # Read when the child imports torch.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self.pipes: list[Connection] = []
        self.processes = []
        for one in arguments:
            ours, theirs = context.Pipe()
            process = context.Process(target=_guarded, args=(target, *one, theirs), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def turn(self, what: str) -> list[Turn]:
        """Raises: RuntimeError if a process has ended."""
        for pipe in self.pipes:
            pipe.send(what)
        try:
            return [pipe.recv() for pipe in self.pipes]
        except EOFError as error:
            raise RuntimeError("A process of the benchmark has ended; its error is printed above.") from error

    def end(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            if process.is_alive():
                pipe.send("end")
            process.join(timeout=20)
            if process.is_alive():
                process.kill()


def _guarded(target: Callable[..., None], *arguments: Any) -> None:
    try:
        target(*arguments)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _draw_files(folder: Path) -> DataConfig:
    """A set of 256 x 256 JPEGs with two classes, as a prepared data set has them."""
    for index in range(NUM_DRAWN):
        for split, count in (("train", NUM_DRAWN), ("val", 2)):
            if index < count:
                path = folder / split / f"class{index % 2}" / f"{index:04d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                image = draw_image(CLASSES[index % len(CLASSES)], np.random.default_rng(index))
                image.resize((256, 256)).save(path, quality=90)
    return DataConfig(kind="folder", root=str(folder))


def benchmark(settings: BenchmarkConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs all rounds. Returns what benchmark.json holds: per round and medians, units in the names."""
    plan(settings.network, settings.num_classes)
    with tempfile.TemporaryDirectory(prefix="twotower-") as scratch:
        if settings.data_root is not None:
            files = DataConfig(kind="folder", root=settings.data_root)
        else:
            say(f"drawing {NUM_DRAWN} JPEGs of 256 x 256")
            files = _draw_files(Path(scratch) / "files")
        prepare(files)
        rendezvous = str(Path(scratch) / "rendezvous")
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        towers = Contestant(
            _tower_process,
            [(t, settings, files, rendezvous) for t in range(NUM_TOWERS)],
            threads_per_process(settings.machine, NUM_TOWERS),
        )
        formats = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
        singles = {
            name: Contestant(_single_process, [(settings, memory_format)], cores())
            for name, memory_format in formats.items()
        }
        try:
            rounds = [_round(towers, singles, settings, number, say) for number in range(settings.rounds)]
            parts = [turn.parts_ms for turn in towers.turn("parts")]
        finally:
            for contestant in (towers, *singles.values()):
                contestant.end()
    medians = {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
    return {"medians": medians, "rounds": rounds, "parts_ms": parts[0], "cores": cores()}


def _round(
    towers: Contestant,
    singles: dict[str, Contestant],
    settings: BenchmarkConfig,
    number: int,
    say: Callable[[str], None],
) -> dict[str, float]:
    batch = settings.optim.batch_size
    pair = towers.turn("synthetic")
    files = towers.turn("files")  # before the others, since DALI reads ahead for a moment after its turn
    one = {name: contestant.turn("synthetic")[0] for name, contestant in singles.items()}
    seconds = max(turn.seconds_per_step for turn in pair)
    single = min(turn.seconds_per_step for turn in one.values())
    result = {
        "two_towers_images_per_second": batch / seconds,
        **{f"one_process_{name}_images_per_second": batch / t.seconds_per_step for name, t in one.items()},
        "two_towers_over_one_process": single / seconds,
        "from_files_images_per_second": batch / max(turn.seconds_per_step for turn in files),
        "from_files_over_synthetic": seconds / max(turn.seconds_per_step for turn in files),
        "exchange_wait_percent_tower0": pair[0].wait_ms / seconds / 10,
        "exchange_wait_percent_tower1": pair[1].wait_ms / seconds / 10,
        "peak_megabytes_tower0": files[0].peak_megabytes,
        "peak_megabytes_tower1": files[1].peak_megabytes,
        "peak_megabytes_one_process": min(turn.peak_megabytes for turn in one.values()),
    }
    say(
        f"round {number + 1}/{settings.rounds}: two towers {result['two_towers_images_per_second']:.1f} images/s, "
        f"one process {batch / single:.1f}, ratio {result['two_towers_over_one_process']:.2f}, "
        f"from files {100 * result['from_files_over_synthetic']:.0f} %"
    )
    return result
