"""Loss, errors and learning rate of runs: training by step, validation epoch by epoch."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from twotower.figures.common_points import gather_common
from twotower.figures.drawing import mark_steps, open_pyplot, remove_frame, save, write_numbers
from twotower.figures.palette import LINES
from twotower.ground.wording import split_common
from twotower.runs.history import QUANTITIES, Epoch, History, TrainWindow, mean_of

MAX_LINES = 2 * len(LINES)  # the colours come again from the ninth line on, dashed
MAX_POINTS = 500  # points of a training line: about one for each two pixels of the drawing
MAX_MARKERS = 40  # markers of a validation line; more would hide it
RATE_MARGIN = 1.5  # factor between the rates and the edges of their axis
TICK_ROOM = 1 / 6  # part of the axis of rates that a number beside it needs
UNITS = {"loss": "loss, nats", "top1_error": "top-1 error, %", "top5_error": "top-5 error, %"}


def name_runs(histories: Sequence[History]) -> list[str]:
    """The runs' folders without the part that all of them begin with."""
    _, leaves = split_common([history.run_dir for history in histories])
    return [leaf + ("" if h.finished else " (unfinished)") for leaf, h in zip(leaves, histories, strict=True)]


def write_curves(histories: Sequence[History], path: Path, groups: Sequence[str] | None = None) -> list[Path]:
    """Writes the drawing and, beside it, NAME.csv with each epoch of every run and NAME-steps.csv with each line of
    its training.

    Args:
        groups: a name for each run; runs of one name become one line, their mean as far as all of them go. None: a
            line for each run.

    Raises: ValueError for more lines than a drawing can show.
    """
    labels = list(groups) if groups is not None else name_runs(histories)
    lines = len(set(labels)) if groups is not None else len(histories)
    if lines > MAX_LINES:
        raise ValueError(f"runs= has {lines} runs, and one drawing shows at most {MAX_LINES}; give fewer.")
    tables = _write_epochs(histories, labels, path)
    tables += _write_steps(histories, labels, path.with_name(f"{path.stem}-steps{path.suffix}"))
    members: dict[str, list[History]] = {}
    for history, label in zip(histories, labels, strict=True):
        members.setdefault(label, []).append(history)
    _draw(members, path)
    return [path, *tables]


def _write_epochs(histories: Sequence[History], labels: Sequence[str], path: Path) -> list[Path]:
    split = [f"{part}_{key}" for part in ("train", "validation") for key in QUANTITIES]
    rows = []
    for history, label in zip(histories, labels, strict=True):
        for epoch in history.epochs:
            values = [errors[key] for errors in (epoch.train, epoch.validation) for key in QUANTITIES]
            numbers = [f"{value:.5g}" for value in (epoch.epoch, epoch.learning_rate, *values)]
            rows.append([str(history.run_dir), label, *numbers])
    return write_numbers(path, ["run", "group", "epoch", "learning_rate", *split], rows)


def _write_steps(histories: Sequence[History], labels: Sequence[str], path: Path) -> list[Path]:
    heads = ["run", "group", "step", "epoch", "learning_rate", *(f"train_{key}" for key in QUANTITIES)]
    rows = []
    for history, label in zip(histories, labels, strict=True):
        for window in history.windows:
            values = (window.epoch, window.learning_rate, *(window.train[key] for key in QUANTITIES))
            rows.append([str(history.run_dir), label, window.step, *(f"{value:.5g}" for value in values)])
    return write_numbers(path, heads, rows)


def _mean_epochs(histories: Sequence[History]) -> list[Epoch]:
    """The mean of the runs after each epoch that all of them have."""
    means, courses = [], [{epoch.epoch: epoch for epoch in history.epochs} for history in histories]
    for epochs in gather_common(courses).values():
        train = {key: mean(epoch.train[key] for epoch in epochs) for key in QUANTITIES}
        validation = {key: mean(epoch.validation[key] for epoch in epochs) for key in QUANTITIES}
        means.append(Epoch(epochs[0].epoch, train, validation, epochs[0].learning_rate))
    return means


