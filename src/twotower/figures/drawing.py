"""The common part of all drawings: no screen, and the same bytes from the same numbers."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from twotower.ground.files import write_json, write_text, write_whole
from twotower.ground.wording import on_one_line

DOTS_PER_INCH = 120


def open_pyplot(name: str) -> Any:
    """Returns matplotlib's pyplot; the drawing's `name` takes the place of random identifiers in an SVG."""
    import matplotlib  # The import stands here because it takes a second, which a training need not spend.

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = name
    matplotlib.rcParams["text.parse_math"] = False  # names of classes and runs may have dollar signs
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
    file = io.BytesIO()
    kind = path.suffix.removeprefix(".")
    figure.savefig(file, format=kind, dpi=DOTS_PER_INCH, metadata=dates.get(path.suffix), **options)
    pyplot.close(figure)
    write_whole(path, file.getbuffer())


def write_numbers(
    path: Path, heads: Sequence[str], rows: Iterable[Sequence[Any]], summary: dict[str, Any] | None = None
) -> list[Path]:
    """Writes the numbers of the drawing at `path` beside it: NAME.csv and, where there is a summary, NAME.json.

    Returns: the paths of both.

    Raises: OSError if one cannot be written.
    """
    table, numbers = path.with_suffix(".csv"), path.with_suffix(".json")
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(heads)
    writer.writerows([on_one_line(cell) if isinstance(cell, str) else cell for cell in row] for row in rows)
    write_text(table, file.getvalue())
    if summary is None:
        return [table]
    write_json(numbers, summary)
    return [table, numbers]
