"""The history of a run, read back: its configuration, its training line by line, its validations epoch by epoch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twotower.config import Config
from twotower.config.stored_config import read_config
from twotower.runs.events import check_values, read_events

QUANTITIES = ("loss", "top1_error", "top5_error")


@dataclass(frozen=True)
class Epoch:
    """The end of an epoch, or of the run. Losses in nats, errors in percent.

    Attributes:
        epoch: epochs done, a fraction where the run ended within one.
        train: means over the steps since the last epoch, with dropout and random crops, while the weights changed.
        validation: afterwards, on the centre crop.
        learning_rate: of the last step.
    """

    epoch: float
    train: dict[str, float]
    validation: dict[str, float]
    learning_rate: float


@dataclass(frozen=True)
class TrainWindow:
    """One `train` line of the journal: means over a few steps. Losses in nats, errors in percent.

    Attributes:
        step: the last of its steps, from 1.
        epoch: epochs done after it.
        num_steps: how many it holds.
        train: means over them, with dropout and random crops, while the weights changed.
        learning_rate: of the last step, the highest of all layers.
    """

    step: int
    epoch: float
    num_steps: int
    train: dict[str, float]
    learning_rate: float


@dataclass(frozen=True)
class History:
    """One run; `finished` is false while it is training, and if it was stopped or failed."""

    run_dir: Path
    config: Config
    epochs: list[Epoch]
    finished: bool
    windows: list[TrainWindow]


def mean_of(windows: list[TrainWindow]) -> dict[str, float]:
    """The mean over several windows, weighted by their numbers of steps."""
    steps = sum(window.num_steps for window in windows)
    return {key: sum(window.num_steps * window.train[key] for window in windows) / steps for key in QUANTITIES}


def _window(event: dict[str, Any], last_step: int) -> TrainWindow:
    train = {key: event[key] for key in QUANTITIES}
    return TrainWindow(
        event["step"], event["epoch"], max(1, event["step"] - last_step), train, event["learning_rate"]
    )


def merge_windows(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events that `read_history` needs, with one `train` line for all since the last epoch; its epochs are alike.

    Values by layer (`scales`) are left out, and the numbers of a step that are no measure of learning.
    """
    merged: list[dict[str, Any]] = []
    waiting: list[TrainWindow] = []
    last_step = 0
    for event in events:
        if event["event"] == "train":
            waiting.append(_window(event, last_step))
            last_step = event["step"]
            continue
        if event["event"] == "validation" and waiting:
            end = waiting[-1]
            place = {"step": end.step, "epoch": end.epoch, "learning_rate": end.learning_rate}
            merged.append({"event": "train", **place, **mean_of(waiting)})
            waiting = []
        if event["event"] != "scales":
            merged.append(event)
    return merged


def read_history(run_dir: Path) -> History:
    """Reads config.yaml and metrics.jsonl. A last line that was cut short by a kill is left out.

    Raises: ValueError for a folder that is no run, or a run without a finished epoch.
    """
    config = read_config(run_dir)
    epochs: list[Epoch] = []
    windows: list[TrainWindow] = []
    begin, finished = 0, False  # `begin`: the first window of the present epoch
    path = run_dir / "metrics.jsonl"
    for event in read_events(path):
        if event["event"] == "train":
            check_values(path, event, ("epoch", "learning_rate", *QUANTITIES))
            windows.append(_window(event, windows[-1].step if windows else 0))
        elif event["event"] == "validation" and windows[begin:]:
            check_values(path, event, ("epoch", *QUANTITIES))
            validation = {key: event[key] for key in QUANTITIES}
            train, rate = mean_of(windows[begin:]), windows[-1].learning_rate
            epochs.append(Epoch(event["epoch"], train, validation, rate))
            begin = len(windows)
        finished = event["event"] == "end"
    if not epochs:
        raise ValueError(f"{run_dir} has no finished epoch in metrics.jsonl; train on before drawing it.")
    return History(run_dir, config, epochs, finished, windows)
