"""When the learning rates change, layer by layer.

| rule          | what it does                                                                                    |
|---------------|-------------------------------------------------------------------------------------------------|
| `plateau`     | divides when the validation error stops improving: section 5 of the paper, by hand in 2012      |
| `fixed`       | divides after given epochs                                                                      |
| `recorded`    | repeats what was changed by hand in a run of 2012, scaled to any number of epochs               |
| `exponential` | base * T^(-progress), as a staircase (dexp) or smoothly (exp): lr.cu, from December 2012 on     |

What was done by hand under `exponential` rates as well, conv1 frozen and the colour noise ended, are its `changes`.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from twotower.config import ChangeConfig, NetworkConfig, ScheduleConfig


@dataclass(frozen=True)
class Rates:
    """Learning rates of each layer's weights and of its biases; 0 freezes."""

    weights: Mapping[str, float]
    biases: Mapping[str, float]

    @property
    def highest(self) -> float:
        """The rate of all layers' weights."""
        return max(self.weights.values())

    def describe(self) -> str:
        """The rates that most layers have, then those of the others: "weights 0.001 (conv1 1e-05), biases 0.02"."""
        parts = []
        for what, rates in (("weights", self.weights), ("biases", self.biases)):
            common = Counter(rates.values()).most_common(1)[0][0]
            others = [f"{name} {rate:.3g}" for name, rate in rates.items() if rate != common]
            parts.append(f"{what} {common:.3g}" + (f" ({', '.join(others)})" if others else ""))
        return ", ".join(parts)

    def describe_weights(self) -> str:
        """The rate of most layers that learn, then those of the others: "0.01, fc8 0.1"; "0" where none learns."""
        learning = {name: rate for name, rate in self.weights.items() if name not in self.frozen}
        if not learning:
            return "0"
        common = Counter(learning.values()).most_common(1)[0][0]
        others = [f"{name} {rate:.3g}" for name, rate in learning.items() if rate != common]
        return ", ".join([f"{common:.3g}", *others])

    @property
    def frozen(self) -> frozenset[str]:
        """The layers that do not learn at all."""
        return frozenset(name for name, rate in self.weights.items() if rate == 0 and self.biases[name] == 0)


def _staircase(progress: float, divide: float, levels: int | None) -> float:
    """The factor T^(-i / (n - 1)) in the i-th of n equal intervals, from 0 on, or T^(-progress) (lr.cu:144-151).

    A step that begins exactly at a boundary still has the old rate, as there. The boundary is at whole numbers of
    steps, and the progress need not be one to the last bit.
    """
    if levels is None:
        return float(divide**-progress)
    interval = min(max(math.ceil(progress * levels - 1e-9) - 1, 0), levels - 1)
    return float(divide ** (-interval / (levels - 1)))


class Schedule:
    """The learning rates at each step.

    Args:
        initial_rate: of the weights; biases start at `network.bias_rate` times this.

    Raises: ValueError naming a layer that a change names and the network does not have.
    """

    def __init__(self, config: ScheduleConfig, initial_rate: float, network: NetworkConfig) -> None:
        self.config, self.initial_rate, self.network = config, initial_rate, network
        self.num_drops = 0
        self.best_error = math.inf
        self.epochs_without_gain = 0
        self._check_changes()

    def _check_changes(self) -> None:
        for number, change in enumerate(self.config.changes):
            unknown = [name for name in (*change.layers, *change.but) if name not in self.network.layers]
            if unknown:
                raise ValueError(
                    f"schedule.changes[{number}] names {unknown[0]}, which network={self.network.name} does not "
                    f"have; its layers are {', '.join(self.network.layers)}."
                )

    def _when(self, change: ChangeConfig) -> float:
        """In epochs of this run."""
        recorded = self.config.recorded_epochs
        return change.epoch if recorded is None else change.epoch * self.config.epochs / recorded

    @property
    def is_by_layer(self) -> bool:
        """Whether rates change in more ways than one number can say."""
        return self.config.rule in ("recorded", "exponential")

    @property
    def noise_epochs(self) -> float | None:
        """After so many epochs of this run the record switched the colour noise off; None: never."""
        return next((self._when(change) for change in self.config.changes if change.colour_noise is False), None)

    def rates(self, epochs_done: float) -> Rates:
        """The rates of the step that follows so many epochs."""
        layers, base = self.network.layers, self.initial_rate
        weights = dict.fromkeys(layers, 1.0)
        biases = dict.fromkeys(layers, self.network.bias_rate)
        if self.config.rule == "exponential":
            progress, c = epochs_done / self.config.epochs, self.config
            falls = _staircase(progress, c.divide_over_run, c.levels)
            bias_falls = _staircase(progress, c.bias_divide_over_run, c.bias_levels)
            weights = {name: rate * falls for name, rate in weights.items()}
            biases = {name: rate * bias_falls for name, rate in biases.items()}
        for change in self.config.changes:
            # A scaled epoch need not fall on the end of a step, so the next step makes the change.
            if self._when(change) <= epochs_done + 1e-9:
                self._apply(change, weights, biases)
        base /= self.config.divide_by**self.num_drops  # only `fixed` and `plateau` count drops
        return Rates(
            {name: base * layer.rate * weights[name] for name, layer in layers.items()},
            {name: base * layer.rate * biases[name] for name, layer in layers.items()},
        )

    @staticmethod
    def _apply(change: ChangeConfig, weights: dict[str, float], biases: dict[str, float]) -> None:
        for name in change.layers or weights:
            if name in change.but:
                continue
            if change.weights is not None:
                weights[name] = change.weights
            if change.biases is not None:
                biases[name] = change.biases

    def end_epoch(self, epochs_done: int, top1_error: float) -> None:
        """Takes note of the validation error (percent) after `epochs_done` epochs."""
        if self.config.rule == "fixed":
            self.num_drops = sum(epoch <= epochs_done for epoch in self.config.drop_epochs)
        if self.config.rule != "plateau":
            return
        if top1_error < self.best_error:
            self.best_error, self.epochs_without_gain = top1_error, 0
            return
        self.epochs_without_gain += 1
        if self.epochs_without_gain >= self.config.patience and self.num_drops < self.config.max_drops:
            self.num_drops += 1
            self.epochs_without_gain = 0

    def state(self) -> dict[str, Any]:
        """Collects what must be kept to go on, as JSON can hold it."""
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
