"""Loss, errors and learning rate of runs, epoch by epoch."""

import csv
from collections.abc import Sequence
from pathlib import Path

from twotower.history import QUANTITIES, History

# Okabe and Ito's colours, told apart by the colour-blind; from the ninth run on they come again, dashed.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")
MAX_RUNS = 2 * len(COLOURS)


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


def write_curves(histories: Sequence[History], path: Path) -> list[Path]:
    """Writes the drawing and, beside it, NAME.csv. Raises: ValueError for more runs than a drawing can show."""
    if len(histories) > MAX_RUNS:
        raise ValueError(f"runs= has {len(histories)} runs, and one drawing shows at most {MAX_RUNS}; give fewer.")
    table = path.with_suffix(".csv")
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        split = [f"{part}_{key}" for part in ("train", "validation") for key in QUANTITIES]
        writer.writerow(["run", "epoch", "learning_rate", *split])
        for history in histories:
            for epoch in history.epochs:
                values = [epoch.train[key] for key in QUANTITIES] + [epoch.validation[key] for key in QUANTITIES]
                numbers = [f"{value:.5g}" for value in (epoch.epoch, epoch.learning_rate, *values)]
                writer.writerow([str(history.run_dir), *numbers])
    _draw(histories, path)
    return [path, table]


def _draw(histories: Sequence[History], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "curves"  # the same drawing, the same bytes
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        3, 1, figsize=(8.0, 9.0), sharex=True, height_ratios=[3, 3, 1.4], layout="constrained"
    )
    loss, error, rate = panels
    for number, (history, name) in enumerate(zip(histories, names_of(histories), strict=True)):
        colour, line = COLOURS[number % len(COLOURS)], "-" if number < len(COLOURS) else "--"
        epochs = [epoch.epoch for epoch in history.epochs]
        marker = "o" if len(epochs) == 1 else ""
        for axes, key in ((loss, "loss"), (error, "top1_error")):
            train = [epoch.train[key] for epoch in history.epochs]
            axes.plot(epochs, train, line, marker=marker, color=colour, lw=0.9, alpha=0.55)
            validation = [epoch.validation[key] for epoch in history.epochs]
            axes.plot(epochs, validation, line, marker=marker, color=colour, lw=2.0, label=name)
        rates = [epoch.learning_rate for epoch in history.epochs]
        rate.step(epochs, rates, where="pre", color=colour, lw=1.5, ls=line)
    loss.set_ylabel("loss, nats")
    error.set_ylabel("top-1 error, %")
    rate.set_ylabel("learning rate")
    if all(epoch.learning_rate > 0 for history in histories for epoch in history.epochs):
        rate.set_yscale("log")
    rate.set_xlabel("epochs")
    loss.set_title("thick: validation; thin: training, with dropout and random crops", size=9)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    error.set_ylim(bottom=0)
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=1, frameon=False, fontsize=8)
    figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
