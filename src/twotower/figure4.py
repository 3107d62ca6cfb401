"""Figure 4: test images with their five most likely classes, and training images that the network finds alike.

Left, as in the paper: photographs of the validation set, and what the network takes them for. Right: photographs of
the validation set, each with the six training images whose vectors in the last hidden layer are nearest to its own
by Euclidean distance (section 6.1). How often the neighbours have the class of the query is the number for it
(precision), counted over the shown queries and over the validation set.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.config import EvaluateConfig
from twotower.data import DataSet, Split
from twotower.data.cache import root_of
from twotower.data.convert import UnusableError, decode, square
from twotower.data.prepared import is_prepared, read_dataset_json
from twotower.drawing import open_pyplot, save
from twotower.evaluate import Subject, predictions_of
from twotower.features import Features, features_of, images_of, last_hidden
from twotower.files import write_json, written_whole
from twotower.neighbours import nearest
from twotower.streams import numpy_stream
from twotower.synsets import name_classes
from twotower.words import counted

NUM_IMAGES, NUM_QUERIES = 8, 5  # of the paper's figure
NUM_GUESSES, NUM_NEIGHBOURS = 5, 6
PER_ROW = 4  # images with their guesses
RIGHT, WRONG = "#e69f00", "#b9d9ee"  # of bars; told apart by the colour-blind, and light enough for text on them
LONGEST = 22  # letters of a class's name
# Multiplications that finding the neighbours of the validation set may take: some minutes on a few cores.
WORK = 5e12


@dataclass(frozen=True)
class Photograph:
    """An image as the network sees it: the centre square of its prepared square, uint8 [S, S, 3], RGB."""

    pixels: NDArray[np.uint8]
    name: str
    label: int


@dataclass(frozen=True)
class Guesses:
    """The most likely classes of a test image, the most likely first, and their probabilities."""

    photograph: Photograph
    classes: list[int]
    probabilities: list[float]


@dataclass(frozen=True)
class Neighbours:
    """The training images nearest to a query, the nearest first, and their Euclidean distances."""

    query: Photograph
    nearest: list[Photograph]
    distances: list[float]


@dataclass(frozen=True)
class Precision:
    """In percent: neighbours that have their query's class, the nearest and the `k` nearest, and training images
    that have it (`by_chance`).
    """

    at_1: float
    at_k: float
    k: int
    by_chance: float
    num_queries: int


@dataclass(frozen=True)
class Figure4:
    """What is drawn and counted. `names`: of the classes, to be read by people."""

    title: str
    layer: str
    dimensions: int
    names: list[str]
    tests: list[Guesses]
    queries: list[Neighbours]
    shown: Precision
    validation: Precision


def class_names(subject: Subject) -> list[str]:
    """Names that people understand, from the words of the data set where it has them (`name_classes`)."""
    root, classes = root_of(subject.config.data), subject.dataset.classes
    described = read_dataset_json(root)["classes"] if is_prepared(root) else []
    words = {name: one["words"] for name, one in zip(classes, described, strict=False) if one.get("words")}
    return name_classes(classes, words)


def shorten(name: str, longest: int = LONGEST) -> str:
    """A name of at most so many letters, with an ellipsis where it was cut."""
    return name if len(name) <= longest else f"{name[: longest - 1].rstrip()}…"


def photograph(dataset: DataSet, images: Split, index: int, crop_size: int) -> Photograph:
    """Raises: ValueError naming a file that cannot be decoded."""
    try:
        whole = square(decode(images.read(index).tobytes()), dataset.size)
    except UnusableError as error:
        raise ValueError(f"{images.name(index)} cannot be drawn ({error}); choose another image.") from error
    begin = (dataset.size - crop_size) // 2
    pixels = whole[begin : begin + crop_size, begin : begin + crop_size]
    return Photograph(pixels, images.name(index), int(images.labels[index]))


def find_image(images: Split, given: str) -> int:
    """The place of an image of a split that is given by its place, or by its name with or without folder and ending.

    Raises: ValueError if there is none, or there are several.
    """
    if given.lstrip("-").isdigit():
        if not 0 <= int(given) < len(images):
            raise ValueError(f"image {given} is not in the validation set; choose 0 to {len(images) - 1}.")
        return int(given)

    def is_meant(name: str) -> bool:
        return any(f"/{one}".endswith(f"/{given}") for one in (name, name.rpartition(".")[0]))

    found = [index for index in range(len(images)) if is_meant(images.name(index))]
    if not found:
        raise ValueError(
            f"no image of the validation set is called {given}; give a name such as {images.name(0)}, or a place "
            f"from 0 to {len(images) - 1}."
        )
    if len(found) > 1:
        raise ValueError(
            f"{len(found)} images of the validation set are called {given}; give the folder too, as in "
            f"{images.name(found[0])}."
        )
    return found[0]


def choose_images(images: Split, given: Sequence[str], count: int, seed: int, purpose: str) -> list[int]:
    """The images that are given, or `count` that are drawn with `seed`, in the order of the split.

    Raises: ValueError for an image that is not there, or a seed below 0.
    """
    if seed < 0:
        raise ValueError(f"seed={seed} is not possible; give 0 or more.")
    if given:
        return [find_image(images, one) for one in given]
    stream = numpy_stream("figure4", seed, purpose)
    return sorted(int(one) for one in stream.choice(len(images), min(count, len(images)), replace=False))


def precision_of(places: NDArray[np.int64], labels: NDArray[np.int64], train_labels: NDArray[np.int64]) -> Precision:
    """Of the neighbours' places in the training set [Q, k] and the queries' labels [Q]."""
    same = train_labels[places] == labels[:, None]
    shares = np.bincount(train_labels, minlength=int(max(labels.max(), train_labels.max())) + 1) / len(train_labels)
    return Precision(
        at_1=float(100 * same[:, 0].mean()),
        at_k=float(100 * same.mean()),
        k=places.shape[1],
        by_chance=float(100 * shares[labels].mean()),
        num_queries=len(labels),
    )


def make_figure4(subject: Subject, images: Sequence[str], queries: Sequence[str], seed: int) -> Figure4:
    """Computes what is not stored yet: predictions, and the last hidden layer of both splits.

    The validation set's precision is over all of its images, or over as many, drawn with `seed`, as `WORK` allows.

    Args:
        images, queries: places or names of validation images, for the left and the right; none: they are drawn.

    Raises: ValueError for a run on synthetic data, a network of one layer, an image that is not there.
    """
    dataset, crop_size = subject.dataset, subject.config.input.crop_size
    val, train = images_of(dataset, "val"), images_of(dataset, "train")
    layer = last_hidden(subject.config.network)
    tested = choose_images(val, images, NUM_IMAGES, seed, "images")
    asked = choose_images(val, queries, NUM_QUERIES, seed, "queries")
    centre = predictions_of(subject, EvaluateConfig(run=str(subject.run_dir)))["centre"]
    of_val, of_train = features_of(subject, "val", layer), features_of(subject, "train", layer)
    k = min(NUM_NEIGHBOURS, len(train))
    counted = _counted(len(val), of_train, seed)
    wanted = np.union1d(counted, asked)
    places, distances = nearest(of_val.values[wanted], of_train.values, k)
    row_of = {int(index): row for row, index in enumerate(wanted)}
    rows = np.array([row_of[index] for index in asked])
    in_count = np.isin(wanted, counted)

    def photo(split: Split, index: int) -> Photograph:
        return photograph(dataset, split, index, crop_size)

    tests = []
    for index in tested:
        probabilities, classes = centre.log_probabilities[index].exp().sort(descending=True, stable=True)
        tests.append(Guesses(photo(val, index), classes[:NUM_GUESSES].tolist(), probabilities[:NUM_GUESSES].tolist()))
    return Figure4(
        f"{subject.run_dir.resolve().name}, {subject.checkpoint.name}",
        layer,
        of_val.values.shape[1],
        class_names(subject),
        tests,
        [
            Neighbours(photo(val, index), [photo(train, int(one)) for one in places[row]], distances[row].tolist())
            for index, row in zip(asked, rows, strict=True)
        ],
        precision_of(places[rows], val.labels[asked], train.labels),
        precision_of(places[in_count], val.labels[wanted[in_count]], train.labels),
    )


def _counted(num_images: int, base: Features, seed: int) -> NDArray[np.int64]:
    """The validation images whose neighbours are counted."""
    count = min(num_images, max(1, int(WORK / base.values.size)))
    drawn = numpy_stream("figure4", seed, "counted").choice(num_images, count, replace=False)
    return np.sort(drawn).astype(np.int64)


def summarise(figure: Figure4) -> dict[str, Any]:
    """How often the class is right, and how often neighbours have the query's class, in percent."""
    right = [test.photograph.label in test.classes[:1] for test in figure.tests]
    among = [test.photograph.label in test.classes for test in figure.tests]

    def numbers(one: Precision) -> dict[str, float]:
        return {
            "precision_at_1": one.at_1,
            f"precision_at_{one.k}": one.at_k,
            "by_chance": one.by_chance,
            "queries": one.num_queries,
        }

    return {
        "run": figure.title,
        "layer": figure.layer,
        "dimensions": figure.dimensions,
        "images": len(figure.tests),
        "images_right": sum(right),
        "images_right_among_5": sum(among),
        "shown": numbers(figure.shown),
        "validation": numbers(figure.validation),
    }


