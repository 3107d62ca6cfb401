"""The mean colour selectivity of conv1 in both towers, over the steps of each run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twotower.figures.drawing import mark_steps, open_pyplot, remove_frame, save, write_numbers
from twotower.figures.palette import CHANCE, TOWERS
from twotower.model.conv1_kernels import RANDOM


@dataclass(frozen=True)
class Course:
    """The colour selectivity of one run, from its journal: (step, [tower 0, tower 1]) of each point."""

    group: str
    seed: int
    points: list[tuple[int, list[float]]]


def write_colour(courses: Sequence[Course], path: Path) -> list[Path]:
    """Writes the drawing, a panel for each group, and beside it NAME.csv."""
    rows = (
        [course.group, course.seed, step, *(f"{value:.4f}" for value in towers)]
        for course in courses
        for step, towers in course.points
    )
    tables = write_numbers(path, ["group", "seed", "step", "tower0", "tower1"], rows)
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
