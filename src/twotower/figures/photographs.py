"""Photographs in figures: read, named, chosen, and drawn with their most likely classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.data.class_names import name_classes
from twotower.data.dataset import DataSet, Split
from twotower.data.decode import UnusableError, cut_square, decode_image
from twotower.data.folder_cache import find_root
from twotower.data.prepared_set import is_prepared, read_dataset_json
from twotower.evaluation.predict import NUM_GUESSES
from twotower.evaluation.subject import Subject
from twotower.figures.drawing import remove_frame
from twotower.figures.palette import RIGHT, WRONG
from twotower.ground.random_streams import numpy_stream

PER_ROW = 4  # images with their guesses, side by side
LONGEST = 22  # letters of a class's name


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


def read_class_names(subject: Subject) -> list[str]:
    """Names that people understand, from the words of the data set where it has them (`name_classes`)."""
    root, classes = find_root(subject.config.data), subject.dataset.classes
    described = read_dataset_json(root)["classes"] if is_prepared(root) else []
    described_classes = zip(classes, described, strict=False)
    words = {name: entry["words"] for name, entry in described_classes if entry.get("words")}
    return name_classes(classes, words)


def shorten(name: str, longest: int = LONGEST) -> str:
    """A name of at most so many letters, with an ellipsis where it was cut."""
    return name if len(name) <= longest else f"{name[: longest - 1].rstrip()}…"


def read_photograph(dataset: DataSet, images: Split, index: int, crop_size: int) -> Photograph:
    """The image as the network sees it. Raises: ValueError naming a file that cannot be decoded."""
    try:
        square = cut_square(decode_image(images.read(index).tobytes()), dataset.size)
    except UnusableError as error:
        raise ValueError(f"{images.name(index)} cannot be drawn ({error}); choose another image.") from error
    begin = (dataset.size - crop_size) // 2
    pixels = square[begin : begin + crop_size, begin : begin + crop_size]
    return Photograph(pixels, images.name(index), int(images.labels[index]))


def find_image(images: Split, given: str) -> int:
    """The index of an image of a split that is given by its index, or by its name with or without folder and ending.

    Raises: ValueError if there is none, or there are several.
    """
    if given.lstrip("-").isdigit():
        if not 0 <= int(given) < len(images):
            raise ValueError(f"image {given} is not in the validation set; choose 0 to {len(images) - 1}.")
        return int(given)

    def is_meant(name: str) -> bool:
        return any(f"/{form}".endswith(f"/{given}") for form in (name, name.rpartition(".")[0]))

    matches = [index for index in range(len(images)) if is_meant(images.name(index))]
    if not matches:
        raise ValueError(
            f"no image of the validation set is called {given}; give a name such as {images.name(0)}, or an index "
            f"from 0 to {len(images) - 1}."
        )
    if len(matches) > 1:
        raise ValueError(
            f"{len(matches)} images of the validation set are called {given}; give the folder too, as in "
            f"{images.name(matches[0])}."
        )
    return matches[0]


def choose_images(images: Split, given: Sequence[str], count: int, seed: int, purpose: str) -> list[int]:
    """The images that are given, or `count` that are drawn with `seed`, in the order of the split.

    Raises: ValueError for an image that is not there.
    """
    if given:
        return [find_image(images, name) for name in given]
    stream = numpy_stream("figure4", seed, purpose)
    return sorted(int(index) for index in stream.choice(len(images), min(count, len(images)), replace=False))


def draw_guesses(
    axes: tuple[Any, Any], pixels: NDArray[np.uint8], title: str, guesses: Sequence[tuple[str, float, bool]]
) -> None:
    """An image above the bars of its most likely classes, as on the left of the paper's figure.

    Args:
        axes: axes of the image, and of the bars.
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
    remove_frame(bars, "left")
