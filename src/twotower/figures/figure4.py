"""Figure 4: test images with their five most likely classes, and training images that the network finds alike.

The left half shows, as in the paper, photographs of the validation set and their most likely classes. The right half
shows others, each with the six training images whose vectors in the last hidden layer are nearest to its own by
Euclidean distance (section 6.1). The share of neighbours with the class of the query measures it (precision), over
the shown queries and over the validation set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.config import EvaluateConfig
from twotower.data.dataset import Split
from twotower.evaluation.evaluate import make_predictions
from twotower.evaluation.neighbours import nearest
from twotower.evaluation.predict import NUM_GUESSES
from twotower.evaluation.stored_features import Features, choose_split, last_hidden, make_features
from twotower.evaluation.subject import Subject
from twotower.figures.drawing import open_pyplot, save, write_numbers
from twotower.figures.neighbour_precision import Precision, count_precision
from twotower.figures.photographs import (
    PER_ROW,
    Guesses,
    Photograph,
    choose_images,
    draw_guesses,
    read_class_names,
    read_photograph,
    shorten,
)
from twotower.ground.random_streams import numpy_stream
from twotower.ground.wording import counted

NUM_IMAGES, NUM_QUERIES = 8, 5  # numbers of the paper's figure
NUM_NEIGHBOURS = 6
# Multiplications that finding the neighbours of the validation set may take: some minutes on a few cores.
WORK = 5e12


@dataclass(frozen=True)
class Neighbours:
    """The training images nearest to a query, the nearest first, and their Euclidean distances."""

    query: Photograph
    nearest: list[Photograph]
    distances: list[float]


@dataclass(frozen=True)
class Figure4:
    """All that is drawn and counted. `names` are the classes in words."""

    title: str
    layer: str
    dimensions: int
    names: list[str]
    tests: list[Guesses]
    queries: list[Neighbours]
    shown: Precision
    validation: Precision


def make_figure4(subject: Subject, images: Sequence[str], queries: Sequence[str], seed: int) -> Figure4:
    """Computes predictions and the last hidden layer of both splits, unless they are stored.

    The validation set's precision is over all of its images, or over as many, drawn with `seed`, as `WORK` allows.

    Args:
        images, queries: indices or names of validation images, for the left and the right; none: they are drawn.

    Raises: ValueError for a run on synthetic data, a network of one layer, an image that is not there.
    """
    dataset, crop_size = subject.dataset, subject.config.input.crop_size
    val, train = choose_split(dataset, "val"), choose_split(dataset, "train")
    layer = last_hidden(subject.config.network)
    tested = choose_images(val, images, NUM_IMAGES, seed, "images")
    asked = choose_images(val, queries, NUM_QUERIES, seed, "queries")
    centre = make_predictions(subject, EvaluateConfig(run=str(subject.run_dir)))["centre"]
    of_val, of_train = make_features(subject, "val", layer), make_features(subject, "train", layer)
    k = min(NUM_NEIGHBOURS, len(train))
    evaluated = _choose_evaluated(len(val), of_train, seed)
    wanted = np.union1d(evaluated, asked)
    neighbours, distances = nearest(of_val.values[wanted], of_train.values, k)
    row_of = {int(index): row for row, index in enumerate(wanted)}
    rows = np.array([row_of[index] for index in asked])
    is_evaluated = np.isin(wanted, evaluated)

    def photo(split: Split, index: int) -> Photograph:
        return read_photograph(dataset, split, index, crop_size)

    tests = []
    for index in tested:
        probabilities, classes = centre.log_probabilities[index].exp().sort(descending=True, stable=True)
        tests.append(Guesses(photo(val, index), classes[:NUM_GUESSES].tolist(), probabilities[:NUM_GUESSES].tolist()))
    return Figure4(
        title=f"{subject.run_dir.resolve().name}, {subject.checkpoint.name}",
        layer=layer,
        dimensions=of_val.values.shape[1],
        names=read_class_names(subject),
        tests=tests,
        queries=[
            Neighbours(
                photo(val, index), [photo(train, int(near)) for near in neighbours[row]], distances[row].tolist()
            )
            for index, row in zip(asked, rows, strict=True)
        ],
        shown=count_precision(neighbours[rows], val.labels[asked], train.labels),
        validation=count_precision(neighbours[is_evaluated], val.labels[wanted[is_evaluated]], train.labels),
    )


def _choose_evaluated(num_images: int, base: Features, seed: int) -> NDArray[np.int64]:
    """Indices of the validation images whose neighbours are counted."""
    count = min(num_images, max(1, int(WORK / base.values.size)))
    drawn = numpy_stream("figure4", seed, "counted").choice(num_images, count, replace=False)
    return np.sort(drawn).astype(np.int64)


def summarise(figure: Figure4) -> dict[str, Any]:
    """Numbers of images whose class is right, and shares in percent of neighbours with the query's class."""
    right = [test.photograph.label in test.classes[:1] for test in figure.tests]
    among = [test.photograph.label in test.classes for test in figure.tests]

    def list_numbers(precision: Precision) -> dict[str, float]:
        return {
            "precision_at_1": precision.at_1,
            f"precision_at_{precision.k}": precision.at_k,
            "by_chance": precision.by_chance,
            "queries": precision.num_queries,
        }

    return {
        "run": figure.title,
        "layer": figure.layer,
        "dimensions": figure.dimensions,
        "images": len(figure.tests),
        "images_right": sum(right),
        "images_right_among_5": sum(among),
        "shown": list_numbers(figure.shown),
        "validation": list_numbers(figure.validation),
    }


