"""What a run has left, read back: its configuration, and loss and errors epoch by epoch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twotower.config import Config
from twotower.journal import read_events
from twotower.stored import read_config

QUANTITIES = ("loss", "top1_error", "top5_error")


@dataclass(frozen=True)
class Epoch:
    """The end of an epoch, or of the run. Losses in nats, errors in percent.

    Attributes:
        epoch: epochs done.
        train: means over the steps since the last epoch, with dropout and random crops, while the weights changed.
        validation: afterwards, on the centre crop.
        learning_rate: of the last step.
    """

    epoch: float
    train: dict[str, float]
    validation: dict[str, float]
    learning_rate: float


@dataclass(frozen=True)
class History:
    """One run; `finished` is false while it is training, and if it was stopped or failed."""

    run_dir: Path
    config: Config
    epochs: list[Epoch]
    finished: bool


def _means(windows: list[tuple[int, dict[str, Any]]]) -> dict[str, float]:
    """Of windows of so many steps each."""
    steps = sum(count for count, _ in windows)
    return {key: sum(count * event[key] for count, event in windows) / steps for key in QUANTITIES}


def read_history(run_dir: Path) -> History:
    """Reads config.yaml and metrics.jsonl. A last line that was cut short by a kill is left out.

    Raises: ValueError for a folder that is no run, or a run without a finished epoch.
    """
    config = read_config(run_dir)
    epochs: list[Epoch] = []
    windows: list[tuple[int, dict[str, Any]]] = []
    last_step, finished = 0, False
    for event in read_events(run_dir / "metrics.jsonl"):
        if event["event"] == "train":
            windows.append((event["step"] - last_step, event))
            last_step = event["step"]
        elif event["event"] == "validation" and windows:
            validation = {key: event[key] for key in QUANTITIES}
            epochs.append(Epoch(event["epoch"], _means(windows), validation, windows[-1][1]["learning_rate"]))
            windows = []
        finished = event["event"] == "end"
    if not epochs:
        raise ValueError(f"{run_dir} has no finished epoch in metrics.jsonl; train on before drawing it.")
    return History(run_dir, config, epochs, finished)
