"""The images that runs were trained on: in words, and whether they are the same for all runs of a report."""

from collections.abc import Sequence
from pathlib import Path

from twotower.ground.wording import counted
from twotower.reports.run_records import FinishedRun, Run, Trace


def describe_data(run: Run) -> str:
    """`folder imagenette, 10 classes`."""
    data = run.config.data
    name = f"{data.kind} {Path(data.root).name}" if data.kind == "folder" and data.root is not None else data.kind
    classes = run.summary["num_classes"] if isinstance(run, FinishedRun) else None
    return f"{name}, {counted(classes, 'class', 'classes')}" if classes else name


def _describe_difference(first: Run, second: Run) -> str | None:
    """The difference between the images of two runs; None if they are the same, as far as the runs noted them."""
    if first.mean_image is not None and second.mean_image is not None:
        if first.mean_image != second.mean_image:
            return "their training sets have different mean images"
    elif (first.config.data.kind, first.config.data.root) != (second.config.data.kind, second.config.data.root):
        return "data and data.root differ"
    if first.num_val is not None and second.num_val is not None and first.num_val != second.num_val:
        return f"their validation sets have {first.num_val} and {counted(second.num_val, 'image')}"
    return None


def check_one_data_set(runs: Sequence[Trace]) -> None:
    """Checks that errors can be compared. Raises: ValueError naming two runs that have different images."""
    begun = [run for run in runs if isinstance(run, Run)]
    for run in begun[1:]:
        difference = _describe_difference(begun[0], run)
        if difference is not None:
            raise ValueError(
                f"{begun[0].run_dir} ({describe_data(begun[0])}) and {run.run_dir} ({describe_data(run)}) have "
                f"different images: {difference}. Their errors cannot stand in one table; give runs of one data set."
            )
