"""The images that runs were trained on: in words, and whether they are the same for all runs of a report."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from twotower.ground.wording import counted
from twotower.reports.kept_runs import KEPT
from twotower.reports.run_records import FinishedRun, Run, Trace
from twotower.runs.status import Status


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


def leave_out_odd_images(runs: Sequence[Trace]) -> list[Trace]:
    """The runs; one that says something else of its images than most runs in the same `data.root` is left out.

    A mean image with one bit changed is still one, so that only the others show that it is damaged. Where no value
    has more than half of the runs, nothing is left out, and `check_one_data_set` refuses them.
    """
    begun = [run for run in runs if isinstance(run, Run)]
    odd: dict[Path, str] = {}
    for place in {_locate(run) for run in begun}:
        members = [run for run in begun if _locate(run) == place]
        for what, value_of in _NOTED.items():
            values = [value for run in members if (value := value_of(run)) is not None]
            usual, count = Counter(values).most_common(1)[0] if values else (None, 0)
            if 2 * count > len(values):
                different = [run for run in members if value_of(run) not in (None, usual)]
                odd |= {run.run_dir: f"{run.run_dir / (KEPT if run.is_kept else what)}" for run in different}
    return [
        Trace(run_dir=run.run_dir, name=run.name, status=Status.DAMAGED, remark=_explain_odd(odd[run.run_dir]))
        if run.run_dir in odd
        else run
        for run in runs
    ]


def _locate(run: Run) -> tuple[str, str | None]:
    return run.config.data.kind, run.config.data.root


_NOTED: dict[str, Callable[[Run], Any]] = {
    "mean_image.npy": lambda run: run.mean_image,
    "checkpoints": lambda run: run.num_val,
}


def _explain_odd(path: str) -> str:
    return (
        f"left out: {path} is of other images than those of the other runs in the same data.root; it is damaged, or "
        "the images were changed."
    )


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
