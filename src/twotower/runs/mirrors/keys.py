"""What a mirror of a run shows, and under which keys: the same in W&B (`wandb_mirror`) and `tensorboard_mirror`.

    train, validation, scales, memory   the numbers of the events of these names in metrics.jsonl
    kernels/conv1                       tower 0's kernels above tower 1's, at each validation
    validation/images                   the same few images each time, with the likeliest classes as captions
    validation/predictions              the same as a table: image, label, five classes, their probabilities
    input/picture                       what the network is fed, once
    figures/...                         what launch/figure.py and launch/report.py drew

All are over the training step.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.config import NetworkConfig
from twotower.runs.mirrors.training_pictures import Prediction

MIRRORED = ("train", "validation", "scales", "memory")  # events of the journal

TRAIN = (
    "epoch",
    "loss",
    "top1_error",
    "top5_error",
    "images_per_second",
    "exchange_wait_ms",
    "input_wait_ms",
    "exchange_bytes",
    "learning_rate",
)
VALIDATION = ("epoch", "loss", "top1_error", "top5_error", "images_per_second")
IMAGES, PREDICTIONS, PICTURE = "validation/images", "validation/predictions", "input/picture"
SUMMARY = ("loss", "top1_error", "top5_error", "best_top1_error", "best_top5_error", "images_per_second", "seconds")
FIGURES = ("figure3", "figure4", "activations", "confusion")  # of one run, by launch/figure.py
DIFFERENCES = ("differences-centre", "differences-ten")  # of a report: ablations with the lines of 2012
EVALUATION = ("top1_error", "top5_error", "loss", "num_images", "images_per_second")
SIZES = ("weight", "update", "output")  # of each layer, in `scales`


def kernels_of(network: NetworkConfig) -> str:
    """The key of the picture of the first layer's kernels."""
    return f"kernels/{next(iter(network.layers))}"


def metrics_of(network: NetworkConfig) -> list[str]:
    """Every key that a finished training of a network logs over the step, pictures and tables included.

    (Without images there are fewer: data=synthetic has none to show, and no picture of its input.)
    """
    first, towers = next(iter(network.layers)), [f"tower{tower}" for tower in range(network.towers)]
    scales = [f"{tower}/{layer}/{size}" for tower in towers for layer in network.layers for size in SIZES]
    return [
        *(f"train/{key}" for key in TRAIN),
        *(f"validation/{key}" for key in VALIDATION),
        *(f"scales/{key}" for key in scales),
        *(f"scales/{tower}/{first}/colour" for tower in towers),
        *(f"memory/{tower}" for tower in towers),
        kernels_of(network),
        IMAGES,
        PREDICTIONS,
        PICTURE,
    ]


def summary_of() -> list[str]:
    """Every key that is only in a summary: the final and best values of a training, the views of an evaluation."""
    return [*SUMMARY, *(f"{view}/{key}" for view in ("centre", "ten") for key in EVALUATION)]


def values_of_evaluation(result: Mapping[str, Any]) -> dict[str, float]:
    """What evaluation.json holds, by key: `centre/top1_error` ..., of another split than `val` `test/centre/...`."""
    split = "" if result["split"] == "val" else f"{result['split']}/"
    views = {view: result[view] for view in ("centre", "ten") if result.get(view) is not None}
    return {f"{split}{view}/{key}": one[key] for view, one in views.items() for key in EVALUATION if key in one}


def figures_of() -> list[str]:
    """Every drawing that `launch/figure.py` sends, and those of `launch/report.py` that all runs share."""
    return [f"figures/{name}" for name in (*FIGURES, *DIFFERENCES)]


class Mirror(ABC):
    """One place where a run is shown. Opened by a module of its own, closed in every case.

    Attributes:
        title: what a person calls it.
        failures: the exceptions by which it is lost; all others are our own mistakes.
    """

    title: str
    failures: tuple[type[Exception], ...]

    @abstractmethod
    def event(self, event: str, step: int, values: Mapping[str, float]) -> None:
        """The numbers of an event of the journal, one of `MIRRORED`."""

    @abstractmethod
    def picture(self, path: Path) -> None:
        """What the network is fed, a PNG, at step 0."""

    @abstractmethod
    def kernels(self, step: int, picture: NDArray[np.uint8]) -> None:
        """A picture of the first layer's kernels, uint8 [H, W, 3]."""

    @abstractmethod
    def predictions(self, step: int, predictions: Sequence["Prediction"]) -> None:
        """A few images, at least one, with what the network says of them."""

    @abstractmethod
    def checkpoint(self, path: Path, step: int, is_last: bool) -> None:
        """The folder of a checkpoint that is complete, and may be deleted afterwards."""

    @abstractmethod
    def summary(self, step: int, values: Mapping[str, float]) -> None:
        """Final and best values of a training, or the errors of an evaluation of the checkpoint of `step`."""

    @abstractmethod
    def figures(self, figures: Mapping[str, Path]) -> None:
        """Drawings that are PNGs: {"figure3": path} becomes `figures/figure3`."""

    @abstractmethod
    def close(self, exit_code: int) -> None:
        """Ends it; 0 is success."""
