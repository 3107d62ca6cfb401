"""Loss, errors and learning rate of runs, epoch by epoch."""

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from twotower.drawing import open_pyplot, save
from twotower.history import QUANTITIES, Epoch, History

# Okabe and Ito's colours, told apart by the colour-blind; from the ninth line on they come again, dashed.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")
MAX_LINES = 2 * len(COLOURS)


def names_of(histories: Sequence[History]) -> list[str]:
    """The runs' folders without what all of them begin with."""
    parts = [history.run_dir.parts for history in histories]
    common = 0
    while all(len(one) > common + 1 for one in parts) and len({one[common] for one in parts}) == 1:
        common += 1
    return [
        "/".join(one[common:]) + ("" if h.finished else " (unfinished)")
        for one, h in zip(parts, histories, strict=True)
    ]


def write_curves(histories: Sequence[History], path: Path, groups: Sequence[str] | None = None) -> list[Path]:
    """Writes the drawing and, beside it, NAME.csv with every run.

    Args:
        groups: a name for each run; runs of one name become one line, their mean as far as all of them go. None: a
            line for each run.

    Raises: ValueError for more lines than a drawing can show.
    """
    labels = list(groups) if groups is not None else names_of(histories)
    lines = len(set(labels)) if groups is not None else len(histories)
    if lines > MAX_LINES:
        raise ValueError(f"runs= has {lines} runs, and one drawing shows at most {MAX_LINES}; give fewer.")
    table = path.with_suffix(".csv")
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        split = [f"{part}_{key}" for part in ("train", "validation") for key in QUANTITIES]
        writer.writerow(["run", "group", "epoch", "learning_rate", *split])
        for history, label in zip(histories, labels, strict=True):
            for epoch in history.epochs:
                values = [epoch.train[key] for key in QUANTITIES] + [epoch.validation[key] for key in QUANTITIES]
                numbers = [f"{value:.5g}" for value in (epoch.epoch, epoch.learning_rate, *values)]
                writer.writerow([str(history.run_dir), label, *numbers])
    members: dict[str, list[History]] = {}
    for history, label in zip(histories, labels, strict=True):
        members.setdefault(label, []).append(history)
    _draw(members, path)
    return [path, table]


def _mean_epochs(histories: Sequence[History]) -> list[Epoch]:
    """Of runs with epochs of one length, as far as the shortest goes."""
    return [
        Epoch(
            epochs[0].epoch,
            {key: mean(epoch.train[key] for epoch in epochs) for key in QUANTITIES},
            {key: mean(epoch.validation[key] for epoch in epochs) for key in QUANTITIES},
            epochs[0].learning_rate,
        )
        for epochs in zip(*(history.epochs for history in histories), strict=False)
    ]


def _draw(members: dict[str, list[History]], path: Path) -> None:
    from matplotlib.ticker import MaxNLocator

    pyplot = open_pyplot("curves")
    figure, panels = pyplot.subplots(
        4, 1, figsize=(8.0, 9.5), sharex=True, height_ratios=[3, 3, 3, 1.4], layout="constrained"
    )
    by_key, rate = dict(zip(QUANTITIES, panels, strict=False)), panels[-1]
    for number, (label, histories) in enumerate(members.items()):
        colour, line = COLOURS[number % len(COLOURS)], "-" if number < len(COLOURS) else "--"
        middle = _mean_epochs(histories)
        epochs = [epoch.epoch for epoch in middle]
        marker = "o" if len(epochs) == 1 else ""
        name = f"{label} (mean of {len(histories)} runs)" if len(histories) > 1 else label
        for key, axes in by_key.items():
            if len(histories) > 1:
                courses = [[h.epochs[i].validation[key] for h in histories] for i in range(len(epochs))]
                low, high = [min(one) for one in courses], [max(one) for one in courses]
                axes.fill_between(epochs, low, high, color=colour, alpha=0.15, lw=0)
            train = [epoch.train[key] for epoch in middle]
            axes.plot(epochs, train, line, marker=marker, color=colour, lw=0.9, alpha=0.55)
            validation = [epoch.validation[key] for epoch in middle]
            axes.plot(epochs, validation, line, marker=marker, color=colour, lw=2.0, label=name)
        rate.step(epochs, [e.learning_rate for e in middle], where="pre", color=colour, lw=1.5, ls=line)
    units = {"loss": "loss, nats", "top1_error": "top-1 error, %", "top5_error": "top-5 error, %"}
    for key, axes in by_key.items():
        axes.set_ylabel(units[key])
        if key != "loss":
            axes.set_ylim(bottom=0)
    rate.set_ylabel("learning rate")
    everything = [epoch for histories in members.values() for h in histories for epoch in h.epochs]
    if all(epoch.learning_rate > 0 for epoch in everything):
        rate.set_yscale("log")
    rate.set_xlabel("epochs")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    shaded = "; shaded: lowest to highest run" if any(len(one) > 1 for one in members.values()) else ""
    panels[0].set_title(f"thick: validation; thin: training, with dropout and random crops{shaded}", size=9)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=1, frameon=False, fontsize=8)
    save(figure, path)
