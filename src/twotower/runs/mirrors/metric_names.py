"""The keys under which a mirror shows a run, the same in W&B and in TensorBoard.

    train, validation, scales, memory   the numbers of the events of these names in metrics.jsonl
    kernels/conv1                       tower 0's kernels above tower 1's, at each validation
    validation/images                   the same few images each time, with the likeliest classes as captions
    validation/predictions              the same as a table: image, label, five classes, their probabilities
    input/picture                       originals and crops of the network's input, once
    figures/...                         drawings by launch/figure.py and launch/report.py

All are logged over the training step.
"""

from collections.abc import Mapping
from typing import Any

from twotower.config import NetworkConfig

MIRRORED = ("train", "validation", "scales", "memory")  # events of the journal whose numbers are mirrored

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
FIGURES = ("figure3", "figure4", "activations", "confusion", "towers")  # drawings of one run, by launch/figure.py
DIFFERENCES = ("differences-centre", "differences-ten")  # drawings of a report: ablations with the lines of 2012
EVALUATION = ("top1_error", "top5_error", "loss", "num_images", "images_per_second")
SIZES = ("weight", "update", "output")  # mean absolute values of each layer, in `scales`


def kernels_key(network: NetworkConfig) -> str:
    """The key of the picture of the first layer's kernels."""
    return f"kernels/{next(iter(network.layers))}"


def list_metrics(network: NetworkConfig) -> list[str]:
    """Lists every key that a finished training of a network logs over the step, pictures and tables included.

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
        kernels_key(network),
        IMAGES,
        PREDICTIONS,
        PICTURE,
    ]


def list_summary_keys() -> list[str]:
    """Lists the keys that only a summary has: final and best values of a training, errors of an evaluation."""
    return [*SUMMARY, *(f"{view}/{key}" for view in ("centre", "ten") for key in EVALUATION)]


def flatten_evaluation(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of evaluation.json by key: `centre/top1_error` ..., or `test/centre/...` for the test split."""
    split = "" if result["split"] == "val" else f"{result['split']}/"
    views = {view: result[view] for view in ("centre", "ten") if result.get(view) is not None}
    return {
        f"{split}{view}/{key}": errors[key] for view, errors in views.items() for key in EVALUATION if key in errors
    }


def list_figures() -> list[str]:
    """Lists the drawings that `launch/figure.py` sends, and those of `launch/report.py` that all runs share."""
    return [f"figures/{name}" for name in (*FIGURES, *DIFFERENCES)]
