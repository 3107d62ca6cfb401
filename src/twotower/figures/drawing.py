"""The common part of all drawings: no screen, one palette, and the same bytes from the same numbers."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twotower.ground.files import write_json, written_whole

DOTS_PER_INCH = 120

# Seven colours of Okabe and Ito (2008) and an olive, which the colour-blind tell apart. The lines of a drawing take
# them in this order.
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")
_BLUE, _VERMILION, _GREEN, _ORANGE = LINES[0], LINES[1], LINES[2], LINES[4]
TOWERS = (_BLUE, _VERMILION)  # tower 0 and tower 1
ACTIVATIONS = {"relu": _BLUE, "tanh": _VERMILION, "sigmoid": _GREEN}
HERE, OF_2012 = _BLUE, _VERMILION  # our own results, and those of the lab book
COUNT, ERROR = _BLUE, _VERMILION  # bars of images, and of errors in percent
RIGHT, WRONG = _ORANGE, "#b9d9ee"  # bars of the right class and of others, both light enough for text on them
REFERENCE = "#555555"  # line of the error that is to be reached, or of no difference
CHANCE = "#777777"  # line of the value that chance gives


@dataclass(frozen=True)
class Diagram:
    """Colours of Figure 2 on a page of one theme; the drawing itself has no background.

    Attributes:
        ink: texts.
        within: arrows within a tower, and the edges of boxes.
        crossing: arrows between the towers.
        towers: boxes of tower 0 and of tower 1.
    """

    ink: str
    within: str
    crossing: str
    towers: tuple[str, str]


DIAGRAMS = {  # theme of the page -> colours
    "light": Diagram(ink="#1a1a1a", within="#4a4a4a", crossing=_VERMILION, towers=("#dbe9f6", "#fdebd0")),
    "dark": Diagram(ink="#e6e6e6", within="#a8a8a8", crossing="#ff8c32", towers=("#1d3a57", "#4d3a1a")),
}


def open_pyplot(name: str) -> Any:
    """Returns matplotlib's pyplot; the drawing's `name` takes the place of random identifiers in an SVG."""
    import matplotlib  # The import stands here because it takes a second, which a training need not spend.

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = name
    from matplotlib import pyplot

    return pyplot


def remove_frame(axes: Any, *sides: str) -> None:
    """Leaves out the top and the right edge of the axes, and further `sides` such as "left"."""
    axes.spines[["top", "right", *sides]].set_visible(False)


def mark_steps(axes: Any, places: Sequence[float], values: Sequence[float], most: int = 40, **style: Any) -> None:
    """Draws a line with a point at each value, so that a single value is visible; without points where they are many.

    Args:
        most: largest number of points that do not hide the line.
    """
    axes.plot(places, values, marker="o" if len(places) <= most else "", **style)


def save(figure: Any, path: Path, **options: Any) -> None:
    """Writes a figure as PNG, SVG or PDF, whatever `path` ends in, and forgets it.

    Raises: OSError if it cannot be written.
    """
    from matplotlib import pyplot

    dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with written_whole(path) as pending:
        kind = path.suffix.removeprefix(".")
        figure.savefig(pending, format=kind, dpi=DOTS_PER_INCH, metadata=dates.get(path.suffix), **options)
    pyplot.close(figure)


def write_numbers(
    path: Path, heads: Sequence[str], rows: Iterable[Sequence[Any]], summary: dict[str, Any] | None = None
) -> list[Path]:
    """Writes the numbers of the drawing at `path` beside it: NAME.csv and, where there is a summary, NAME.json.

    Returns: the paths of both.

    Raises: OSError if one cannot be written.
    """
    table, numbers = path.with_suffix(".csv"), path.with_suffix(".json")
    with written_whole(table) as pending, pending.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(heads)
        writer.writerows(rows)
    if summary is None:
        return [table]
    write_json(numbers, summary)
    return [table, numbers]
