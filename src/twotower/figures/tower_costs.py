"""What each class loses without one of the towers.

Section 6.1 of the paper says that one tower sees colour and the other one does not; then classes that are told by
their colour should lose more without the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.figures.confusion import Confusion
from twotower.figures.drawing import open_pyplot, remove_frame, save, write_numbers
from twotower.figures.palette import REFERENCE, TOWERS
from twotower.ground.wording import counted

MOST_DRAWN = 30  # classes; of more, those to which it matters most which tower is left


@dataclass(frozen=True)
class TowerCosts:
    """Top-1 errors of the same images.

    Attributes:
        both: with both towers.
        without: without tower 0, and without tower 1.
    """

    both: Confusion
    without: tuple[Confusion, Confusion]

    @property
    def classes(self) -> list[str]:
        return self.both.classes

    @property
    def costs(self) -> NDArray[np.float64]:
        """[2, classes]: points of error more without tower 0, and without tower 1; NaN for classes without images."""
        return np.stack([confusion.errors - self.both.errors for confusion in self.without])

    def order(self) -> list[int]:
        """The classes that have images, from those that need tower 0 most to those that need tower 1 most."""
        needs = self.costs[0] - self.costs[1]
        return [int(index) for index in np.argsort(-needs, kind="stable") if not np.isnan(needs[index])]


def summarise(costs: TowerCosts) -> dict[str, Any]:
    """Top-1 errors in percent of all images, and by class what is lost in points."""
    return {
        "num_images": int(costs.both.counts.sum()),
        "top1_error": costs.both.top1_error,
        "top1_error_without": [confusion.top1_error for confusion in costs.without],
        "cost_by_class": {costs.classes[i]: [float(cost[i]) for cost in costs.costs] for i in costs.order()},
    }


def describe(costs: TowerCosts) -> list[str]:
    """Sentences: the errors, and for each tower the class that needs it most."""
    numbers, order = summarise(costs), costs.order()
    images = counted(numbers["num_images"], "image")
    lines = [f"both towers: top-1 error {numbers['top1_error']:.2f} % of {images}"]
    for tower, error in enumerate(numbers["top1_error_without"]):
        place = order[0 if tower == 0 else -1]
        here, there = costs.costs[tower][place], costs.costs[1 - tower][place]
        lines.append(
            f"without tower {tower}: {error:.2f} %; most of all {costs.classes[place]} needs it, which loses "
            f"{here:+.1f} points, and {there:+.1f} without the other"
        )
    return lines


def write_tower_costs(costs: TowerCosts, title: str, path: Path) -> list[Path]:
    """Writes the drawing and, beside it, NAME.csv (errors by class) and NAME.json (`summarise`)."""
    errors = [costs.both.errors, *(confusion.errors for confusion in costs.without)]
    rows = ([name, *(f"{error[i]:.4f}" for error in errors)] for i, name in enumerate(costs.classes))
    heads = ["class", "top1_error", "top1_error_without_tower0", "top1_error_without_tower1"]
    tables = write_numbers(path, heads, rows, summarise(costs))
    _draw(costs, title, path)
    return [path, *tables]


def _choose(order: Sequence[int]) -> list[int]:
    """As many as can be drawn, from both ends."""
    if len(order) <= MOST_DRAWN:
        return list(order)
    return [*order[: MOST_DRAWN // 2], *order[-(MOST_DRAWN - MOST_DRAWN // 2) :]]


def _draw(costs: TowerCosts, title: str, path: Path) -> None:
    pyplot, numbers = open_pyplot("towers"), summarise(costs)
    shown = _choose(costs.order())
    figure, axes = pyplot.subplots(figsize=(7.5, 1.8 + 0.32 * len(shown)), layout="constrained")
    places = np.arange(len(shown))
    for tower, colour in enumerate(TOWERS):
        error = numbers["top1_error_without"][tower]
        label = f"without tower {tower}: {error:.2f} % of all"
        axes.barh(places + (tower - 0.5) * 0.38, costs.costs[tower][shown], 0.36, color=colour, label=label)
    axes.axvline(0, color=REFERENCE, lw=0.8)
    axes.set_yticks(places, [costs.classes[i] for i in shown], size=8)
    axes.invert_yaxis()
    axes.set_xlabel("points of top-1 error more than with both towers")
    left_out = len(costs.order()) - len(shown)
    if left_out:
        axes.set_ylabel(f"{len(shown)} of {len(costs.order())} classes, to which it matters most which tower is left")
    remove_frame(axes)
    figure.suptitle(f"{title}: top-1 error {numbers['top1_error']:.2f} % with both towers", size=11)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    save(figure, path)
