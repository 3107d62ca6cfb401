"""The picture of a timeline: a lane for each tower, and between them what crosses."""

import math
from pathlib import Path
from typing import Any

from twotower.benchmarks.timeline.records import (
    BACKWARD,
    FORWARD,
    LOADING,
    LOSS,
    OTHER,
    SEND,
    UPDATE,
    WAIT,
    Span,
    Timeline,
    Travel,
    list_travels,
)
from twotower.figures.drawing import open_pyplot, remove_frame, save
from twotower.figures.palette import LINES

LANES = (1.12, -1.12)  # heights of the middles of tower 0's and tower 1's lanes
WIRES = (0.46, -0.46)  # and of what tower 0 and tower 1 send
LANE, WIRE = 0.5, 0.16  # heights
_GREYS = {LOADING: "#666666", LOSS: "#999999", OTHER: "#dddddd"}
_OPACITY = {FORWARD: 1.0, BACKWARD: 0.55, UPDATE: 0.3}
_WAITING: dict[str, Any] = {"facecolor": "white", "edgecolor": "#cc0000", "hatch": "xxx", "linewidth": 0.6}
_SENDING: dict[str, Any] = {"hatch": "||||", "edgecolor": "black", "linewidth": 0}
LEAST_SHARE = 0.028  # of a picture's width: a bar that is as wide has its name in it
LABELS = (0.27, 0.09, -0.09, -0.27)  # heights of the texts between the two wires
CHARACTER = 0.0066  # of a picture's width, with a margin


def draw_timeline(timeline: Timeline, path: Path) -> None:
    """Draws the step of median length to a PNG, SVG or PDF: all of it, and once more where most halves cross.

    Raises: OSError if it cannot be written.
    """
    pyplot = open_pyplot("timeline")
    step, colours = timeline.steps[timeline.drawn], choose_colours(timeline.layers)
    begin = min(tower.begin for tower in step)
    travels = list_travels(step)
    whole = (0.0, timeline.lengths[timeline.drawn] / 1e6)
    closer = choose_closer(travels, begin, whole)
    windows = [whole] if closer is None else [whole, closer]
    figure, rows = pyplot.subplots(
        len(windows), figsize=(11, 0.9 + 2.6 * len(windows)), layout="constrained", squeeze=False
    )
    for window, axes in zip(windows, rows[:, 0], strict=True):
        for tower, one in enumerate(step):
            for span in one.spans:
                _draw_span(axes, span, LANES[tower], begin, window, colours)
        _draw_travels(axes, travels, begin, window, colours)
        axes.set_xlim(window)
        axes.set_ylim(-1.45, 1.45)
        axes.set_yticks([LANES[0], WIRES[0], WIRES[1], LANES[1]], ["tower 0", "0 to 1", "1 to 0", "tower 1"])
        remove_frame(axes, "left")
        axes.tick_params(left=False)
    if closer is not None:
        for place in closer:
            rows[0, 0].axvline(place, color="#555555", linewidth=0.6, linestyle="--")
    rows[-1, 0].set_xlabel(
        "milliseconds since the step began" + ("; below, the part between the dashed lines" if closer else "")
    )
    figure.suptitle(
        f"{timeline.title}\nstep {timeline.drawn + 1} of {len(timeline.steps)}, the one of median length", fontsize=9
    )
    _add_legend(pyplot, figure, timeline.layers, colours)
    save(figure, path)


def choose_colours(layers: list[str]) -> dict[str, str]:
    """A colour for each part of a step."""
    # Black is left out, because names stand in the bars.
    usable = [colour for colour in LINES if colour != "#000000"] + ["#a05a2c"]
    return _GREYS | {name: usable[number % len(usable)] for number, name in enumerate(layers)}


def choose_closer(travels: list[Travel], begin: int, whole: tuple[float, float]) -> tuple[float, float] | None:
    """The milliseconds around the shortest stretch that has three quarters of what crosses; None if that is long."""
    moments = sorted((travel.sent - begin) / 1e6 for travel in travels if travel.part != LOADING)
    needed = math.ceil(0.75 * len(moments))
    if needed < 3:
        return None
    stretches = [(last - first, first, last) for first, last in zip(moments, moments[needed - 1 :], strict=False)]
    length, first, last = min(stretches)
    last = max([last, *((t.arrived - begin) / 1e6 for t in travels if first <= (t.sent - begin) / 1e6 <= last)])
    margin = 0.08 * (last - first)
    if length > 0.5 * (whole[1] - whole[0]):
        return None
    return max(whole[0], first - margin), min(whole[1], last + margin)


def _inside(begin: float, end: float, window: tuple[float, float]) -> tuple[float, float] | None:
    """The part of a bar that a window shows."""
    first, last = max(begin, window[0]), min(end, window[1])
    return (first, last) if last > first else None


