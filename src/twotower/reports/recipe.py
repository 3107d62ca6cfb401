"""The differences in training between a run and the run of 2012 that it counts for in the lab book.

Crops, flips, colours, momentum and weight decay belong to the experiment: a run that differs in them is another one.
Rate, batch and schedule have to follow the images, because a small set needs others than ImageNet: a run that differs
in these counts, and the page lists them.
"""

from typing import Any

from twotower.config import Config
from twotower.runs.variants import as_named, select_for_comparison

_RULES = ("plateau", "recorded")  # the schedule as the paper says it, and as it was done
_STAIRCASES = ("norm_below_relu", "lrn1_only", "half_exchange")  # runs 166, 167, 170-quant
_FOLLOWS_IMAGES = ("optim.batch_size", "optim.learning_rate", "input.colour_noise_epochs")
# `list_overridden` compares these: the size is network.image_size, and the update's rule belongs to the ablation.
_COMPARED_ELSEWHERE = ("input.crop_size", "optim.rule")


def _list_differing(keys: list[str], ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    return [f"{key}={ours[key]} for {theirs.get(key)}" for key in keys if ours[key] != theirs.get(key)]


def list_other_experiment(config: Config) -> list[str]:
    """Settings of the input and the update in which a run is another experiment than its network and ablation say.

    Returns: "input.flip=False for True" and the like.
    """
    ours, theirs = select_for_comparison(config), as_named(config.network.name, config.ablation)
    apart = (*_FOLLOWS_IMAGES, *_COMPARED_ELSEWHERE)
    keys = [key for key in ours if key.startswith(("input.", "optim.")) and key not in apart]
    return _list_differing(keys, ours, theirs)


def list_other_training(config: Config, name: str) -> list[str]:
    """Rate, batch and schedule in which the run of 2012 had others.

    Args:
        name: the key of `counterpart.COUNTERPARTS`.

    Returns: "optim.batch_size=512 for 128" and the like.
    """
    ours, theirs = select_for_comparison(config), as_named(config.network.name, config.ablation)
    differences = _list_differing(list(_FOLLOWS_IMAGES), ours, theirs)
    schedule = config.schedule
    rules = (*_RULES, "exponential") if name in _STAIRCASES else _RULES
    if schedule.rule not in rules:
        differences.append(f"schedule.rule={schedule.rule} for {' or '.join(rules)}")
    epochs = schedule.recorded_epochs or theirs.get("schedule.epochs")
    if epochs is not None and schedule.epochs < int(epochs):
        differences.append(f"schedule.epochs={schedule.epochs} for {epochs:g}")
    if schedule.max_steps is not None:
        differences.append(f"schedule.max_steps={schedule.max_steps} for none")
    return differences
