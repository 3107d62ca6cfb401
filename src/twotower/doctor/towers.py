"""Tries the two towers in two processes: they meet, swap halves of real sizes, agree with one process, and train."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from twotower.benchmarks.take_turns import Contestant, synchronize
from twotower.benchmarks.tower_process import RATE, TOWERS, configure_trainer, describe_synthetic
from twotower.config import DoctorConfig, NetworkConfig
from twotower.data.feed import open_train
from twotower.data.load_data import load
from twotower.distributed.exchange import InProcessExchange, WireExchange
from twotower.distributed.place import Place, stay_on_this_host, threads_per_process
from twotower.distributed.world import World, open_world
from twotower.doctor.findings import Finding, look
from twotower.ground.processes import die_with_parent
from twotower.model.layer_table import plan
from twotower.model.tower import Tower, forward
from twotower.training.trainer import Trainer

SWAPS = 7  # of each size, of which the fastest counts, since other programs only make them slower
STEPS = 10
CLASSES, IMAGES = 10, 4  # of the comparison in float64
WIDTH = 0.125
TOLERANCE = 1e-9  # relative difference of gradients in float64


def examine_towers(settings: DoctorConfig, scratch: Path) -> Iterator[Finding]:
    """Starts both towers once, and asks them for one try after the other.

    Args:
        scratch: an empty folder.
    """
    check_settings(settings)
    stay_on_this_host()
    towers = Contestant(
        _run_tower,
        [(tower, settings, str(scratch / "rendezvous")) for tower in range(TOWERS)],
        threads_per_process(settings.machine, TOWERS),
    )
    tries = {
        "first contact": "meet",
        "swaps": "swap",
        f"gradients in float64, width {WIDTH:g}": "compare",
        f"{STEPS} steps of {settings.network.name}, batch {settings.optim.batch_size}": "train",
    }
    try:
        for title, request in tries.items():
            finding = look(title, lambda request=request: _ask(towers, request))  # type: ignore[misc]
            yield finding
            if not finding.is_ok:
                rest = list(tries)[list(tries).index(title) + 1 :]
                if rest:  # which needs what failed
                    yield Finding("not tried", ", ".join(rest))
                break
    finally:
        towers.end()


def check_settings(settings: DoctorConfig) -> None:
    """Raises: ValueError for a network that has nothing to exchange."""
    if settings.network.towers != TOWERS:
        raise ValueError(
            f"the doctor tries the exchange of two towers, and network={settings.network.name} has one; leave "
            "network out, or choose a network of two towers."
        )


def _ask(towers: Contestant, request: str) -> str:
    """Tower 0's answer. Raises: ValueError with the first reason of either."""
    answers: list[Any] = towers.turn(request)
    for answer in answers:
        if isinstance(answer, Exception):
            raise ValueError(str(answer))
    return str(answers[0])


def _run_tower(tower: int, settings: DoctorConfig, rendezvous: str, pipe: Connection) -> None:
    die_with_parent()
    world: World | None = None
    tries = {"swap": _swap, "compare": _compare, "train": _train}
    assert pipe.recv() == "meet"
    try:
        with open_world(settings.machine, Place(tower, TOWERS, tower, TOWERS), rendezvous) as world:
            pipe.send(world.describe())
            while (request := pipe.recv()) != "end":
                try:
                    pipe.send(tries[request](world, settings))
                except (ValueError, RuntimeError) as error:
                    pipe.send(ValueError(str(error)))
    except (ValueError, RuntimeError) as error:
        pipe.send(ValueError(str(error)))


def _swap(world: World, settings: DoctorConfig) -> str:
    """The time of each swap of the network when there is nothing to overlap with."""
    rows = [row for row in plan(settings.network, settings.num_classes) if row.reads_both]
    texts = []
    for row in rows:
        size = () if row.config.kind == "linear" else (row.size_in, row.size_in)
        half = torch.randn((settings.optim.batch_size, row.maps_in[0], *size), device=world.device)
        seconds = []
        for _ in range(SWAPS):
            world.barrier()
            synchronize(world.device)
            began = time.perf_counter()
            world.link.swap(half).wait()
            world.catch_up()
            seconds.append(time.perf_counter() - began)
        fastest, megabytes = min(seconds), half.numel() * half.element_size() / 1e6
        speed = megabytes / fastest / 1e3
        texts.append(f"before {row.name} {megabytes:.1f} MB in {fastest * 1e3:.2f} ms ({speed:.2f} GB/s)")
    return f"{'; '.join(texts) or 'none in this network'}; the fastest of {SWAPS} each"


def _draw(network: NetworkConfig) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(0)
    size = network.image_size
    images = torch.randn((IMAGES, 3, size, size), generator=stream, dtype=torch.float64) * 50
    return images, torch.randint(CLASSES, (IMAGES,), generator=stream)


def _compare(world: World, settings: DoctorConfig) -> str:
    """Every gradient of this tower over the real way, against both towers in this process on the CPU."""
    network = replace(settings.network, width=WIDTH)
    images, labels = _draw(network)
    alone = [Tower(network, CLASSES, tower, 0).double().eval() for tower in range(TOWERS)]
    F.cross_entropy(forward(alone, images, InProcessExchange()), labels).backward()
    tower = Tower(network, CLASSES, world.tower, 0).on(world.device, world.memory_format).double().eval()
    exchange = WireExchange(world.link, world.tower, tower.rows[-1].kernels)
    logits = forward([tower], images.to(world.device), exchange)
    F.cross_entropy(logits, labels.to(world.device)).backward()
    world.catch_up()
    worst, name_of_worst = 0.0, ""
    expected = alone[world.tower].paper_named_parameters()
    for name, parameter in tower.paper_named_parameters().items():
        ours, true = parameter.grad, expected[name].grad
        assert ours is not None
        assert true is not None
        difference = float((ours.cpu() - true).norm() / true.norm().clamp(min=1e-300))
        if not difference <= worst:
            worst, name_of_worst = difference, name
    if not worst <= TOLERANCE:
        raise ValueError(
            f"the gradient of {name_of_worst} differs by {worst:.1e} between two processes and one, and "
            f"{TOLERANCE:g} is allowed; do not trust a training on this machine, and report this page."
        )
    return f"all {len(expected)} of tower 0 over the exchange agree with one process on the CPU to {worst:.0e}"


def _train(world: World, settings: DoctorConfig) -> str:
    batch = settings.optim.batch_size
    config = configure_trainer(settings, describe_synthetic(settings))
    trainer = Trainer(config, world, load(config.data), Path("."), None)
    trainer.optimiser.set_rate(RATE)
    with closing(open_train(trainer.dataset, trainer.input, trainer.share, seed=0, first_step=0)) as feed:
        trainer.train_step(next(feed))  # fills buffers and caches
        world.catch_up()
        began = time.perf_counter()
        for _ in range(STEPS):
            trainer.train_step(next(feed))
        world.catch_up()
        seconds = time.perf_counter() - began
    rate, waited = STEPS * batch / seconds, world.link.read_waited_ms() / (STEPS + 1)
    step = seconds / STEPS * 1e3
    return (
        f"{rate:.0f} images/s from random images; of a step of {step:.0f} ms tower 0 waits {waited:.1f} ms for tower "
        "1 (other programs on these cores make both worse)"
    )
