"""Prepares each figure of runs: its numbers in sentences, and the function that writes the drawing.

launch/figure.py draws single figures, launch/report.py those of a report; both prepare them here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from twotower.evaluation.subject import Subject
from twotower.figures.activations import describe, make_activations, write_activations
from twotower.figures.colour_selectivity import Course, write_colour
from twotower.figures.colour_selectivity import describe as describe_colour
from twotower.figures.confusion import count_confusion, write_confusion
from twotower.figures.curves import write_curves
from twotower.figures.figure1 import LEVEL, NAMES, make_curves, summarise, write_figure1
from twotower.figures.figure1 import describe as describe_curves
from twotower.figures.figure3 import Kernels, write_figure3
from twotower.figures.figure3 import summarise as summarise_kernels
from twotower.figures.figure4 import make_figure4, write_figure4
from twotower.figures.neighbour_precision import Precision
from twotower.figures.tower_costs import TowerCosts, write_tower_costs
from twotower.figures.tower_costs import describe as describe_costs
from twotower.ground.wording import counted
from twotower.runs.history import History

SHOWN_PAIRS = 5  # most pairs of classes that are named in sentences


@dataclass(frozen=True)
class PreparedFigure:
    """A figure that can be written.

    Attributes:
        lines: its numbers in sentences.
        write: writes the drawing at a path and its numbers beside it, and returns the paths of the files.
        caption: the most important numbers, for the legend in a report.
    """

    lines: list[str]
    write: Callable[[Path], list[Path]]
    caption: str = ""


def prepare_figure1(histories: Sequence[History], level: float = LEVEL) -> PreparedFigure:
    """Training error by epoch.

    Raises: ValueError if the runs differ in more than activation, learning rate and seed.
    """
    curves = make_curves(histories)
    lines = [
        f"not finished, drawn as far as it is: {history.run_dir}" for history in histories if not history.finished
    ]
    lines += describe_curves(curves, level)
    ratios = summarise(curves, level)["ratios_to_relu"]
    for activation, ratio in ratios.items():
        span = f"{ratio['lowest']:.2f} to {ratio['highest']:.2f} over pairs of runs"
        paper = "; the paper: about 6" if activation == "tanh" else ""
        lines.append(f"{NAMES[activation]} takes {ratio['mean']:.2f} times as many epochs as ReLU ({span}){paper}")
    caption = "; ".join(
        f"{activation} takes {ratio['mean']:.2f} times as many epochs to {level:g} % as ReLU"
        for activation, ratio in ratios.items()
    )
    return PreparedFigure(lines, lambda path: write_figure1(curves, level, path), caption)


def prepare_curves(histories: Sequence[History]) -> PreparedFigure:
    return PreparedFigure([], lambda path: write_curves(histories, path))


def prepare_colour(courses: Sequence[Course]) -> PreparedFigure:
    """Colour selectivity of both towers over time, by group."""
    return PreparedFigure(describe_colour(courses), lambda path: write_colour(courses, path))


def prepare_figure3(kernels: Kernels) -> PreparedFigure:
    summary = summarise_kernels(kernels)
    lines = [
        f"tower {tower}: mean colour selectivity {mean:.3f} (0 grey, 0.667 random, 1 colour alone)"
        for tower, mean in enumerate(summary["mean_selectivity"])
    ]
    if "more_colour" in summary:
        more = summary["more_colour"]
        lines.append(
            f"a kernel of tower {more['tower']} sees more colour than one of the other with probability "
            f"{more['probability']:.2f} (0.50: the towers do not differ; p = {more['p_value']:.2f})"
        )
    return PreparedFigure(lines, lambda path: write_figure3(kernels, path))


def _describe_precision(queries: str, precision: Precision) -> str:
    return (
        f"{queries}: {precision.at_1:.1f} % of the nearest and {precision.at_k:.1f} % of the {precision.k} nearest "
        f"training images have the query's class (by chance {precision.by_chance:.1f} %)"
    )


def prepare_figure4(
    subject: Subject, images: Sequence[str] = (), queries: Sequence[str] = (), seed: int = 0
) -> PreparedFigure:
    """Likeliest classes and nearest images, as `make_figure4` finds them.

    Raises: ValueError for a run on synthetic data, a network of one layer, an image that is not there.
    """
    figure = make_figure4(subject, images, queries, seed)
    shown, validation = figure.shown, figure.validation
    lines = [
        f"nearest in {figure.layer}, {figure.dimensions} units",
        _describe_precision(counted(shown.num_queries, "query", "queries") + " shown", shown),
        _describe_precision(counted(validation.num_queries, "validation image"), validation),
    ]
    return PreparedFigure(lines, lambda path: write_figure4(figure, path))


def prepare_activations(subject: Subject, layer: str | None = None, image: str | None = None) -> PreparedFigure:
    """Maps of a layer for one image.

    Raises: ValueError for a layer or an image that is not there, or a run on synthetic data.
    """
    activations = make_activations(subject, layer, image)
    heading = f"{activations.layer} for {activations.image.name} ({activations.class_name})"
    return PreparedFigure([heading, *describe(activations)], lambda path: write_activations(activations, path))


def prepare_confusion(title: str, log_probabilities: Tensor, labels: Tensor, classes: list[str]) -> PreparedFigure:
    """Confusion of the classes, from float32 [N, classes] and int64 [N]."""
    confusion = count_confusion(log_probabilities, labels, classes)
    lines = [
        f"{name} taken for {taken_for}: {counted(count, 'image')}, {share:.0f} % of the class"
        for name, taken_for, count, share in confusion.worst_pairs()[:SHOWN_PAIRS]
    ]
    return PreparedFigure(lines, lambda path: write_confusion(confusion, title, path))


def prepare_towers(title: str, costs: TowerCosts) -> PreparedFigure:
    """What each class loses without one of the towers."""
    return PreparedFigure(describe_costs(costs), lambda path: write_tower_costs(costs, title, path))