def _mean_windows(histories: Sequence[History]) -> list[TrainWindow]:
    """The mean of the runs' training at each step at which all of them left a line, in at most MAX_POINTS points."""
    means, courses = [], [{window.step: window for window in history.windows} for history in histories]
    for windows in gather_common(courses).values():
        first, train = windows[0], {key: mean(window.train[key] for window in windows) for key in QUANTITIES}
        means.append(TrainWindow(first.step, first.epoch, first.num_steps, train, first.learning_rate))
    size = -(-len(means) // MAX_POINTS)
    parts = [means[begin : begin + size] for begin in range(0, len(means), max(size, 1))]
    return [
        TrainWindow(
            step=part[-1].step,
            epoch=part[-1].epoch,
            num_steps=sum(window.num_steps for window in part),
            train=mean_of(part),
            learning_rate=part[-1].learning_rate,
        )
        for part in parts
    ]


def choose_rate_ticks(rates: Sequence[float]) -> list[float]:
    """The marks of a logarithmic axis of rates: the rates that occur or, where they are many, 1, 2, 5, 10 ...

    The highest rate has a mark, the lowest too unless the two are nearly alike, and no two marks are nearer than
    `TICK_ROOM` of the whole axis, so that their numbers do not run into each other.

    Args:
        rates: positive, at least one.
    """
    occurring = sorted(set(rates))
    low, high = occurring[0], occurring[-1]
    least = TICK_ROOM * (math.log(high / low) + 2 * math.log(RATE_MARGIN))
    if math.log(high / low) < least:
        return [high]
    if len(occurring) > MAX_LINES:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        occurring = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    ticks = [low]
    for rate in occurring:
        if rate > low and math.log(rate / ticks[-1]) >= least and math.log(high / rate) >= least:
            ticks.append(rate)
    return [*ticks, high]


def _draw_rates(axes: Any, courses: Sequence[Sequence[TrainWindow]], lines: Sequence[dict[str, Any]]) -> None:
    """The rate of every step; a line of a window is the rate of its last step."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    for windows, line in zip(courses, lines, strict=True):
        rates = [window.learning_rate for window in windows]
        axes.step([0.0, *(window.epoch for window in windows)], [rates[0], *rates], where="pre", lw=1.5, **line)
    rates = [window.learning_rate for windows in courses for window in windows]
    if min(rates) > 0:
        axes.set_yscale("log")
        # Room around a constant rate too, which would otherwise lie on the edge of an axis without a number.
        axes.set_ylim(min(rates) / RATE_MARGIN, max(rates) * RATE_MARGIN)
        axes.yaxis.set_major_locator(FixedLocator(choose_rate_ticks(rates)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:.3g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, max(rates) * 1.1 or 1)


def _draw_quantity(
    axes: Any, key: str, members: Sequence[Sequence[History]], lines: Sequence[dict[str, Any]]
) -> None:
    """Training thin, validation as points that are joined; between runs of one name the space is shaded."""
    for histories, line in zip(members, lines, strict=True):
        windows, epochs = _mean_windows(histories), _mean_epochs(histories)
        train = [window.train[key] for window in windows]
        mark_steps(axes, [window.epoch for window in windows], train, MAX_MARKERS, lw=0.8, ms=2, alpha=0.6, **line)
        xs = [epoch.epoch for epoch in epochs]
        if len(histories) > 1:
            by_run = [{epoch.epoch: epoch.validation[key] for epoch in history.epochs} for history in histories]
            low, high = ([bound(values[x] for values in by_run) for x in xs] for bound in (min, max))
            axes.fill_between(xs, low, high, color=line["color"], alpha=0.15, lw=0)
            if len(xs) == 1:  # a band without a width
                axes.vlines(xs, low, high, color=line["color"], alpha=0.3, lw=4)
        validation = [epoch.validation[key] for epoch in epochs]
        # Points stay whole on an axis, too.
        mark_steps(axes, xs, validation, MAX_MARKERS, lw=1.8, ms=5, clip_on=False, **line)


def _draw(members: dict[str, list[History]], path: Path) -> None:
    from matplotlib.ticker import MaxNLocator

    pyplot = open_pyplot("curves")
    figure, panels = pyplot.subplots(
        4, 1, figsize=(8.0, 9.5), sharex=True, height_ratios=[3, 3, 3, 1.4], layout="constrained"
    )
    runs = list(members.values())
    lines = [
        {"color": LINES[number % len(LINES)], "ls": "-" if number < len(LINES) else "--"}
        for number in range(len(runs))
    ]
    for key, axes in zip(QUANTITIES, panels, strict=False):
        _draw_quantity(axes, key, runs, lines)
        axes.set_ylabel(UNITS[key])
        if key != "loss":
            axes.set_ylim(0, 1.05 * (axes.dataLim.ymax or 1))
    _draw_rates(panels[-1], [_mean_windows(histories) for histories in runs], lines)
    by_layer = any(_is_by_layer(history) for histories in runs for history in histories)
    panels[-1].set_ylabel("highest\nlearning rate" if by_layer else "learning rate")
    panels[-1].set_xlabel("epochs")
    panels[-1].set_xlim(0, 1.02 * max(history.windows[-1].epoch for histories in runs for history in histories))
    panels[-1].xaxis.set_major_locator(MaxNLocator(nbins=10, steps=[1, 2, 5, 10]))
    shaded = "; shaded: lowest to highest run" if any(len(histories) > 1 for histories in runs) else ""
    panels[0].set_title(f"points: validation; thin: training, with dropout and random crops{shaded}", size=9)
    for axes in panels:
        remove_frame(axes)
    names = [
        f"{label} (mean of {len(histories)} runs)" if len(histories) > 1 else label
        for label, histories in members.items()
    ]
    handles = [pyplot.Line2D([], [], marker="o", ms=5, lw=1.8, **line) for line in lines]
    figure.legend(handles, names, loc="outside lower center", ncols=1, frameon=False, fontsize=8)
    save(figure, path)


def _is_by_layer(history: History) -> bool:
    """Whether layers have rates of their own, so that the journal's number is the highest of several."""
    config = history.config
    rates = {layer.rate for layer in config.network.layers.values()}
    return len(rates) > 1 or config.schedule.rule == "recorded"
