"""How far a run is: the steps since the last line of the journal, and what a checkpoint keeps of those before."""

import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from twotower.evaluation.metrics import Counts


def describe_errors(validation: Counts) -> dict[str, float]:
    """Loss in nats and errors in percent, as manifests and summaries have them."""
    return {"loss": validation.loss, "top1_error": validation.top1_error, "top5_error": validation.top5_error}


@dataclass
class Window:
    """The steps since the last line of the journal."""

    sums: Counts = field(default_factory=Counts.zero)
    pending: list[Tensor] = field(default_factory=list)  # counts of single steps, still on the device
    began: float = field(default_factory=time.perf_counter)
    steps: int = 0
    bytes_sent: int = 0
    input_seconds: float = 0.0  # spent waiting for the feed


@dataclass
class Progress:
    """What a run has reached, over all parts of one that was resumed.

    Attributes:
        epoch: counts of the present epoch's training images, as far as they are in the journal.
        best: lowest errors of all validations so far, in percent; infinite before the first.
        last: loss in nats and errors in percent of the last validation; empty before the first.
        seconds: spent in training alone.
        images: trained on, an image of each epoch anew.
    """

    epoch: Counts = field(default_factory=Counts.zero)
    best: dict[str, float] = field(default_factory=lambda: {"best_top1_error": math.inf, "best_top5_error": math.inf})
    last: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    images: int = 0

    def close_window(self, window: Window, seconds: float, num_images: int) -> None:
        """Adds a window of steps that is in the journal now."""
        self.epoch.add(window.sums)
        self.seconds += seconds
        self.images += num_images

    def end_epoch(self, validation: Counts) -> None:
        """Notes a validation, and begins to count anew."""
        self.last = describe_errors(validation)
        for key in ("top1_error", "top5_error"):
            self.best[f"best_{key}"] = min(self.best[f"best_{key}"], self.last[key])
        self.epoch = Counts.zero()

    def to_json(self, window: Window, global_batch: int, is_watching_loss: bool) -> dict[str, Any]:
        """What a manifest holds, with a window that is not in the journal yet. JSON has no infinity: null."""
        return {
            "window": window.sums.sums.tolist(),
            "epoch": self.epoch.sums.tolist(),
            "best": {key: None if math.isinf(value) else value for key, value in self.best.items()},
            "last": self.last,
            "seconds": self.seconds + time.perf_counter() - window.began,
            "images": self.images + window.steps * global_batch,
            "watching_loss": is_watching_loss,
        }

    @staticmethod
    def from_json(stored: dict[str, Any]) -> "Progress":
        """Reads the part of `to_json` that does not belong to the window or to the watched loss."""
        return Progress(
            epoch=Counts(torch.tensor(stored["epoch"], dtype=torch.float64)),
            best={key: math.inf if value is None else value for key, value in stored["best"].items()},
            last=stored["last"],
            seconds=stored["seconds"],
            images=stored["images"],
        )
