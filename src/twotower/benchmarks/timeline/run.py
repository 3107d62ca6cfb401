"""Both towers train for a few steps in two processes, as in every training, and each records what it does."""

from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from twotower.benchmarks.take_turns import Contestant
from twotower.benchmarks.timeline.clock import compare_clocks
from twotower.benchmarks.timeline.recorder import record, record_partner
from twotower.benchmarks.timeline.records import LOADING, OTHER, Timeline, TowerStep
from twotower.benchmarks.tower_process import RATE, TOWERS, configure_trainer, describe_synthetic
from twotower.config import DataConfig, TimelineConfig
from twotower.data.feed import open_train
from twotower.data.load_data import load
from twotower.data.preparing.first_use import prepare
from twotower.distributed.place import Place, stay_on_this_host, threads_per_process
from twotower.distributed.world import open_world
from twotower.ground.devices import choose_device
from twotower.ground.precision import check_precision
from twotower.ground.processes import die_with_parent
from twotower.ground.scratch import scratch_folder
from twotower.ground.wording import counted
from twotower.model.layer_table import plan
from twotower.training.trainer import Trainer

WARM_UP = 2  # steps before: the first ones compile, make buffers and compare checksums of the pixels


def check_settings(settings: TimelineConfig) -> None:
    """Raises: ValueError for a network of one tower, several replicas, or a precision that this machine lacks."""
    if settings.network.towers != TOWERS:
        raise ValueError(
            f"network={settings.network.name} is one tower, and a timeline shows what crosses between two; choose a "
            "network of two towers."
        )
    if settings.machine.replicas != 1:
        raise ValueError(
            f"machine.replicas={settings.machine.replicas} is not possible, as a timeline shows one; leave it out."
        )
    plan(settings.network, settings.num_classes)
    check_precision(settings.machine.precision, choose_device(settings.machine.device))


def record_timeline(settings: TimelineConfig) -> Timeline:
    """Trains for WARM_UP steps and records `settings.steps` more. Raises: ValueError, ChildProcessError."""
    check_settings(settings)
    data = describe_synthetic(settings)
    if settings.data_root is not None:
        data = DataConfig(kind="folder", root=settings.data_root)
        images = len(prepare(data).train)
        if images < settings.optim.batch_size:
            raise ValueError(
                f"data_root={settings.data_root} has {counted(images, 'training image')}, and "
                f"optim.batch_size={settings.optim.batch_size} needs as many; give a smaller batch."
            )
    stay_on_this_host()
    with scratch_folder() as scratch:
        towers = Contestant(
            _run_tower,
            [(rank, settings, data, str(scratch / "rendezvous")) for rank in range(TOWERS)],
            threads_per_process(settings.machine, TOWERS),
        )
        try:
            first, second = answers = _ask(towers)
        finally:
            towers.end()
    network = settings.network
    return Timeline(
        title=f"{network.name}, width {network.width:g}, batches of {counted(settings.optim.batch_size, 'image')}, "
        f"{first['world']}",
        layers=list(network.layers),
        steps=list(zip(first["steps"], second["steps"], strict=True)),
        clock_error=max(answer["clock_error"] for answer in answers),
        is_on_gpu=first["is_on_gpu"],
    )


def _ask(towers: Contestant) -> list[dict[str, Any]]:
    answers: list[Any] = towers.turn("record")
    return answers


def _run_tower(rank: int, settings: TimelineConfig, data: DataConfig, rendezvous: str, pipe: Connection) -> None:
    """Answers any request with what was recorded, until `end`."""
    die_with_parent()
    with open_world(settings.machine, Place(rank, TOWERS, rank, TOWERS), rendezvous) as world:
        trainer = Trainer(configure_trainer(settings, data), world, load(data), Path("."), None)
        trainer.optimiser.set_rate(RATE)
        while pipe.recv() != "end":
            lead, error = compare_clocks(world.link)
            pipe.send(
                {
                    "steps": record_steps(trainer, settings),
                    "clock_error": abs(lead) + error,
                    "world": world.describe(),
                    "is_on_gpu": world.device.type == "cuda",
                }
            )


def record_steps(trainer: Trainer, settings: TimelineConfig) -> list[TowerStep]:
    """The recorded steps of this tower; the other one does the same at the same time."""
    recorder = record(trainer)
    share = replace(trainer.share, partner=record_partner(trainer.share.partner, recorder))
    with closing(open_train(trainer.dataset, settings.input, share, seed=0, first_step=0)) as feed:
        for _ in range(WARM_UP + settings.steps):
            recorder.begin(LOADING, LOADING)
            batch = next(feed)
            recorder.begin(OTHER, OTHER)
            trainer.train_step(batch)
            trainer.window.pending.clear()
            recorder.end_step()
    trainer.world.catch_up()
    return recorder.read()[WARM_UP:]