def write_figure4(figure: Figure4, path: Path) -> list[Path]:
    """Writes the drawing and, beside it, NAME.csv (each bar and each neighbour) and NAME.json (`summarise`)."""
    table, numbers = path.with_suffix(".csv"), path.with_suffix(".json")
    with written_whole(table) as pending, pending.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["part", "image", "rank", "class", "neighbour", "probability", "distance", "is_right"])
        for test in figure.tests:
            of_image = test.photograph
            for rank, (label, p) in enumerate(zip(test.classes, test.probabilities, strict=True), 1):
                is_right = int(label == of_image.label)
                writer.writerow(["classes", of_image.name, rank, figure.names[label], "", f"{p:.6g}", "", is_right])
        for one in figure.queries:
            for rank, (other, distance) in enumerate(zip(one.nearest, one.distances, strict=True), 1):
                name, is_right = figure.names[other.label], int(other.label == one.query.label)
                row = ["neighbours", one.query.name, rank, name, other.name, "", f"{distance:.6g}", is_right]
                writer.writerow(row)
    write_json(numbers, summarise(figure))
    _draw(figure, path)
    return [path, table, numbers]


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


def draw_guesses(
    axes: tuple[Any, Any], pixels: NDArray[np.uint8], title: str, guesses: Sequence[tuple[str, float, bool]]
) -> None:
    """An image above the bars of its most likely classes, as on the left of the paper's figure.

    Args:
        axes: of the image, and of the bars.
        guesses: a class's name, its probability 0..1, and whether it is known to be the right one.
    """
    image, bars = axes
    image.imshow(pixels, interpolation="antialiased")
    image.axis("off")
    image.set_title(shorten(title), size=10, weight="bold")
    for rank, (name, probability, is_right) in enumerate(guesses):
        bars.barh(rank, probability, height=0.86, color=RIGHT if is_right else WRONG)
        bars.text(0.02, rank, shorten(name), size=8, weight="bold" if is_right else "normal", va="center")
    bars.set_xlim(0, 1)
    bars.set_ylim(NUM_GUESSES - 0.4, -0.6)
    bars.set_yticks([])
    bars.set_xticks([0, 0.5, 1], ["0", "0.5", "1"], size=7)
    bars.spines[["top", "right", "left"]].set_visible(False)


def _draw_queries(panel: Any, figure: Figure4) -> None:
    one = figure.validation
    panel.suptitle(
        f"validation images (first column) and the training images nearest to them in {figure.layer}\n"
        f"bold: the query's class; of {counted(one.num_queries, 'validation image')}, {one.at_1:.0f} % of the "
        f"nearest have it and {one.at_k:.0f} % of the {one.k} nearest (by chance {one.by_chance:.0f} %)",
        size=9.5,
    )
    # An empty column keeps the queries apart.
    count = len(figure.queries[0].nearest)
    grid = panel.add_gridspec(len(figure.queries), count + 2, width_ratios=[1, 0.08] + [1] * count)
    for row, found in enumerate(figure.queries):
        for column, shown in enumerate([found.query, *found.nearest]):
            axes = panel.add_subplot(grid[row, column + (column > 0)])
            axes.imshow(shown.pixels, interpolation="antialiased")
            axes.axis("off")
            weight = "bold" if shown.label == found.query.label else "normal"
            axes.set_title(shorten(figure.names[shown.label], 16), size=7.5, weight=weight, pad=2)