def write_figure4(figure: Figure4, path: Path) -> list[Path]:
    """Writes the drawing and, beside it, NAME.csv (each bar and each neighbour) and NAME.json (`summarise`)."""
    rows: list[list[Any]] = []
    for test in figure.tests:
        image = test.photograph
        for rank, (label, p) in enumerate(zip(test.classes, test.probabilities, strict=True), 1):
            is_right = int(label == image.label)
            rows.append(["classes", image.name, rank, figure.names[label], "", f"{p:.6g}", "", is_right])
    for neighbours in figure.queries:
        query = neighbours.query
        for rank, (near, distance) in enumerate(zip(neighbours.nearest, neighbours.distances, strict=True), 1):
            name, is_right = figure.names[near.label], int(near.label == query.label)
            rows.append(["neighbours", query.name, rank, name, near.name, "", f"{distance:.6g}", is_right])
    heads = ["part", "image", "rank", "class", "neighbour", "probability", "distance", "is_right"]
    tables = write_numbers(path, heads, rows, summarise(figure))
    _draw(figure, path)
    return [path, *tables]


def _draw(figure: Figure4, path: Path) -> None:
    pyplot = open_pyplot("figure4")
    test_rows = -(-len(figure.tests) // PER_ROW)
    height = max(3.1 * test_rows, 1.35 * len(figure.queries)) + 1.0
    drawing = pyplot.figure(figsize=(17.0, height), layout="constrained")
    left, right = drawing.subfigures(1, 2, width_ratios=[1, 1.12], wspace=0.02)
    _draw_tests(left, figure, test_rows)
    _draw_queries(right, figure)
    drawing.suptitle(figure.title, size=11)
    save(drawing, path)


def _draw_tests(panel: Any, figure: Figure4, rows: int) -> None:
    panel.suptitle("validation images and their most likely classes (orange and bold: the right one)", size=9.5)
    grid = panel.add_gridspec(2 * rows, PER_ROW, height_ratios=[1.9, 1] * rows)
    for number, test in enumerate(figure.tests):
        row, column = divmod(number, PER_ROW)
        axes = panel.add_subplot(grid[2 * row, column]), panel.add_subplot(grid[2 * row + 1, column])
        right = test.photograph.label
        draw_guesses(
            axes,
            test.photograph.pixels,
            figure.names[right],
            [
                (figure.names[label], p, label == right)
                for label, p in zip(test.classes, test.probabilities, strict=True)
            ],
        )
        if number + PER_ROW >= len(figure.tests):
            axes[1].set_xlabel("probability", size=8)


def _draw_queries(panel: Any, figure: Figure4) -> None:
    precision = figure.validation
    panel.suptitle(
        f"validation images (first column) and the training images nearest to them in {figure.layer}\n"
        f"bold: the query's class; of {counted(precision.num_queries, 'validation image')}, {precision.at_1:.0f} % "
        f"of the nearest have it and {precision.at_k:.0f} % of the {precision.k} nearest (by chance "
        f"{precision.by_chance:.0f} %)",
        size=9.5,
    )
    # An empty column keeps the queries apart.
    count = len(figure.queries[0].nearest)
    grid = panel.add_gridspec(len(figure.queries), count + 2, width_ratios=[1, 0.08] + [1] * count)
    for row, neighbours in enumerate(figure.queries):
        for column, shown in enumerate([neighbours.query, *neighbours.nearest]):
            axes = panel.add_subplot(grid[row, column + (column > 0)])
            axes.imshow(shown.pixels, interpolation="antialiased")
            axes.axis("off")
            weight = "bold" if shown.label == neighbours.query.label else "normal"
            axes.set_title(shorten(figure.names[shown.label], 16), size=7.5, weight=weight, pad=2)
