"""Classes of photographs by a trained network: any files, no data set needed.

    file -> decode_image -> turned as its EXIF says -> cut_square -> crops -> Normaliser -> towers -> softmax

A run knows all that is needed: its network, its classes and the mean image that is subtracted. So does a file that
launch/export.py wrote; files from Caffe and torchvision are taken to be about the 1,000 classes of ILSVRC-2012.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twotower.data.photographs import read_photograph
from twotower.evaluation.trained import AT_ONCE, TrainedNetwork, rank_classes

NUM_GUESSES = 5


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of a photograph.

    Attributes:
        pixels: uint8 [S, S, 3], RGB, the centre crop that it was shown.
        classes: the likeliest five (or as many as there are), as places among the network's classes.
        probabilities: of these, 0..1, the highest first.
    """

    file: str
    pixels: NDArray[np.uint8]
    classes: list[int]
    probabilities: list[float]


def predict_photographs(
    paths: Sequence[Path], network: TrainedNetwork, crops: str
) -> tuple[list[Prediction], list[str]]:
    """Predictions in the order of the files, and a sentence for each file that is no image."""
    predictions: list[Prediction] = []
    problems: list[str] = []
    begin = (network.size - network.input.crop_size) // 2
    centre = slice(begin, begin + network.input.crop_size)
    for first in range(0, len(paths), AT_ONCE):
        squares: dict[Path, NDArray[np.uint8]] = {}
        for path in paths[first : first + AT_ONCE]:
            try:
                squares[path] = read_photograph(path, network.size)
            except ValueError as error:
                problems.append(str(error))
        if not squares:
            continue
        values, indices = rank_classes(network.log_probabilities(list(squares.values()), crops), NUM_GUESSES)
        for row, (path, square) in enumerate(squares.items()):
            likeliest = indices[row].tolist(), values[row].tolist()
            predictions.append(Prediction(str(path), square[centre, centre], *likeliest))
    return predictions, problems
