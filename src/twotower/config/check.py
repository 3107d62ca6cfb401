"""Refuses configurations that compose and yet cannot be run, each in one sentence."""

from twotower.config.schema import WANDB_MODES, Config, InputConfig, ScheduleConfig


def _one_of(key: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key}={value} is not known; choose one of {', '.join(allowed)}.")


def _at_least(key: str, value: float, least: float) -> None:
    if not value >= least:
        raise ValueError(f"{key}={value} is too small; give at least {least}.")


def _check_schedule(schedule: ScheduleConfig) -> None:
    """Refuses rates that climb the loss, and keys that another rule would read."""
    if schedule.rule == "recorded" and not schedule.changes:
        raise ValueError("schedule.rule=recorded needs schedule.changes; choose one of conf/schedule/run_*.yaml.")
    if schedule.rule not in ("recorded", "exponential") and schedule.changes:
        raise ValueError(
            f"schedule.changes is for schedule.rule=recorded or exponential, and the rule is {schedule.rule}."
        )
    if schedule.rule != "fixed" and schedule.drop_epochs:
        raise ValueError(f"schedule.drop_epochs is for schedule.rule=fixed, and the rule is {schedule.rule}.")
    if schedule.recorded_epochs is not None and not schedule.recorded_epochs > 0:
        raise ValueError(f"schedule.recorded_epochs={schedule.recorded_epochs} must be more than 0.")
    for number, change in enumerate(schedule.changes):
        for key, value in (("epoch", change.epoch), ("weights", change.weights), ("biases", change.biases)):
            _at_least(f"schedule.changes[{number}].{key}", 0 if value is None else value, 0)
            if schedule.rule == "exponential" and key != "epoch" and value:
                raise ValueError(
                    f"schedule.changes[{number}].{key}={value} would replace a rate that schedule.rule=exponential "
                    "lowers by itself; give 0, which freezes, or choose schedule.rule=recorded."
                )
        if change.colour_noise:
            raise ValueError(f"schedule.changes[{number}].colour_noise can only be false, which switches it off.")


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


def check(config: Config) -> None:
    """Refuses what composes but cannot be run.

    Raises: ValueError naming the key, what was given, what is allowed.
    """
    _one_of("data.kind", config.data.kind, ("folder", "shapes", "synthetic"))
    for name, layer in config.network.layers.items():
        _at_least(f"network.layers.{name}.rate", layer.rate, 0)
    _at_least("network.bias_rate", config.network.bias_rate, 0)
    _check_schedule(config.schedule)
    if config.initial_weights.layers and config.initial_weights.path is None:
        raise ValueError(
            "initial_weights.layers names layers to take over, but not from where; give initial_weights.path=RUN."
        )
    _one_of("data.on_error", config.data.on_error, ("stop", "skip"))
    check_input(config.input)
    _one_of("input.mean", config.input.mean, ("central", "aligned"))
    _one_of("input.colour_noise", config.input.colour_noise, ("none", "2012", "paper"))
    _one_of("input.device", config.input.device, ("auto", "cpu", "gpu"))
    _one_of("input.decode_once", config.input.decode_once, ("auto", "yes", "no"))
    _one_of("optim.rule", config.optim.rule, ("paper", "torch"))
    _one_of("schedule.rule", config.schedule.rule, ("plateau", "fixed", "recorded", "exponential"))
    if config.logging.wandb is not None:
        _one_of("logging.wandb", config.logging.wandb, WANDB_MODES)
    _one_of("logging.system", config.logging.system, ("auto", "yes", "no"))
    _one_of("logging.wandb_checkpoints", config.logging.wandb_checkpoints, ("none", "last", "all"))
    _one_of("machine.device", config.machine.device, ("auto", "cpu", "cuda"))
    _one_of("machine.transport", config.machine.transport, ("auto", "gloo", "nccl", "shared_gpu"))
    if config.data.kind == "folder" and config.data.root is None:
        raise ValueError("data=folder needs data.root=DIR, a folder that holds train/<class>/* and val/<class>/*.")
    if config.input.crop_size != config.network.image_size:
        raise ValueError(
            f"input.crop_size={config.input.crop_size} is not network.image_size={config.network.image_size}; "
            "give only the latter."
        )
    if not 0 < config.network.dropout_keep <= 1:
        raise ValueError(f"network.dropout_keep={config.network.dropout_keep} is not a probability in (0, 1].")
    if not 0 <= config.optim.momentum < 1:
        raise ValueError(f"optim.momentum={config.optim.momentum} is not in [0, 1).")
    for key, value, least in (
        ("optim.batch_size", config.optim.batch_size, 1),
        ("optim.learning_rate", config.optim.learning_rate, 0),
        ("optim.weight_decay", config.optim.weight_decay, 0),
        ("schedule.epochs", config.schedule.epochs, 1),
        ("schedule.divide_by", config.schedule.divide_by, 1),
        ("schedule.divide_over_run", config.schedule.divide_over_run, 1),
        ("schedule.bias_divide_over_run", config.schedule.bias_divide_over_run, 1),
        ("schedule.levels", 2 if config.schedule.levels is None else config.schedule.levels, 2),
        ("schedule.bias_levels", 2 if config.schedule.bias_levels is None else config.schedule.bias_levels, 2),
        ("schedule.patience", config.schedule.patience, 1),
        ("schedule.max_drops", config.schedule.max_drops, 0),
        ("input.crop_size", config.input.crop_size, 1),
        ("input.offsets", 1 if config.input.offsets is None else config.input.offsets, 1),
        ("data.size", config.data.size, 1),
        ("input.images_per_draw", config.input.images_per_draw, 1),
        ("input.colour_noise_std", config.input.colour_noise_std, 0),
        ("input.threads", config.input.threads, 0),
        ("checkpoint.keep", config.checkpoint.keep, 1),
        ("logging.every_steps", config.logging.every_steps, 1),
        ("logging.scales_every_steps", config.logging.scales_every_steps, 1),
        ("logging.stuck_after_steps", config.logging.stuck_after_steps, 1),
        ("machine.replicas", config.machine.replicas, 1),
        ("machine.threads", config.machine.threads, 0),
        ("machine.timeout_seconds", config.machine.timeout_seconds, 1),
        ("machine.check_every_steps", config.machine.check_every_steps, 1),
        ("seed", config.seed, 0),
    ):
        _at_least(key, value, least)
    if config.input.colour_noise_epochs is not None:
        _at_least("input.colour_noise_epochs", config.input.colour_noise_epochs, 0)
    if config.schedule.max_steps is not None:
        _at_least("schedule.max_steps", config.schedule.max_steps, 1)
    if config.checkpoint.every_steps is not None:
        _at_least("checkpoint.every_steps", config.checkpoint.every_steps, 1)
