"""The picture of a step: a bar for each precision, cut into its parts, above the bar of the floor."""

from pathlib import Path

from twotower.figures.drawing import open_pyplot, remove_frame, save
from twotower.figures.palette import LINES

OWN, FLOOR = "step: ", "floor: "
# The parts that are not convolutions or products have colours of their own; layers take shades of one.
_OTHERS = {"ReLU, norms and pooling": LINES[1], "update": LINES[2], "exchange": LINES[4], "other": "#999999"}


def list_bars(parts_ms: dict[str, dict[str, float]]) -> list[tuple[str, list[tuple[str, float]]]]:
    """The bars from top to bottom: a title, and the parts in their order with their milliseconds."""
    bars = []
    for precision, parts in parts_ms.items():
        for title, prefix in ((f"step, {precision}", OWN), (f"floor, {precision}", FLOOR)):
            found = [(name.removeprefix(prefix), ms) for name, ms in parts.items() if name.startswith(prefix)]
            if found:
                bars.append((title, found))
    return bars


def draw_parts(parts_ms: dict[str, dict[str, float]], path: Path) -> None:
    """Draws the parts of a step of tower 0, as benchmark.json has them, to a PNG, SVG or PDF.

    Raises: OSError if it cannot be written.
    """
    pyplot = open_pyplot("parts of a step")
    bars = list_bars(parts_ms)
    figure, axes = pyplot.subplots(figsize=(9, 0.9 + 0.62 * len(bars)), layout="constrained")
    longest = max(sum(ms for _, ms in parts) for _, parts in bars)
    for place, (_, parts) in enumerate(bars):
        begin = 0.0
        layers = [name for name, _ in parts if name not in _OTHERS]
        for name, ms in parts:
            if name in _OTHERS:
                style = {"color": _OTHERS[name], "alpha": 1.0}
            else:
                style = {"color": LINES[0], "alpha": 0.95 - 0.6 * layers.index(name) / max(1, len(layers) - 1)}
            axes.barh(place, ms, left=begin, height=0.7, edgecolor="white", linewidth=0.8, **style)
            if ms > 0.035 * longest and name not in _OTHERS:
                axes.text(begin + ms / 2, place, name, ha="center", va="center", fontsize=8, color="black")
            begin += ms
        axes.text(begin + 0.006 * longest, place, f"{begin:,.0f} ms", va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [title for title, _ in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08 * longest)
    axes.set_xlabel("milliseconds of a step of tower 0; blue: convolutions and products, forward and backward")
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colour) for colour in _OTHERS.values()]
    axes.legend(handles, list(_OTHERS), ncols=len(_OTHERS), loc="lower right", bbox_to_anchor=(1, 1), frameon=False)
    remove_frame(axes, "left")
    axes.tick_params(left=False)
    save(figure, path)
