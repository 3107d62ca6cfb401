"""Figure 3: the kernels of the first layer, tower 0 above tower 1, and the colour selectivity of each.

The paper (section 6.1) says that in every run the kernels of one tower become largely colour-agnostic, those of the
other one largely colour-specific. `kernels.colour_selectivity` measures it; the journal has its mean over time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor

from twotower.figures.drawing import mark_steps, open_pyplot, remove_frame, save, write_numbers
from twotower.figures.palette import CHANCE, TOWERS
from twotower.model.conv1_kernels import RANDOM, colour_selectivity, mosaic
from twotower.runs import checkpoint
from twotower.runs.events import read_events
from twotower.weights.read_weights import read_checkpoint

ASSIGNMENTS = 10_000  # of the kernels to two towers, by chance


@dataclass(frozen=True)
class Kernels:
    """The first layer of a run's last checkpoint.

    Attributes:
        of_tower: kernels of each tower, float32 [K, 3, S, S], for R, G, B.
        history: step and mean selectivity of each tower, from the journal.
    """

    run_dir: Path
    step: int
    layer: str
    of_tower: list[Tensor]
    history: list[tuple[int, list[float]]]

    def selectivity(self) -> list[list[float]]:
        """The colour selectivity of each kernel in each tower."""
        return [colour_selectivity(kernels).tolist() for kernels in self.of_tower]


def read_kernels(run_dir: Path) -> Kernels:
    """The first layer of the last checkpoint. Raises: ValueError for a folder without a complete one."""
    path = checkpoint.find(run_dir)
    manifest = checkpoint.verify_checkpoint(path)
    imported = read_checkpoint(path, manifest)
    assert imported.network is not None
    layer = next(iter(imported.network.layers))
    towers = list(imported.tensors[f"{layer}.weight"].chunk(imported.network.towers))
    history = [
        (event["step"], [event[f"tower{t}/{layer}/colour"] for t in range(len(towers))])
        for event in read_events(run_dir / "metrics.jsonl")
        if event["event"] == "scales" and all(f"tower{t}/{layer}/colour" in event for t in range(len(towers)))
    ]
    return Kernels(run_dir, manifest.step, layer, towers, history)


def summarise(kernels: Kernels) -> dict[str, Any]:
    """Mean selectivity of each tower, and the probability that a kernel of one tower exceeds a kernel of the other.

    `more_colour` has that probability for the tower for which it is higher (the area under the ROC curve, ties count
    half): 0.5 for towers that do not differ, 1 for towers that differ in every kernel. `p_value` is the probability
    that towers of one distribution come out as far apart (Mann and Whitney's test, two-sided). `gap` is the
    difference of the means, see `measure_gap`.
    """
    towers = kernels.selectivity()
    summary: dict[str, Any] = {
        "run": kernels.run_dir.name,
        "step": kernels.step,
        "mean_selectivity": [float(np.mean(values)) for values in towers],
    }
    if len(towers) == 2:
        first, second = (np.array(values) for values in towers)
        wins = (second[:, None] > first[None]).mean() + 0.5 * (second[:, None] == first[None]).mean()
        p_value = float(stats.mannwhitneyu(first, second).pvalue)
        summary["more_colour"] = {
            "tower": int(wins >= 0.5),
            "probability": float(max(wins, 1 - wins)),
            "p_value": p_value,
        }
        summary["gap"] = measure_gap(*towers)
    return summary


def measure_gap(first: Sequence[float], second: Sequence[float]) -> dict[str, float]:
    """How far two towers' mean selectivities are apart, and the share of chance assignments in which they are as far.

    The kernels of both are dealt out anew to two towers of the same sizes, `ASSIGNMENTS` times with a fixed seed; the
    assignment that is there counts as one more of them. A single kernel says nothing: then the share is 1.
    """
    if min(len(first), len(second)) < 2:
        return {"value": float(abs(np.mean(first) - np.mean(second))), "p_value": 1.0}
    found = stats.permutation_test(
        (first, second),
        lambda one, other, axis: np.abs(np.mean(one, axis) - np.mean(other, axis)),
        n_resamples=ASSIGNMENTS,
        vectorized=True,
        alternative="greater",
        rng=0,
    )
    return {"value": float(found.statistic), "p_value": float(found.pvalue)}


def write_figure3(kernels: Kernels, path: Path) -> list[Path]:
    """Writes the drawing and, beside it, NAME.csv (each kernel's selectivity) and NAME.json (`summarise`)."""
    rows = (
        [tower, number, f"{value:.5f}"]
        for tower, values in enumerate(kernels.selectivity())
        for number, value in enumerate(values)
    )
    tables = write_numbers(path, ["tower", "kernel", "colour_selectivity"], rows, summarise(kernels))
    _draw(kernels, path)
    return [path, *tables]


def _draw(kernels: Kernels, path: Path) -> None:
    from matplotlib.ticker import MaxNLocator

    pyplot = open_pyplot("figure3")
    # All kernels have one scale, so that a faint one looks faint (shownet.py).
    low = min(float(weights.min()) for weights in kernels.of_tower)
    high = max(float(weights.max()) for weights in kernels.of_tower)
    count = len(kernels.of_tower)
    pictures = [mosaic(weights, low, high) for weights in kernels.of_tower]
    heights = [picture.shape[0] / picture.shape[1] * 8 for picture in pictures]
    figure = pyplot.figure(figsize=(8.4, sum(heights) + 0.5 * count + 3.4), layout="constrained")
    grid = figure.add_gridspec(count + 1, 2, height_ratios=[*heights, 2.8])
    for tower, picture in enumerate(pictures):
        axes = figure.add_subplot(grid[tower, :])
        axes.imshow(picture, interpolation="nearest")
        axes.axis("off")
        mean = np.mean(kernels.selectivity()[tower])
        axes.set_title(f"tower {tower}: {kernels.layer}, mean colour selectivity {mean:.2f}", size=10, loc="left")
    sorted_axes, time_axes = figure.add_subplot(grid[count, 0]), figure.add_subplot(grid[count, 1])
    for tower, values in enumerate(kernels.selectivity()):
        ranks = np.linspace(0, 100, len(values)) if len(values) > 1 else [50.0]
        sorted_axes.plot(ranks, sorted(values), ".-", color=TOWERS[tower], ms=3, lw=1, label=f"tower {tower}")
        if kernels.history:
            steps = [step for step, _ in kernels.history]
            course = [means[tower] for _, means in kernels.history]
            # The points have two sizes, because the towers begin alike and one point would hide the other.
            mark_steps(time_axes, steps, course, color=TOWERS[tower], lw=1.6, ms=(7, 4)[tower])
    for axes in (sorted_axes, time_axes):
        axes.axhline(RANDOM, color=CHANCE, lw=0.8, ls=":")
        axes.set_ylim(0, 1)
        remove_frame(axes)
    if kernels.history:
        time_axes.set_xlim(0, 1.05 * kernels.history[-1][0])
        time_axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    else:
        time_axes.set_xticks([])
        time_axes.text(0.5, 0.5, "not recorded in this run", ha="center", transform=time_axes.transAxes, size=9)
    sorted_axes.set_xlabel("kernels in order, %")
    sorted_axes.set_ylabel("colour selectivity")
    sorted_axes.legend(frameon=False)
    time_axes.set_xlabel("steps")
    time_axes.set_ylabel("mean colour selectivity")
    time_axes.set_title("dotted: kernels drawn at random (2/3)", size=8)
    save(figure, path)
