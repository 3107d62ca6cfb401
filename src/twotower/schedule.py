"""When the learning rate is divided: by hand in 2012, whenever the validation error stopped improving (section 5)."""

import math
from typing import Any

from twotower.config import ScheduleConfig


class Schedule:
    """The learning rate of each epoch.

    `fixed` divides after the epochs in `drop_epochs`. `plateau` divides when `patience` epochs have brought no lower
    top-1 validation error, at most `max_drops` times (the paper: three); both divide by `divide_by` (the paper: 10).
    """

    def __init__(self, config: ScheduleConfig, initial_rate: float) -> None:
        self.config, self.initial_rate = config, initial_rate
        self.num_drops = 0
        self.best_error = math.inf
        self.epochs_without_gain = 0

    @property
    def rate(self) -> float:
        return self.initial_rate / self.config.divide_by**self.num_drops

    def end_epoch(self, epochs_done: int, top1_error: float) -> None:
        """Takes note of the validation error (percent) after `epochs_done` epochs."""
        if self.config.rule == "fixed":
            self.num_drops = sum(epoch <= epochs_done for epoch in self.config.drop_epochs)
            return
        if top1_error < self.best_error:
            self.best_error, self.epochs_without_gain = top1_error, 0
            return
        self.epochs_without_gain += 1
        if self.epochs_without_gain >= self.config.patience and self.num_drops < self.config.max_drops:
            self.num_drops += 1
            self.epochs_without_gain = 0

    def state(self) -> dict[str, Any]:
        """What must be kept to go on; JSON."""
        best = None if math.isinf(self.best_error) else self.best_error
        return {
            "num_drops": self.num_drops,
            "best_error": best,
            "epochs_without_gain": self.epochs_without_gain,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state` gave."""
        self.num_drops = state["num_drops"]
        self.best_error = math.inf if state["best_error"] is None else state["best_error"]
        self.epochs_without_gain = state["epochs_without_gain"]
