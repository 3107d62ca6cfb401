"""The length of a run, its batch on so many replicas, and what must stay the same for it to go on."""

from dataclasses import replace
from typing import Any

from twotower.config import Config
from twotower.config.frozen_config import freeze
from twotower.data.dataset import DataSet
from twotower.ground.wording import counted


def share_batch(config: Config, num_replicas: int) -> Config:
    """The configuration on so many replicas: `optim.batch_size` is what each gets of `optim.global_batch_size`.

    So a run goes on with fewer or more machines on the same images a step, at the same rates, for as many steps;
    only the order of additions differs.

    Raises: ValueError if the images cannot be shared evenly.
    """
    optim = config.optim
    if optim.global_batch_size is not None:
        if optim.global_batch_size % num_replicas:
            raise ValueError(
                f"optim.global_batch_size={optim.global_batch_size} cannot be shared evenly by "
                f"{counted(num_replicas, 'replica')}; start as many as divide it, or choose another for a new run."
            )
        optim = replace(optim, batch_size=optim.global_batch_size // num_replicas)
    machine = replace(config.machine, replicas=num_replicas)
    return freeze(replace(config, optim=optim, machine=machine))


def identify(config: Config, num_replicas: int, dataset: DataSet) -> dict[str, Any]:
    """Collects what must be the same for a run to go on as if it had not been stopped."""
    # These schedules scale with the run's length; another length on resume would move changes that were already made.
    scaled = (
        {"schedule.epochs": config.schedule.epochs} if config.schedule.rule in ("recorded", "exponential") else {}
    )
    return {
        "seed": config.seed,
        "global_batch_size": config.optim.batch_size * num_replicas,
        "num_train": len(dataset.train),
        "num_val": len(dataset.val),
        "precision": config.machine.precision,
        **scaled,
    }


def count_steps(config: Config, steps_per_epoch: int) -> int:
    """The number of updates after which a run is finished."""
    all_epochs = config.schedule.epochs * steps_per_epoch
    return all_epochs if config.schedule.max_steps is None else min(all_epochs, config.schedule.max_steps)
