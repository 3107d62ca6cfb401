"""What may differ when a run goes on from a checkpoint: in its own folder its length, in a new folder anything.

A run's config.yaml speaks for all of its epochs. So within one folder nothing changes that would make it untrue, and
a training that goes on otherwise has a folder of its own, whose `resume` names the checkpoint that it came from.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from twotower.config import Config
from twotower.config.key_roles import Role, select_settings
from twotower.config.stored_config import read_config

# A run may become longer or shorter, and its images may be decoded by what the machine has.
MAY_CHANGE = ("schedule.epochs", "schedule.max_steps", "input.loader", "machine.loader_device")
# What a checkpoint is compared by itself, which sees replicas that share one batch, and what only a new run reads.
COMPARED_ELSEWHERE = ("network.", "optim.batch_size", "optim.global_batch_size", "machine.replicas")
ONLY_AT_FIRST = ("initial_weights.",)


def _list_changes(stored: Config, config: Config) -> dict[str, str]:
    """Key -> "was A and is B now", for each setting by which the numbers of a training differ."""
    roles = (Role.NUMBERS, Role.TRAINING)
    theirs, ours = select_settings(stored, roles), select_settings(config, roles)
    return {
        key: _describe(theirs.get(key), value)
        for key, value in ours.items()
        if theirs.get(key) != value and not key.startswith((*COMPARED_ELSEWHERE, *ONLY_AT_FIRST))
    }


def _describe(theirs: Any, ours: Any) -> str:
    if any(isinstance(value, list) and value and isinstance(value[0], dict) for value in (theirs, ours)):
        return "is another list now"
    return f"was {'null' if theirs is None else theirs} and is {'null' if ours is None else ours} now"


def check_changes(checkpoint: Path, run_dir: Path, config: Config, say: Callable[[str], None]) -> None:
    """Compares the configuration with that of the run which wrote a checkpoint, and says what may differ and does.

    Args:
        checkpoint: where the training goes on from.
        run_dir: where it goes on.

    Raises: ValueError if it goes on in the same folder with what would make config.yaml untrue of earlier epochs.
    """
    before = checkpoint.parent.parent
    is_same = before.resolve() == run_dir.resolve()
    if is_same and not (before / "metrics.jsonl").exists():
        say(f"{before / 'metrics.jsonl'} is missing, so curves and reports will begin where this goes on")
    if checkpoint.parent.name != "checkpoints" or not (before / "config.yaml").exists():
        return  # a checkpoint that was copied elsewhere
    try:
        stored = read_config(before)
    except (ValueError, OSError, TypeError, OmegaConfBaseException, YAMLError) as error:
        unknown = (
            f"{before / 'config.yaml'} cannot be read, so nobody knows whether the settings are those of the run"
        )
        if is_same:
            raise ValueError(f"{unknown}; copy it again, or remove it to go on with those that are given.") from error
        say(unknown)
        return
    changes = _list_changes(stored, config)
    refused = {key: change for key, change in changes.items() if key not in MAY_CHANGE}
    if refused and is_same:
        raise ValueError(
            f"{run_dir} cannot go on with other settings ({_join(refused)}), because its config.yaml speaks for all "
            f"its epochs; use the run's own, or go on in a new folder with resume={before} run_dir=NEW."
        )
    if changes:
        say(f"going on from {checkpoint} with a change: {_join(changes)}")


def _join(changes: dict[str, str]) -> str:
    return ", ".join(f"{key} {change}" for key, change in changes.items())
