"""A run as a report knows it: the trace of a job, a run that has begun, a run that has finished."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twotower.config import Config
from twotower.runs.checkpoint import Manifest
from twotower.runs.history import History
from twotower.runs.status import Status


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The trace of a job in its folder, and all there is of one that never began or whose files cannot be read.

    Attributes:
        name: its folder below the one that was given.
        remark: why it has this status, or what it lacks; empty for nothing.
    """

    run_dir: Path
    name: str
    status: Status
    remark: str


@dataclass(frozen=True, kw_only=True)
class Run(Trace):
    """A run whose configuration can be read.

    Attributes:
        history: None without a finished epoch.
        megabytes: peak memory of each tower in MiB; empty where the run did not note it.
        mean_image: SHA-256 of the training set's mean image, which stands for the set wherever it lies.
        num_val: number of images of the validation set.
        manifest: manifest of the last checkpoint, verified; None without one.
        is_kept: whether this is what an earlier report has kept of the run, without weights.
    """

    config: Config
    history: History | None = None
    megabytes: tuple[float, ...] = ()
    mean_image: str | None = None
    num_val: int | None = None
    manifest: Manifest | None = None
    is_kept: bool = False

    @property
    def has_checkpoint(self) -> bool:
        return self.manifest is not None


@dataclass(frozen=True, kw_only=True)
class FinishedRun(Run):
    """A run that has reached its end, and counts in comparisons.

    Attributes:
        summary: content of summary.json.
        errors: view (`centre`, `ten`) -> top-1 and top-5 error in percent, on the validation set at the end.
    """

    history: History
    summary: dict[str, Any]
    errors: dict[str, tuple[float, float]]


def list_finished(runs: Sequence[Trace]) -> list[FinishedRun]:
    return [run for run in runs if isinstance(run, FinishedRun)]
