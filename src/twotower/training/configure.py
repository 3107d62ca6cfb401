"""From what Hydra composed to the configuration of a training: its ablation checked, its command noted."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import hydra

from twotower.config import Config, resolve
from twotower.config.frozen_config import freeze
from twotower.config.key_roles import Role, select_settings
from twotower.model.layer_table import plan
from twotower.runs.failure import NotApplicableError


def resolve_ablated(composed: Any, overrides: list[str]) -> Config:
    """The configuration, if its ablation changes something in it.

    Raises: ValueError if a required key was not given; NotApplicableError if the network has nothing that the
    ablation could change, as one without norms in a network that has none.
    """
    if composed.ablation == "none":
        return resolve(composed)
    without = [override for override in overrides if not override.startswith("ablation=")]
    plain = resolve(hydra.compose("config", [*without, "ablation=none"]))
    try:
        config = resolve(composed)
    except ValueError as error:
        raise NotApplicableError(str(error)) from None
    settings, without_it = (select_settings(each, (Role.NUMBERS, Role.TRAINING)) for each in (config, plain))
    if settings == without_it | {"ablation": config.ablation}:
        raise NotApplicableError(
            f"ablation={config.ablation} changes nothing in network={config.network.name} with these settings, so "
            "the run would stand under a wrong name; leave it out."
        )
    num_classes = 2  # any number, because this only checks that the network can be built
    plan(plain.network, num_classes)
    try:
        plan(config.network, num_classes)
    except ValueError as error:
        raise NotApplicableError(str(error)) from None
    return config


def check_single(params: Mapping[str, str] | None, overrides: Sequence[str]) -> None:
    """Checks that a run which is no job of a sweep has a value for each key that a yaml sweeps.

    Args:
        params: hydra.sweeper.params.

    Raises: ValueError for one that it would leave at its default in silence.
    """
    for key, values in (params or {}).items():
        if not any(override.startswith(f"{key}=") for override in overrides):
            raise ValueError(
                f"a sweep was chosen, of one run for each of {key}={values}; give -m for all of them, or {key}=N for "
                "a single one."
            )


def note_command(config: Config, overrides: list[str]) -> Config:
    """Notes in the configuration what starts the run again, without the folder that it went to."""
    places = tuple(f"{key}=" for key in select_settings(config, (Role.PLACE,)))
    typed = [override for override in overrides if not override.startswith(places)]
    return freeze(replace(config, command=shlex.join(["python", "launch/two_gpu.py", *typed])))


def configure(composed: Any, overrides: list[str]) -> Config:
    return note_command(resolve_ablated(composed, overrides), overrides)
