"""The pictures of a report, drawn from its runs or taken from what launch/figure.py left in them."""

from collections.abc import Sequence
from pathlib import Path

from twotower.config import EvaluateConfig
from twotower.evaluation import predictions
from twotower.evaluation.evaluate import open_subject
from twotower.figures.colour import Course, write_colour
from twotower.figures.curves import MAX_LINES, write_curves
from twotower.figures.prepare_figure import (
    prepare_activations,
    prepare_confusion,
    prepare_figure1,
    prepare_figure3,
    prepare_figure4,
)
from twotower.reports.compare import VIEWS, Comparison
from twotower.reports.differences import draw_differences
from twotower.reports.page import Figure
from twotower.reports.run import FinishedRun, Run, Trace
from twotower.reports.tables import CROPS, has_kernels, measure_colour, read_kernels_once
from twotower.runs import checkpoint
from twotower.training.sweep import file_name

OWN = ("figure3", "confusion")  # figures of one run that a report draws afresh


def _figure(folder: Path, name: str, title: str, caption: str = "") -> Figure:
    return Figure(title, folder / f"{name}.png", caption, f"{name}.csv" if (folder / f"{name}.csv").exists() else "")


def draw(folder: Path, runs: Sequence[Trace], comparison: Comparison) -> tuple[dict[str, list[Figure]], list[str]]:
    """Draws what the runs allow. Returns figures by section, and what could not be drawn."""
    figures: dict[str, list[Figure]] = {"comparison": [], "curves": [], "colour": [], "runs": []}
    remarks = []
    for view in VIEWS:
        if any(comparison.difference(group, view, "top1_error") for group in comparison.groups[1:]):
            name = f"differences-{view}"
            draw_differences(comparison, view, folder / f"{name}.png")
            caption = "Lines: 95 % confidence intervals of the mean over seeds; diamonds: the lab book of 2012."
            figures["comparison"].append(_figure(folder, name, f"What each change costs, {CROPS[view]}", caption))
    drawn = [(run.history, group.label) for group in comparison.groups for run in group.runs]
    for run in runs:
        if isinstance(run, Run) and not isinstance(run, FinishedRun) and run.history is not None:
            drawn.append((run.history, f"{run.name} ({run.status})"))
    if len({label for _, label in drawn}) > MAX_LINES:
        remarks.append(f"the curves show the first {MAX_LINES} groups")
        shown = list(dict.fromkeys(label for _, label in drawn))[:MAX_LINES]
        drawn = [(history, label) for history, label in drawn if label in shown]
    write_curves([history for history, _ in drawn], folder / "curves.png", [label for _, label in drawn])
    figures["curves"].append(_figure(folder, "curves", "Loss, errors and learning rate by epoch"))
    figures["curves"] += _figure1(folder, comparison)
    courses = [
        Course(group.label, run.config.seed, read_kernels_once(run.run_dir).history)
        for group in comparison.groups
        for run in group.runs
        if measure_colour(run) is not None and read_kernels_once(run.run_dir).history
    ]
    if courses:
        write_colour(courses, folder / "colour.png")
        figures["colour"].append(_figure(folder, "colour", "Colour selectivity of both towers by step"))
    for group in comparison.groups:
        example = next((run for run in group.runs if has_kernels(run)), None)
        if example is None:
            continue
        name = f"figure3-{file_name(group.label)}"
        prepare_figure3(read_kernels_once(example.run_dir)).write(folder / f"{name}.png")
        figures["colour"].append(
            _figure(folder, name, f"conv1 of {group.label}", f"Run {example.name}; Figure 3 of the paper.")
        )
        figures["runs"] += _confusion(folder, group.label, example)
    for group in comparison.groups:
        for run in group.runs:
            figures["runs"] += _drawn_before(folder, group.label, run)
    return figures, remarks


def _figure1(folder: Path, comparison: Comparison) -> list[Figure]:
    """Figure 1, where the runs are of its network."""
    histories = [run.history for group in comparison.groups for run in group.runs]
    if any(history.config.network.name != "cifar_four_layer" for history in histories):
        return []
    try:
        figure1 = prepare_figure1(histories)
    except ValueError:
        return []  # other things differ as well: then these runs are no Figure 1
    figure1.write(folder / "figure1.png")
    return [_figure(folder, "figure1", "Figure 1: training error by epoch", figure1.caption)]


def _confusion(folder: Path, label: str, run: FinishedRun) -> list[Figure]:
    """From stored predictions, where the run has them."""
    path = checkpoint.find(run.run_dir)
    stored = predictions.path_of(run.run_dir, path.name, "val", "centre")
    identity, manifest = predictions.read_identity(stored), checkpoint.read_manifest(path)
    if identity is None or identity["checkpoint"] != manifest.sha256:
        return []
    centre = predictions.read(stored, identity)
    assert centre is not None
    name = f"confusion-{file_name(label)}"
    confusion = prepare_confusion(
        f"{run.name}, centre crop", centre.log_probabilities, centre.labels, manifest.classes
    )
    confusion.write(folder / f"{name}.png")
    return [_figure(folder, name, f"Classes taken for each other: {label}", f"Run {run.name}.")]


def _drawn_before(folder: Path, label: str, run: FinishedRun) -> list[Figure]:
    """Lists what launch/figure.py drew of a run, except what the report draws itself."""
    found = []
    for picture in sorted((run.run_dir / "figures").glob("*.png")):
        if picture.stem in OWN:
            continue
        name = f"{picture.stem}-{file_name(f'{label},seed={run.config.seed}')}"
        for file in picture.parent.glob(f"{picture.stem}.*"):
            (folder / f"{name}{file.suffix}").write_bytes(file.read_bytes())
        found.append(_figure(folder, name, f"{picture.stem}: {label}", f"Run {run.name}."))
    return found


def draw_of_run(run: Trace, data_root: str | None = None) -> None:
    """Figure 4 and the maps of the first layer, as launch/figure.py draws them, unless they are there.

    Args:
        data_root: where the images are now; None: where the run was trained on them.

    Raises: ValueError if the images are not there any more.
    """
    folder = run.run_dir / "figures"
    missing = [name for name in ("figure4", "activations") if not (folder / f"{name}.png").exists()]
    if missing:
        subject = open_subject(str(run.run_dir), EvaluateConfig(run=str(run.run_dir), data_root=data_root))
        folder.mkdir(exist_ok=True)
        if "figure4" in missing:
            prepare_figure4(subject).write(folder / "figure4.png")
        if "activations" in missing:
            prepare_activations(subject).write(folder / "activations.png")
