"""Which classes a run takes for which: the confusion matrix, errors by class, and the pairs mistaken most often."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from twotower.figures.drawing import COUNT, ERROR, open_pyplot, remove_frame, save, write_numbers
from twotower.ground.words import counted

SHOWN_WHOLE = 30  # classes up to which the matrix is drawn; of more, the worst pairs and classes
WORST = 15


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

    def worst_pairs(self) -> list[tuple[str, str, int, float]]:
        """Class, what it was taken for, how often, and in what percentage of its images; the most frequent first."""
        images = self.counts.sum(1)
        wrong = self.counts - np.diag(np.diag(self.counts))
        order = np.argsort(-wrong, axis=None, kind="stable")
        pairs = [divmod(int(place), len(self.classes)) for place in order[: WORST * 4]]
        return [
            (self.classes[row], self.classes[column], int(wrong[row, column]), 100 * wrong[row, column] / images[row])
            for row, column in pairs
            if wrong[row, column]
        ]


def count_confusion(log_probabilities: Tensor, labels: Tensor, classes: list[str]) -> Confusion:
    """From float32 [N, classes] and int64 [N]; of classes that tie, the first counts."""
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
        "top1_error": float(100 * (1 - np.trace(confusion.counts) / confusion.counts.sum())),
        "error_by_class": {confusion.classes[i]: float(errors[i]) for i in order if not np.isnan(errors[i])},
        "worst_pairs": [
            {"class": one, "taken_for": other, "images": count, "percent_of_class": share}
            for one, other, count, share in confusion.worst_pairs()
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
    pyplot = open_pyplot("confusion")
    found, count = summarise(confusion), len(confusion.classes)
    if count <= SHOWN_WHOLE:
        side = 3.0 + 0.38 * count
        figure, axes = pyplot.subplots(figsize=(side + 1.0, side), layout="constrained")
        shares = 100 * confusion.counts / np.maximum(confusion.counts.sum(1, keepdims=True), 1)
        picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        for row, column in np.argwhere(confusion.counts):
            colour = "white" if shares[row, column] > 55 else "black"
            text = f"{shares[row, column]:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=colour, size=8)
        axes.set_xticks(range(count), confusion.classes, rotation=60, ha="right", rotation_mode="anchor", size=8)
        axes.set_yticks(range(count), confusion.classes, size=8)
        axes.set_xlabel("most likely class")
        axes.set_ylabel("class")
        figure.colorbar(picture, label="% of the class's images", shrink=0.7)
    else:
        figure, (pairs_axes, class_axes) = pyplot.subplots(1, 2, figsize=(12.0, 6.0), layout="constrained")
        pairs = found["worst_pairs"][:WORST]
        names = [f"{pair['class']} for {pair['taken_for']}" for pair in pairs]
        pairs_axes.barh(names[::-1], [pair["images"] for pair in pairs][::-1], color=COUNT)
        pairs_axes.set_xlabel("images")
        pairs_axes.set_title("most frequent: class, taken for", size=10)
        worst = list(found["error_by_class"].items())[:WORST]
        class_axes.barh([name for name, _ in worst][::-1], [error for _, error in worst][::-1], color=ERROR)
        class_axes.set_xlabel("top-1 error, %")
        class_axes.set_title("classes with the highest error", size=10)
        for axes in (pairs_axes, class_axes):
            remove_frame(axes)
    figure.suptitle(
        f"{title}: top-1 error {found['top1_error']:.2f} % of {counted(found['num_images'], 'image')}", size=11
    )
    save(figure, path)
