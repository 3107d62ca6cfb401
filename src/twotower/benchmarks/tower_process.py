"""The process of one of the two towers: it trains, and answers with the times of its turns."""

from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from twotower.benchmarks.input_files import KEPT
from twotower.benchmarks.step_parts import time_parts
from twotower.benchmarks.take_turns import Turn, count_steps, time_steps
from twotower.config import (
    BenchmarkConfig,
    Config,
    DataConfig,
    DoctorConfig,
    LoggingConfig,
    ScheduleConfig,
    TimelineConfig,
)
from twotower.data.batch import Feed
from twotower.data.dataset import DataSet
from twotower.data.feed import open_train
from twotower.data.load_data import load
from twotower.distributed.place import Place
from twotower.distributed.world import open_world
from twotower.ground.memory import peak_megabytes
from twotower.ground.processes import die_with_parent
from twotower.training.trainer import Trainer

TOWERS = 2
RATE = 1e-6  # learning rate at which the weights stay finite over any number of steps

# Inputs of the towers in their turns. With `once` each tower decodes half of a batch, with `twice` both decode all,
# and with `before` each cuts half of it from pixels that were decoded before (`input.cache`).
FEEDS = ("prepared once", "prepared twice", "prepared before", "raw once", "raw twice")


def configure_trainer(settings: BenchmarkConfig | DoctorConfig | TimelineConfig, data: DataConfig) -> Config:
    """A training that ends by itself never, and that nobody is told of."""
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


def describe_synthetic(settings: BenchmarkConfig | DoctorConfig | TimelineConfig) -> DataConfig:
    """Random tensors for images, a hundred batches an epoch."""
    batch = settings.optim.batch_size
    return DataConfig(kind="synthetic", num_train=batch * 100, num_val=batch, num_classes=settings.num_classes)


def run_tower(
    rank: int, size: int, settings: BenchmarkConfig, files: dict[str, DataConfig], rendezvous: str, pipe: Connection
) -> None:
    """Answers `synthetic`, `training` and `parts` with a Turn, until `end`.

    Args:
        size: processes, which are the towers of one replica or of several.
    """
    die_with_parent()
    with open_world(settings.machine, Place(rank, size, rank, size), rendezvous) as world:
        before = peak_megabytes(world.device)
        datasets = {name: load(data) for name, data in {"synthetic": describe_synthetic(settings), **files}.items()}
        # One network serves all inputs, so that memory is that of one training.
        config = configure_trainer(settings, describe_synthetic(settings))
        trainer = Trainer(config, world, datasets["synthetic"], Path("."), None)
        trainer.optimiser.set_rate(RATE)
        while (request := pipe.recv()) != "end":
            if request == "parts":
                feed = open_train(datasets["synthetic"], settings.input, trainer.share, seed=0, first_step=0)
                with closing(feed):
                    parts = time_parts(trainer, partial(_step, trainer, feed), settings)
                pipe.send(Turn(0.0, parts_ms=parts))
            elif request == "training":
                pipe.send(Turn(0.0, series=_alternate(trainer, datasets, settings)))
            else:
                pipe.send(replace(_run_turn(trainer, datasets[request], settings), before_megabytes=before))


def _step(trainer: Trainer, feed: Feed) -> None:
    trainer.train_step(next(feed))


def _run_turn(trainer: Trainer, dataset: DataSet, settings: BenchmarkConfig) -> Turn:
    """Steps on one input, and the part of them that the tower waits for the other."""
    world = trainer.world
    with closing(open_train(dataset, settings.input, trainer.share, seed=0, first_step=0)) as feed:
        step = partial(_step, trainer, feed)
        step()  # fills buffers and caches
        world.link.read_waited_ms()
        steps = count_steps(world.device, settings.steps)
        timed = time_steps(world.device, steps, step)
    waited = world.link.read_waited_ms() / steps
    trainer.window.pending.clear()
    return timed.turn(wait_ms=waited, peak_megabytes=peak_megabytes(world.device))


def _alternate(trainer: Trainer, datasets: dict[str, DataSet], settings: BenchmarkConfig) -> dict[str, list[float]]:
    """Single steps from each kind of input in turn, so that a slow second of the machine hits all of them.

    A step takes a batch out of a feed, which replaces it while that same step computes: its cost falls into the step.
    """
    world, series = trainer.world, {}
    with ExitStack() as stack:
        feeds = {}
        for name in ("synthetic", *FEEDS):
            kind, _, decoding = name.partition(" ")
            if kind in datasets:
                share = replace(trainer.share, partner=None if decoding == "twice" else world.link)
                config = replace(settings.input, cache=KEPT if decoding == "before" else "none")
                feed = open_train(datasets[kind], config, share, seed=0, first_step=0)
                feeds[name] = stack.enter_context(closing(feed))
                _step(trainer, feed)
                series[name] = list[float]()
        names = list(feeds)
        for cycle in range(settings.steps):
            for index in range(len(names)):
                name = names[(index + cycle) % len(names)]  # no input always follows the same other one
                series[name].append(time_steps(world.device, 1, partial(_step, trainer, feeds[name])).seconds)
                trainer.window.pending.clear()
    world.link.read_waited_ms()
    return series
