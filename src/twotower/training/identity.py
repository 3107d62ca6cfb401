"""The length of a run, and what must stay the same for it to go on."""

from typing import Any

from twotower.config import Config
from twotower.data.dataset import DataSet


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
