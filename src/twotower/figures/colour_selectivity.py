"""The colour selectivity of conv1 in both towers of several runs: its mean over the steps, and where it ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from twotower.figures.drawing import mark_steps, open_pyplot, remove_frame, save, write_numbers
from twotower.figures.figure3 import Kernels
from twotower.figures.figure3 import summarise as summarise_kernels
from twotower.figures.palette import CHANCE, TOWERS
from twotower.ground.wording import counted
from twotower.model.conv1_kernels import RANDOM

PARTED = 0.05  # the share of chance assignments below which the towers of a run are said to part


@dataclass(frozen=True)
class Course:
    """The colour selectivity of one run of two towers.

    Attributes:
        group: of the runs that are drawn together.
    """

    group: str
    seed: int
    kernels: Kernels

    @property
    def points(self) -> list[tuple[int, list[float]]]:
        """Step and mean of each tower, from the journal, and at the end."""
        kernels = self.kernels
        if kernels.history and kernels.history[-1][0] >= kernels.step:
            return kernels.history
        return [*kernels.history, (kernels.step, [fmean(values) for values in kernels.selectivity()])]


def summarise(courses: Sequence[Course]) -> dict[str, Any]:
    """By group: in how many runs the towers part, the gaps, and each run's numbers (see `figure3.summarise`)."""
    groups: dict[str, Any] = {}
    for group in dict.fromkeys(course.group for course in courses):
        runs = [
            summarise_kernels(course.kernels) | {"seed": course.seed} for course in courses if course.group == group
        ]
        gaps = [run["gap"]["value"] for run in runs]
        groups[group] = {
            "runs": len(runs),
            "parted": sum(run["gap"]["p_value"] < PARTED for run in runs),
            "gap_mean": sum(gaps) / len(gaps),
            "gap_lowest": min(gaps),
            "gap_highest": max(gaps),
            "tower_0_has_more": sum(run["mean_selectivity"][0] > run["mean_selectivity"][1] for run in runs),
            "of_runs": runs,
        }
    return groups


def describe(courses: Sequence[Course]) -> list[str]:
    """A sentence for each group."""
    return [
        f"{group}: the towers part in {numbers['parted']} of {counted(numbers['runs'], 'run')}; gap "
        f"{numbers['gap_mean']:.2f} ({numbers['gap_lowest']:.2f} to {numbers['gap_highest']:.2f}); tower 0 has more "
        f"colour in {numbers['tower_0_has_more']}"
        for group, numbers in summarise(courses).items()
    ]


def write_colour(courses: Sequence[Course], path: Path) -> list[Path]:
    """Writes the drawing, a panel for each group, and beside it NAME.csv (the means by step), NAME-kernels.csv (each
    kernel at the end) and NAME.json (`summarise`).
    """
    rows = (
        [course.group, course.seed, step, *(f"{value:.4f}" for value in towers)]
        for course in courses
        for step, towers in course.points
    )
    tables = write_numbers(path, ["group", "seed", "step", "tower0", "tower1"], rows, summarise(courses))
    kernels = (
        [course.group, course.seed, tower, number, f"{value:.5f}"]
        for course in courses
        for tower, values in enumerate(course.kernels.selectivity())
        for number, value in enumerate(values)
    )
    heads = ["group", "seed", "tower", "kernel", "colour_selectivity"]
    tables += write_numbers(path.with_name(f"{path.stem}-kernels{path.suffix}"), heads, kernels)
    _draw(courses, path)
    return [path, *tables]


def _draw(courses: Sequence[Course], path: Path) -> None:
    pyplot = open_pyplot("colour")
    groups = list(dict.fromkeys(course.group for course in courses))
    columns = min(len(groups), 3)
    rows = -(-len(groups) // columns)
    figure, panels = pyplot.subplots(
        rows,
        columns,
        figsize=(3.4 * columns + 0.6, 2.7 * rows + 0.6),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes in panels.flat[len(groups) :]:
        axes.axis("off")
    for axes, group in zip(panels.flat, groups, strict=False):
        for course in [course for course in courses if course.group == group]:
            steps = [step for step, _ in course.points]
            for tower, colour in enumerate(TOWERS):
                values = [towers[tower] for _, towers in course.points]
                mark_steps(axes, steps, values, ls="-" if tower == 0 else "--", color=colour, lw=1.4, ms=3)
                axes.annotate(f" {course.seed}", (steps[-1], values[-1]), size=8, color=colour, va="center")
        axes.axhline(RANDOM, color=CHANCE, lw=0.8, ls=":")
        axes.set_title(group, size=9)
        axes.set_ylim(0, 1)
        axes.set_xlim(left=0)
        remove_frame(axes)
    for axes in panels[-1]:
        axes.set_xlabel("steps")
    for axes in panels[:, 0]:
        axes.set_ylabel("mean colour selectivity")
    lines = [pyplot.Line2D([], [], color=c, ls=s) for c, s in zip(TOWERS, ("-", "--"), strict=True)]
    names = ["tower 0", "tower 1 (numbers: seeds; dotted: kernels drawn at random)"]
    figure.legend(lines, names, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    save(figure, path)