def _draw_span(
    axes: Any, span: Span, height: float, origin: int, window: tuple[float, float], colours: dict[str, str]
) -> None:
    seen = _inside((span.begin - origin) / 1e6, (span.end - origin) / 1e6, window)
    if seen is None:
        return
    first, last = seen
    style: dict[str, Any] = {"facecolor": colours[span.part], "alpha": _OPACITY.get(span.kind, 1.0), "linewidth": 0}
    if span.kind == WAIT:
        style = _WAITING
    elif span.kind == SEND:
        style |= _SENDING
    elif span.kind == UPDATE:
        style |= {"hatch": "////", "edgecolor": colours[span.part]}
    axes.barh(height, last - first, left=first, height=LANE, **style)
    if span.kind in (FORWARD, BACKWARD, UPDATE) and last - first > LEAST_SHARE * (window[1] - window[0]):
        axes.text((first + last) / 2, height, span.part, ha="center", va="center", fontsize=8, color="black")


def describe_bytes(count: int) -> str:
    """ "22.2 MB", of 1e6 bytes."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _draw_travels(
    axes: Any, travels: list[Travel], origin: int, window: tuple[float, float], colours: dict[str, str]
) -> None:
    """Bars from where a half was given away to where it arrived, lines to both, and what it is beside them."""
    for travel in travels:
        sent, arrived = (travel.sent - origin) / 1e6, (travel.arrived - origin) / 1e6
        seen = _inside(sent, max(arrived, sent + 1e-6), window)
        if seen is None:
            continue
        height, colour = WIRES[travel.source], colours[travel.part]
        axes.barh(
            height, seen[1] - seen[0], left=seen[0], height=WIRE, color=colour, edgecolor="black", linewidth=0.4
        )
        inner = [lane - LANE / 2 if lane > 0 else lane + LANE / 2 for lane in LANES]
        for moment, tower in ((sent, travel.source), (arrived, 1 - travel.source)):
            if window[0] <= moment <= window[1]:
                axes.plot([moment, moment], [inner[tower], height], color=colour, linewidth=0.8)
    for place, height, text, colour in place_labels(travels, origin, window, colours):
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # the lines pass behind it
        axes.text(place, height, text, va="center", fontsize=7, color="black", bbox=box)
        axes.plot([place - 0.002 * (window[1] - window[0])] * 2, [height - 0.07, height + 0.07], color=colour)


def place_labels(
    travels: list[Travel], origin: int, window: tuple[float, float], colours: dict[str, str]
) -> list[tuple[float, float, str, str]]:
    """A text for each swap that begins in a window: its place, height and colour.

    A text stands where the swap begins, in the first row that is free there. One that finds no free row is left out:
    it stands in the picture of a shorter time.
    """
    ends = [window[0]] * len(LABELS)
    labels = []
    for first, second in zip(travels[::2], travels[1::2], strict=True):
        place = (min(first.sent, second.sent) - origin) / 1e6
        counts = dict.fromkeys(describe_bytes(travel.num_bytes) for travel in (first, second))
        text = f"{first.part if first.part != LOSS else ''} {first.what} {' and '.join(counts)}".strip()
        width = CHARACTER * len(text) * (window[1] - window[0])
        row = next((row for row, end in enumerate(ends) if end <= place), None)
        if not window[0] <= place <= window[1] - width or row is None:
            continue
        ends[row] = place + width
        labels.append((place, LABELS[row], text, colours[first.part]))
    return labels


def _add_legend(pyplot: Any, figure: Any, layers: list[str], colours: dict[str, str]) -> None:
    parts = {part: {"facecolor": colours[part]} for part in (*layers, *_GREYS)}
    kinds = {
        "forward": {"facecolor": "#0072b2"},
        "backward": {"facecolor": "#0072b2", "alpha": _OPACITY[BACKWARD]},
        "update": {"facecolor": "#0072b2", "alpha": _OPACITY[UPDATE], "hatch": "////"},
        "sending": {"facecolor": "#0072b2", **_SENDING},
        "waiting": _WAITING,
    }
    columns = max(len(parts), len(kinds))
    blank: tuple[str, dict[str, Any]] = ("", {"visible": False})
    rows = [[*row.items(), *[blank] * (columns - len(row))] for row in (parts, kinds)]
    entries = [entry for column in zip(*rows, strict=True) for entry in column]  # pyplot fills column by column
    figure.legend(
        [pyplot.Rectangle((0, 0), 1, 1, **style) for _, style in entries],
        [name for name, _ in entries],
        ncols=columns,
        loc="outside lower center",
        frameon=False,
        fontsize=8,
    )
