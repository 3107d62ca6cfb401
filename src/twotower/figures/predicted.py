"""Photographs with the likeliest classes that a network gives them, as a drawing and as a table."""

from collections.abc import Sequence
from pathlib import Path

from twotower.data.class_names import name_classes
from twotower.evaluation.predict import Prediction
from twotower.evaluation.trained import TrainedNetwork
from twotower.figures.drawing import open_pyplot, save, write_numbers
from twotower.figures.photographs import PER_ROW, draw_guesses

MOST_DRAWN = 64  # most photographs of a picture; a taller one cannot be taken in


def write_predictions(predictions: Sequence[Prediction], trained: TrainedNetwork, path: Path) -> list[Path]:
    """Writes the drawing and, beside it, NAME.csv: each photograph's likeliest classes. Returns their paths."""
    names = name_classes(trained.classes)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (
        [prediction.file, rank, trained.classes[label], names[label], f"{p:.6g}"]
        for prediction in predictions
        for rank, (label, p) in enumerate(zip(prediction.classes, prediction.probabilities, strict=True), 1)
    )
    tables = write_numbers(path, ["photograph", "rank", "class", "name", "probability"], rows)
    _draw(predictions[:MOST_DRAWN], names, trained.title, path)
    return [path, *tables]


def _draw(predictions: Sequence[Prediction], names: Sequence[str], title: str, path: Path) -> None:
    pyplot = open_pyplot("predict")
    columns = min(PER_ROW, len(predictions))
    rows = -(-len(predictions) // columns)
    figure = pyplot.figure(figsize=(max(2.3 * columns, 3.4), 3.3 * rows + 0.5), layout="constrained")
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[1.9, 1] * rows)
    for number, prediction in enumerate(predictions):
        row, column = divmod(number, columns)
        axes = figure.add_subplot(grid[2 * row, column]), figure.add_subplot(grid[2 * row + 1, column])
        likeliest = zip(prediction.classes, prediction.probabilities, strict=True)
        guesses = [(names[label], probability, False) for label, probability in likeliest]
        draw_guesses(axes, prediction.pixels, Path(prediction.file).name, guesses)
        if number + columns >= len(predictions):
            axes[1].set_xlabel("probability", size=8)
    figure.suptitle(title, size=9)
    save(figure, path)
