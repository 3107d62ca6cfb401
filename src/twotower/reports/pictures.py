"""The pictures of a report: drawn from its runs, or copied from the figures that launch/figure.py left in them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twotower.config import EvaluateConfig
from twotower.data.class_names import name_classes
from twotower.data.photographs import LARGEST_PICTURE, is_picture
from twotower.evaluation import predictions
from twotower.evaluation.predictions import VIEWS
from twotower.evaluation.subject import open_subject
from twotower.figures.colour_selectivity import Course, write_colour
from twotower.figures.curves import MAX_LINES, write_curves
from twotower.figures.prepare_figure import (
    prepare_activations,
    prepare_confusion,
    prepare_figure1,
    prepare_figure3,
    prepare_figure4,
)
from twotower.ground.files import write_whole
from twotower.reports.compare import Comparison, Group
from twotower.reports.differences import draw_differences
from twotower.reports.page import Figure
from twotower.reports.run_records import FinishedRun, Run, Trace
from twotower.reports.tables import CROPS, has_kernels, has_two_towers, read_kernels_once
from twotower.runs.checkpoint import find, read_manifest
from twotower.runs.history import History
from twotower.training.sweep_names import name_file

_COPIED = (".png", ".csv", ".json")  # what launch/figure.py leaves; nothing else of a stranger's folder
DRAWN_HERE = ("figure3", "confusion")  # figures of one run that a report draws afresh


@dataclass(frozen=True)
class Pictures:
    """Figures by the section of the report that shows them, and remarks on what they leave out."""

    comparison: list[Figure]
    curves: list[Figure]
    colour: list[Figure]
    runs: list[Figure]
    remarks: list[str]

    def list_figures(self) -> list[Figure]:
        return [*self.comparison, *self.curves, *self.colour, *self.runs]


def draw_pictures(folder: Path, runs: Sequence[Trace], comparison: Comparison) -> Pictures:
    """Draws all pictures that the runs allow, as NAME.png with their numbers beside them."""
    curves, remarks = _draw_curves(folder, runs, comparison)
    kernels, confusions = [], []
    for group in comparison.groups:
        example = next((run for run in group.runs if has_kernels(run)), None)
        if example is not None:
            kernels.append(_draw_kernels(folder, group, example))
            confusions += _draw_confusion(folder, group, example)
    copies = [figure for group in comparison.groups for run in group.runs for figure in _copy(folder, group, run)]
    return Pictures(
        comparison=_draw_differences(folder, comparison),
        curves=[curves, *_draw_figure1(folder, comparison)],
        colour=[*_draw_courses(folder, comparison), *kernels],
        runs=[*confusions, *copies],
        remarks=remarks,
    )


def _make_figure(folder: Path, name: str, title: str, caption: str = "") -> Figure:
    """The figure that is drawn at NAME.png, with NAME.csv where it has one."""
    data = f"{name}.csv" if (folder / f"{name}.csv").exists() else ""
    return Figure(title, folder / f"{name}.png", caption, data)


def _draw_differences(folder: Path, comparison: Comparison) -> list[Figure]:
    figures = []
    for view in VIEWS:
        if any(comparison.difference(group, view, "top1_error") for group in comparison.groups[1:]):
            name = f"differences-{view}"
            draw_differences(comparison, view, folder / f"{name}.png")
            caption = "Lines: 95 % confidence intervals of the mean over seeds; diamonds: the lab book of 2012."
            figures.append(_make_figure(folder, name, f"What each change costs, {CROPS[view]}", caption))
    return figures


def _draw_curves(folder: Path, runs: Sequence[Trace], comparison: Comparison) -> tuple[Figure, list[str]]:
    """The curves of all groups and of the runs that have not finished, and a remark if there are too many."""
    drawn: list[tuple[History, str]] = [
        (run.history, group.label) for group in comparison.groups for run in group.runs
    ]
    for run in runs:
        if isinstance(run, Run) and not isinstance(run, FinishedRun) and run.history is not None:
            drawn.append((run.history, f"{run.name} ({run.status})"))
    labels, remarks = list(dict.fromkeys(label for _, label in drawn)), []
    if len(labels) > MAX_LINES:
        remarks.append(f"the curves show the first {MAX_LINES} groups")
        drawn = [(history, label) for history, label in drawn if label in labels[:MAX_LINES]]
    write_curves([history for history, _ in drawn], folder / "curves.png", [label for _, label in drawn])
    return _make_figure(folder, "curves", "Loss, errors and learning rate by epoch"), remarks


def _draw_figure1(folder: Path, comparison: Comparison) -> list[Figure]:
    """Figure 1, where the runs are of its network."""
    histories = [run.history for group in comparison.groups for run in group.runs]
    if any(history.config.network.name != "cifar_four_layer" for history in histories):
        return []
    try:
        figure1 = prepare_figure1(histories)
    except ValueError:
        return []  # other things differ as well: then these runs are no Figure 1
    figure1.write(folder / "figure1.png")
    return [_make_figure(folder, "figure1", "Figure 1: training error by epoch", figure1.caption)]


def _draw_courses(folder: Path, comparison: Comparison) -> list[Figure]:
    courses = [
        Course(group.label, run.config.seed, read_kernels_once(run.run_dir))
        for group in comparison.groups
        for run in group.runs
        if has_two_towers(run) and read_kernels_once(run.run_dir).history
    ]
    if not courses:
        return []
    write_colour(courses, folder / "colour.png")
    return [_make_figure(folder, "colour", "Colour selectivity of both towers by step")]


def _draw_kernels(folder: Path, group: Group, run: FinishedRun) -> Figure:
    name = f"figure3-{name_file(group.label)}"
    prepare_figure3(read_kernels_once(run.run_dir)).write(folder / f"{name}.png")
    return _make_figure(folder, name, f"conv1 of {group.label}", f"Run {run.name}; Figure 3 of the paper.")


def _draw_confusion(folder: Path, group: Group, run: FinishedRun) -> list[Figure]:
    """The confusion of a run whose predictions of its last checkpoint are stored."""
    path = find(run.run_dir)
    file = predictions.locate_predictions(run.run_dir, path.name, "val", "centre")
    identity, manifest = predictions.read_identity(file), read_manifest(path)
    if identity is None or identity["checkpoint"] != manifest.sha256:
        return []
    centre = predictions.read(file, identity)
    if centre is None or centre.log_probabilities.shape[1] != len(manifest.classes):
        return []  # damaged; an evaluation computes them again
    name, title = f"confusion-{name_file(group.label)}", f"{run.name}, centre crop"
    confusion = prepare_confusion(title, centre.log_probabilities, centre.labels, name_classes(manifest.classes))
    confusion.write(folder / f"{name}.png")
    return [_make_figure(folder, name, f"Classes taken for each other: {group.label}", f"Run {run.name}.")]


def _copy(folder: Path, group: Group, run: FinishedRun) -> list[Figure]:
    """Copies the figures that launch/figure.py drew of a run, except those that the report draws itself."""
    figures = []
    for picture in sorted((run.run_dir / "figures").glob("*.png")):
        if picture.stem in DRAWN_HERE or not is_picture(picture):
            continue
        name = name_file(f"{picture.stem}-{name_file(f'{group.label},seed={run.config.seed}')}")
        for suffix in _COPIED:
            file = picture.with_suffix(suffix)
            if file.is_file() and file.stat().st_size <= LARGEST_PICTURE:
                write_whole(folder / f"{name}{suffix}", file.read_bytes())
        figures.append(_make_figure(folder, name, f"{picture.stem}: {group.label}", f"Run {run.name}."))
    return figures


def draw_of_run(run: Run, data_root: str | None = None) -> None:
    """Figure 4 and the maps of the first layer, as launch/figure.py draws them, unless they are there.

    Args:
        data_root: where the images are now; None: where the run was trained on them.

    Raises: ValueError if the images are not there any more.
    """
    folder = run.run_dir / "figures"
    missing = [name for name in ("figure4", "activations") if not (folder / f"{name}.png").exists()]
    if missing:
        settings = EvaluateConfig(run=str(run.run_dir), data_root=data_root)
        subject = open_subject(str(run.run_dir), settings, run.manifest)
        folder.mkdir(exist_ok=True)
        if "figure4" in missing:
            prepare_figure4(subject).write(folder / "figure4.png")
        if "activations" in missing:
            prepare_activations(subject).write(folder / "activations.png")
