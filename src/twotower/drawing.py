"""How every figure is drawn: without a screen, and to the same bytes from the same numbers."""

from pathlib import Path
from typing import Any

from twotower.files import written_whole

DOTS_PER_INCH = 120


def open_pyplot(name: str) -> Any:
    """matplotlib's pyplot; `name` of the drawing stands for the random identifiers in an SVG."""
    import matplotlib  # here, as it takes a second that a training need not spend

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = name
    from matplotlib import pyplot

    return pyplot


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
