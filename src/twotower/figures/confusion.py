"""The classes that a run takes for others: the confusion matrix, errors by class, and the worst pairs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from twotower.figures.drawing import open_pyplot, remove_frame, save, write_numbers
from twotower.figures.palette import COUNT, ERROR
from twotower.ground.wording import counted

MOST_IN_MATRIX = 30  # most classes of a drawn matrix; with more, the worst pairs and classes are drawn
WORST = 15  # pairs and classes that are drawn without a matrix


@dataclass(frozen=True)
class Confusion:
    """`counts` int64 [classes, classes]: images of the row's class for which the column's was the most likely."""

    classes: list[str]
    counts: NDArray[np.int64]

    @property
    def errors(self) -> NDArray[np.float64]:
        """The percentage of each class's images that is taken for another class; NaN without images."""
        images = self.counts.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(100 * (1 - np.diag(self.counts) / images))

    @property
    def top1_error(self) -> float:
        """In percent of all images."""
        return float(100 * (1 - np.trace(self.counts) / self.counts.sum()))

    def worst_pairs(self) -> list[tuple[str, str, int, float]]:
        """Class, class it was taken for, number and percentage of its images; the most frequent first."""
        images = self.counts.sum(1)
        wrong = self.counts - np.diag(np.diag(self.counts))
        order = np.argsort(-wrong, axis=None, kind="stable")
        pairs = [divmod(int(index), len(self.classes)) for index in order[: WORST * 4]]
        return [
            (self.classes[row], self.classes[column], int(wrong[row, column]), 100 * wrong[row, column] / images[row])
            for row, column in pairs
            if wrong[row, column]
        ]


def count_confusion(log_probabilities: Tensor, labels: Tensor, classes: list[str]) -> Confusion:
    """Counts the predicted classes from float32 [N, classes] and int64 [N]; of classes that tie, the first counts."""
    predicted = log_probabilities.argmax(1).numpy()
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (labels.numpy(), predicted), 1)
    return Confusion(classes, counts)


def summarise(confusion: Confusion) -> dict[str, Any]:
    """Top-1 error in percent, classes from the worst to the best, worst pairs."""
    errors = confusion.errors
    order = np.argsort(-np.nan_to_num(errors, nan=-1.0), kind="stable")
    return {
        "num_images": int(confusion.counts.sum()),
        "top1_error": confusion.top1_error,
        "error_by_class": {confusion.classes[i]: float(errors[i]) for i in order if not np.isnan(errors[i])},
        "worst_pairs": [
            {"class": name, "taken_for": taken_for, "images": count, "percent_of_class": share}
            for name, taken_for, count, share in confusion.worst_pairs()
        ],
    }


def write_confusion(confusion: Confusion, title: str, path: Path) -> list[Path]:
    """Writes the drawing and, beside it, NAME.csv (all pairs that occur) and NAME.json (`summarise`)."""
    rows = (
        [confusion.classes[row], confusion.classes[column], confusion.counts[row, column]]
        for row, column in np.argwhere(confusion.counts)
    )
    tables = write_numbers(path, ["class", "predicted", "images"], rows, summarise(confusion))
    _draw(confusion, title, path)
    return [path, *tables]


def _draw(confusion: Confusion, title: str, path: Path) -> None:
    pyplot, summary = open_pyplot("confusion"), summarise(confusion)
    count = len(confusion.classes)
    if count <= MOST_IN_MATRIX:
        side = 3.0 + 0.38 * count
        figure, axes = pyplot.subplots(figsize=(side + 1.0, side), layout="constrained")
        _draw_matrix(figure, axes, confusion)
    else:
        figure, (pairs_axes, class_axes) = pyplot.subplots(1, 2, figsize=(12.0, 6.0), layout="constrained")
        _draw_worst(pairs_axes, class_axes, summary)
    images = counted(summary["num_images"], "image")
    figure.suptitle(f"{title}: top-1 error {summary['top1_error']:.2f} % of {images}", size=11)
    save(figure, path)


def _draw_matrix(figure: Any, axes: Any, confusion: Confusion) -> None:
    count = len(confusion.classes)
    shares = 100 * confusion.counts / np.maximum(confusion.counts.sum(1, keepdims=True), 1)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for row, column in np.argwhere(confusion.counts):
        colour = "white" if shares[row, column] > 55 else "black"
        axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", color=colour, size=8)
    axes.set_xticks(range(count), confusion.classes, rotation=60, ha="right", rotation_mode="anchor", size=8)
    axes.set_yticks(range(count), confusion.classes, size=8)
    axes.set_xlabel("most likely class")
    axes.set_ylabel("class")
    figure.colorbar(picture, label="% of the class's images", shrink=0.7)


def _draw_worst(pairs_axes: Any, class_axes: Any, summary: dict[str, Any]) -> None:
    """Bars of the pairs that are mistaken most often, and of the classes with the highest errors."""
    pairs = summary["worst_pairs"][:WORST]
    names = [f"{pair['class']} for {pair['taken_for']}" for pair in pairs]
    pairs_axes.barh(names[::-1], [pair["images"] for pair in pairs][::-1], color=COUNT)
    pairs_axes.set_xlabel("images")
    pairs_axes.set_title("most frequent: class, taken for", size=10)
    worst = list(summary["error_by_class"].items())[:WORST]
    class_axes.barh([name for name, _ in worst][::-1], [error for _, error in worst][::-1], color=ERROR)
    class_axes.set_xlabel("top-1 error, %")
    class_axes.set_title("classes with the highest error", size=10)
    for axes in (pairs_axes, class_axes):
        remove_frame(axes)
