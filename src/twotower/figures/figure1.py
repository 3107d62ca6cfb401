"""Figure 1: the training error of the four-layer network epoch by epoch, ReLU against tanh (and sigmoid).

The paper says that ReLUs reach a training error of 25 % on CIFAR-10 six times faster than tanh units, each with the
learning rate at which it trains fastest, and without regularisation of any kind (section 3.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from twotower.config import Config
from twotower.config.key_roles import Role, select_settings
from twotower.figures.common_points import gather_common
from twotower.figures.drawing import mark_steps, open_pyplot, remove_frame, save, write_numbers
from twotower.figures.palette import ACTIVATIONS, REFERENCE
from twotower.ground.wording import counted, counted_epochs
from twotower.runs.history import History

LEVEL = 25.0  # percent
NAMES = {"relu": "ReLU", "tanh": "tanh", "sigmoid": "sigmoid"}
LINES = {"relu": "-", "tanh": "--", "sigmoid": ":"}  # solid and dashed as in the paper


@dataclass(frozen=True)
class Curve:
    """One run: the training top-1 error in percent at the end of each epoch.

    Attributes:
        epochs: epochs done, rising: 1, 2, 3 ..., and a fraction where the run ended within one.
        errors: means over the steps since the epoch before.
    """

    run: str
    activation: str
    seed: int
    learning_rate: float
    epochs: list[float]
    errors: list[float]

    def epochs_to(self, level: float) -> float | None:
        """The epochs until the error is `level` for the first time, between two epochs linearly; None: never.

        An epoch's error is the mean over its steps, so that it is reached about half an epoch earlier in all curves.
        """
        for number, (epoch, error) in enumerate(zip(self.epochs, self.errors, strict=True)):
            if error <= level:
                if number == 0:
                    return epoch
                begin, before = self.epochs[number - 1], self.errors[number - 1]
                return begin + (before - level) / (before - error) * (epoch - begin)
        return None


def _settings_in_common(config: Config) -> dict[str, Any]:
    """Collects the settings that must be the same for activations to be compared."""
    settings = select_settings(config, (Role.NUMBERS, Role.TRAINING, Role.IMAGES))
    free = ("network.activation", "network.name", "optim.learning_rate")
    return {
        key: value
        for key, value in settings.items()
        if key.startswith(("network.", "data.", "input.", "optim.")) and key not in free
    }


def make_curves(histories: Sequence[History]) -> list[Curve]:
    """One curve for each run, by activation and seed.

    Raises: ValueError if the runs differ in more than activation, learning rate and seed, or if runs with the same
    activation have different learning rates or the same seed.
    """
    first = _settings_in_common(histories[0].config)
    curves: list[Curve] = []
    for history in histories:
        config, settings = history.config, _settings_in_common(history.config)
        differing = [key for key in settings if settings[key] != first[key]]
        if differing:
            raise ValueError(
                f"{history.run_dir} differs from {histories[0].run_dir} in {differing[0]}; Figure 1 compares runs "
                "that differ in activation, learning rate and seed alone."
            )
        epochs = [epoch.epoch for epoch in history.epochs]
        errors = [epoch.train["top1_error"] for epoch in history.epochs]
        activation, rate = config.network.activation, config.optim.learning_rate
        for curve in curves:
            if curve.activation == activation and curve.learning_rate != rate:
                raise ValueError(
                    f"{history.run_dir} and {curve.run} both have {activation}, with learning rates {rate:g} and "
                    f"{curve.learning_rate:g}; give the runs of one rate for each activation."
                )
            if curve.activation == activation and curve.seed == config.seed:
                raise ValueError(f"{history.run_dir} and {curve.run} are {activation} with the same seed; give one.")
        curves.append(Curve(str(history.run_dir), activation, config.seed, rate, epochs, errors))
    order = list(ACTIVATIONS)
    return sorted(curves, key=lambda curve: (order.index(curve.activation), curve.seed))


def summarise(curves: Sequence[Curve], level: float = LEVEL) -> dict[str, Any]:
    """Epochs to `level` of each run, their means, and how many times as long each activation takes as ReLU.

    A ratio is there if all runs of both activations reach the level; its range is over all pairs of runs.
    """
    reached = {
        activation: [curve.epochs_to(level) for curve in curves if curve.activation == activation]
        for activation in ACTIVATIONS
    }
    summary: dict[str, Any] = {"level": level, "activations": {}, "ratios_to_relu": {}}
    for activation, epochs in reached.items():
        if epochs:
            complete = _without_gaps(epochs)
            rate = next(curve.learning_rate for curve in curves if curve.activation == activation)
            summary["activations"][activation] = {
                "learning_rate": rate,
                "epochs": epochs,
                "mean": mean(complete) if complete else None,
            }
    relu = _without_gaps(reached["relu"])
    for activation in ("tanh", "sigmoid"):
        slower = _without_gaps(reached[activation])
        if relu and slower:
            ratios = [epochs / relu_epochs for epochs in slower for relu_epochs in relu]
            summary["ratios_to_relu"][activation] = {
                "mean": mean(slower) / mean(relu),
                "lowest": min(ratios),
                "highest": max(ratios),
            }
    return summary


def _without_gaps(epochs: Sequence[float | None]) -> list[float]:
    """The epochs of all runs; empty if one of them never reached the level."""
    reached = [count for count in epochs if count is not None]
    return reached if len(reached) == len(epochs) else []


def describe(curves: Sequence[Curve], level: float) -> list[str]:
    """A sentence for each activation: "ReLU, rate 0.003: 25 % after 6.99, 7.00 epochs", or not within how many."""
    lines = []
    for activation in ACTIVATIONS:
        runs = [curve for curve in curves if curve.activation == activation]
        if not runs:
            continue
        reached = [epochs for curve in runs if (epochs := curve.epochs_to(level)) is not None]
        lengths = [counted_epochs(curve.epochs[-1]) for curve in runs if curve.epochs_to(level) is None]
        parts = [f"after {', '.join(_with_digits(epochs) for epochs in reached)} epochs"] if reached else []
        for length in dict.fromkeys(lengths):
            times = f" ({counted(lengths.count(length), 'run')})" if len(runs) > 1 else ""
            parts.append(f"not within {length}{times}")
        lines.append(f"{NAMES[activation]}, rate {runs[0].learning_rate:g}: {level:g} % {', '.join(parts)}")
    return lines


def _with_digits(epochs: float) -> str:
    return f"{epochs:.2f}" if epochs >= 0.1 else f"{epochs:.2g}"


def write_figure1(curves: Sequence[Curve], level: float, path: Path) -> list[Path]:
    """Writes the drawing and, beside it, NAME.csv (each epoch of each run) and NAME.json (`summarise`)."""
    heads = ["activation", "seed", "learning_rate", "epoch", "train_top1_error"]
    rows = (
        [curve.activation, curve.seed, f"{curve.learning_rate:g}", f"{epoch:.6g}", f"{error:.3f}"]
        for curve in curves
        for epoch, error in zip(curve.epochs, curve.errors, strict=True)
    )
    tables = write_numbers(path, heads, rows, summarise(curves, level))
    _draw(curves, level, path)
    return [path, *tables]


def _mean_curve(runs: Sequence[Curve]) -> tuple[list[float], list[float]]:
    """The mean error of the runs after each epoch that all of them have."""
    common = gather_common([dict(zip(curve.epochs, curve.errors, strict=True)) for curve in runs])
    return list(common), [mean(errors) for errors in common.values()]


def _draw(curves: Sequence[Curve], level: float, path: Path) -> None:
    pyplot = open_pyplot("figure1")
    figure, axes = pyplot.subplots(figsize=(7.5, 5.0))
    for activation, colour in ACTIVATIONS.items():
        runs = [curve for curve in curves if curve.activation == activation]
        if not runs:
            continue
        style: dict[str, Any] = {"ls": LINES[activation], "color": colour}
        for curve in runs:
            mark_steps(axes, curve.epochs, curve.errors, lw=0.8, alpha=0.5, ms=2.5, **style)
        epochs, means = _mean_curve(runs)
        seeds = f"mean of {len(runs)} runs" if len(runs) > 1 else "1 run"
        label = f"{NAMES[activation]}, rate {runs[0].learning_rate:g} ({seeds})"
        mark_steps(axes, epochs, means, lw=2.2, ms=4, label=label, **style)
    axes.axhline(level, color=REFERENCE, lw=0.8)
    axes.text(0.005, level + 0.8, f"{level:g} %", ha="left", transform=axes.get_yaxis_transform(), size=9)
    axes.set_xlabel("epochs")
    axes.set_ylabel("training error (top-1), %")
    axes.set_title("The four-layer network: training error by epoch", size=11)
    axes.set_ylim(0, 1.08 * max([level, *(error for curve in curves for error in curve.errors)]))
    axes.set_xlim(0, 1.02 * max(curve.epochs[-1] for curve in curves))
    remove_frame(axes)
    axes.legend(frameon=False)
    save(figure, path, bbox_inches="tight")
