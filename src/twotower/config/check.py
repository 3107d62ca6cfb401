"""Refuses configurations that compose and yet cannot be run, each in one sentence."""

from twotower.config.schema import MOST_DROPS, Config, InputConfig, OptimConfig, ScheduleConfig
from twotower.config.value_bounds import check_bounds
from twotower.ground.wording import counted


def _check_schedule(schedule: ScheduleConfig) -> None:
    """Refuses changes that are missing, or that another part of the rule would undo."""
    if schedule.rule == "recorded" and not schedule.changes:
        raise ValueError("schedule.rule=recorded needs schedule.changes; choose one of conf/schedule/run_*.yaml.")
    if len(schedule.drop_epochs) > MOST_DROPS:
        raise ValueError(
            f"schedule.drop_epochs has {counted(len(schedule.drop_epochs), 'epoch')}, after each of which the rate "
            f"is divided; give at most {MOST_DROPS}."
        )
    for number, change in enumerate(schedule.changes):
        for key, value in (("weights", change.weights), ("biases", change.biases)):
            if schedule.rule == "exponential" and value:
                raise ValueError(
                    f"schedule.changes[{number}].{key}={value} would replace a rate that schedule.rule=exponential "
                    "lowers by itself; give 0, which freezes, or choose schedule.rule=recorded."
                )


def _check_decay(config: Config) -> None:
    """Refuses a weight decay that no layer would follow, as all have their own."""
    layers, usual = config.network.layers, OptimConfig().weight_decay
    if len(config.network.layer_decays()) == len(layers) and config.optim.weight_decay != usual:
        raise ValueError(
            f"optim.weight_decay={config.optim.weight_decay:g} reaches no layer of network={config.network.name}, "
            f"whose rows have weight decays of their own; give network.layers.{next(iter(layers))}.weight_decay and "
            "those of the other rows instead."
        )


def check_input(given: InputConfig) -> None:
    """Refuses a scale that is none, or that is meant for pixels of another range.

    Raises: ValueError naming the key, what was given, what is allowed.
    """
    mean_value = [0.0] * 3 if given.mean_value is None else given.mean_value
    for key, values, least in (("mean_value", mean_value, 0), ("std", given.std, 1)):
        if len(values) != 3 or not all(least <= value <= 255 for value in values):
            raise ValueError(
                f"input.{key}={values} is not possible; give three numbers from {least} to 255, for R, G and B of "
                "pixels in 0..255 (what is written for pixels in 0..1, times 255)."
            )
    check_bounds(given, "input.")


def check(config: Config) -> None:
    """Refuses what composes but cannot be run.

    Raises: ValueError naming the key, what was given, what is allowed.
    """
    check_input(config.input)
    check_bounds(config)
    _check_schedule(config.schedule)
    _check_decay(config)
    weights = config.initial_weights
    for key, layers in (("layers", weights.layers), ("swapped", weights.swapped)):
        if layers and weights.path is None:
            raise ValueError(
                f"initial_weights.{key} names layers to take over, but not from where; give initial_weights.path=RUN."
            )
    if config.data.kind == "folder" and config.data.root is None:
        raise ValueError("data=folder needs data.root=DIR, a folder that holds train/<class>/* and val/<class>/*.")
    if config.input.crop_size != config.network.image_size:
        raise ValueError(
            f"input.crop_size={config.input.crop_size} is not network.image_size={config.network.image_size}; "
            "give only the latter."
        )
