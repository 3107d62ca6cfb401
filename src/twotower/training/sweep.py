"""Sweeps: each job in a folder of its own, whose name is its overrides; finished jobs are not run again.

What became of a job is read from its folder, not kept in memory: that is the same for jobs that ran here, in other
processes (hydra/launcher=slurm), and before the sweep was interrupted.
"""

import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from twotower.config import Config, LoggingConfig
from twotower.config.frozen_config import freeze
from twotower.ground.links import refuse_links
from twotower.ground.locks import HeldError, held
from twotower.ground.screen import print_table
from twotower.ground.wording import format_duration, on_one_line, word_error
from twotower.runs.failure import (
    NotApplicableError,
    forget_failure,
    note_failure,
    note_not_applicable,
    read_failure,
    read_not_applicable,
)
from twotower.runs.mirrors.open_mirrors import check_mirrors
from twotower.runs.mirrors.wandb_settings import group_in, settle
from twotower.runs.rundir import LOCK
from twotower.runs.status import Status
from twotower.runs.summary import read_summary
from twotower.training.explain import AlreadyExplainedError
from twotower.training.sweep_names import name_sweep, place_jobs

SWEEPS = Path("sweeps")
SUBMITTED = ".submitit"  # what Hydra's launcher for clusters leaves in a sweep's folder


@dataclass(frozen=True)
class Outcome:
    """The outcome of one job.

    Attributes:
        summary: content of summary.json, of a job that is finished.
    """

    status: Status
    summary: dict[str, Any] | None = None
    error: str = ""


@dataclass(frozen=True)
class Job:
    """One point of a sweep. `name` is what sets it apart from the others: "ablation=no_lrn,seed=0"."""

    name: str
    run_dir: Path


def read_overrides(arguments: list[str]) -> tuple[list[Override], Any]:
    """A sweep's overrides, with those that a yaml brings (hydra.sweeper.params) before them, as Hydra's own sweeper
    has them; and what its first job composes to, with Hydra's part.
    """
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    overrides = parser.parse_overrides(arguments)
    # Hydra has no public way to list the jobs before they run; its own sweeper makes the same list later.
    first = BasicSweeper.split_arguments(overrides, None)[0][0]
    composed = hydra.compose("config", first, return_hydra_config=True)
    params = composed.hydra.sweeper.get("params") or {}
    return [*parser.parse_overrides([f"{key}={value}" for key, value in params.items()]), *overrides], composed


@dataclass
class Sweep:
    """The jobs of one `python launch/two_gpu.py -m ...`, in the order in which Hydra runs them.

    Travels to other processes with the function that runs a job, so everything in it can be pickled.
    """

    name: str
    jobs: list[Job]
    done_before: set[Path] = field(default_factory=set)
    seconds: list[float] = field(default_factory=list)  # spent on the jobs that ran to their end in this process
    elsewhere: bool = False  # whether Hydra's launcher runs the jobs in processes of their own, side by side

    @staticmethod
    def plan(arguments: list[str]) -> "Sweep":
        """Finds a sweep's jobs and their folders from its overrides, as Hydra's own sweeper will; within
        `hydra.initialize`, as `ablation=glob(*)` asks which files there are.

        Raises: ValueError for `run_dir`, which all jobs would share, and for W&B online without a key; Hydra's own
        errors for what does not compose.
        """
        overrides, composed = read_overrides(arguments)
        if any(override.key_or_group == "run_dir" for override in overrides):
            raise ValueError("run_dir is for a single run, and each job of a sweep has its own; give sweep_dir=DIR.")
        name = name_sweep(composed.name, overrides)
        folder = Path(composed.sweep_dir) if composed.sweep_dir is not None else SWEEPS / name
        elsewhere = "BasicLauncher" not in composed.hydra.launcher._target_
        if not elsewhere:  # a launcher's other machine may have what is missing here
            logging = OmegaConf.to_object(composed.logging)
            assert isinstance(logging, LoggingConfig)
            check_mirrors(settle(logging, folder))
        swept = {override.get_key_element() for override in overrides if override.is_sweep_override()}
        varied = [
            [value for value in values if value.split("=", 1)[0] in swept] or ["defaults"]
            for values in BasicSweeper.split_arguments(overrides, None)[0]
        ]
        jobs = [
            Job(",".join(values), place) for values, place in zip(varied, place_jobs(folder, varied), strict=True)
        ]
        done_before = {job.run_dir for job in jobs if (job.run_dir / "summary.json").exists()}
        return Sweep(name, jobs, done_before, elsewhere=elsewhere)

    @property
    def folder(self) -> Path:
        """Where all jobs lie."""
        return self.jobs[0].run_dir.parent

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the sweep's folder while the block lasts.

        Raises: HeldError if another process has this sweep; ValueError for a link in it that leads out of it. Those
            in the folder of a job end that job alone.
        """
        refuse_links(self.folder, below=False)
        refuse_links(self.folder, SUBMITTED)
        with held(self.folder / LOCK, f"sweep_dir={self.folder} is being worked on"):
            yield

    def has_begun(self) -> bool:
        """Whether any job has left something, now or before."""
        return any(job.run_dir.exists() for job in self.jobs)

    def outcome(self, job: Job) -> Outcome:
        """Reads the outcome of a job from its folder; a damaged file is one, and leaves the others theirs."""
        try:
            return self._read_outcome(job)
        except ValueError as error:
            return Outcome(Status.DAMAGED, error=on_one_line(str(error)))

    def _read_outcome(self, job: Job) -> Outcome:
        """Raises: ValueError for a damaged file."""
        not_applicable, failure = read_not_applicable(job.run_dir), read_failure(job.run_dir)
        if not_applicable is not None:
            return Outcome(Status.NOT_APPLICABLE, error=not_applicable["not_applicable"])
        if failure is not None:
            return Outcome(Status.FAILED, error=failure["error"])
        summary = read_summary(job.run_dir)
        if summary is None:
            return Outcome(Status.UNFINISHED)
        return Outcome(Status.SKIPPED if job.run_dir in self.done_before else Status.FINISHED, summary)

    def run_job(self, number: int, compose: Callable[[], Config], run: Callable[[Config], dict[str, Any]]) -> None:
        """Runs a job, or finds that it is finished; a failure is noted and printed, and the sweep goes on.

        Args:
            number: of the job, from 0.
            compose: makes its configuration. Raises: NotApplicableError, ValueError.
            run: runs it until it is finished. Raises: ValueError, OSError, AlreadyExplainedError.
        """
        job = self.jobs[number]
        console = Console(highlight=False, soft_wrap=True)
        title = f"job {number + 1} of {len(self.jobs)}: {job.name}"
        if len(title) + 4 <= console.width:
            console.rule(title)
        else:  # a long name would be cut off there
            console.print(title, markup=False)
        if (job.run_dir / "summary.json").exists():
            console.print(f"finished before, skipped: {job.run_dir}", markup=False)
            forget_failure(job.run_dir)
        else:
            self._try(job, compose, run, console)
        if number + 1 < len(self.jobs):
            console.print(self._progress(number + 1), markup=False)

    def _try(
        self, job: Job, compose: Callable[[], Config], run: Callable[[Config], dict[str, Any]], console: Console
    ) -> None:
        start = time.monotonic()
        try:
            config = compose()
            group = config.logging.group or group_in(os.environ) or self.name
            logging = replace(config.logging, group=group)
            run_dir = str(job.run_dir.absolute())
            run(freeze(replace(config, run_dir=run_dir, resume="auto", logging=logging)))
        except HeldError as error:  # nothing is noted in a folder that another process writes to
            console.print(f"error: {error}", markup=False)
        except NotApplicableError as reason:
            console.print(f"not applicable: {reason}", markup=False)
            note_not_applicable(job.run_dir, str(reason), job.name)
        except AlreadyExplainedError:
            told = "A tower's process ended and left no reason."
            with suppress(ValueError):
                told = (read_failure(job.run_dir) or {"error": told})["error"]
            note_failure(job.run_dir, told, job.name)
        except (ValueError, OSError, OmegaConfBaseException) as error:
            console.print(f"error: {word_error(error)}", markup=False)
            note_failure(job.run_dir, word_error(error), job.name)
        except Exception as error:  # a fault of ours is no reason to lose the other jobs of the night
            traceback.print_exception(error)
            note_failure(job.run_dir, f"{type(error).__name__}: {error}", job.name)
        else:
            self.seconds.append(time.monotonic() - start)

    def _progress(self, behind: int) -> str:
        outcomes = [self.outcome(job) for job in self.jobs]
        parts = [f"{sum(outcome.summary is not None for outcome in outcomes)} of {len(self.jobs)} finished"]
        for status in (Status.FAILED, Status.NOT_APPLICABLE):
            count = sum(outcome.status == status for outcome in outcomes)
            parts += [f"{count} {status}"] if count else []
        # Side by side, no job knows how long the others will take.
        if self.seconds and not self.elsewhere:
            left = sum(outcome.status in (Status.UNFINISHED, Status.FAILED) for outcome in outcomes[behind:])
            parts.append(f"about {format_duration(left * sum(self.seconds) / len(self.seconds))} left")
        return ", ".join(parts)

    def print_table(self) -> None:
        """All jobs with their validation errors in percent (`best`: the lowest top-1), speed and time."""
        table = Table("job", "", "top-1 %", "top-5 %", "best %", "images/s", "time")
        for job in self.jobs:
            outcome = self.outcome(job)
            s = outcome.summary or {}
            errors = (s.get(key) for key in ("top1_error", "top5_error", "best_top1_error"))
            numbers = ["" if error is None else f"{error:.2f}" for error in errors]
            numbers.append(f"{s['images_per_second']:.0f}" if "images_per_second" in s else "")
            numbers.append(format_duration(s["seconds"]) if "seconds" in s else "")
            table.add_row(job.name, outcome.status, *numbers)
        print_table(table, f"runs in {self.folder}")

    def exit_status(self) -> int:
        """0 if all jobs are finished, or at least one is and the others are not applicable."""
        statuses = {self.outcome(job).status for job in self.jobs}
        if statuses & {Status.FAILED, Status.UNFINISHED, Status.DAMAGED}:
            return 1
        return 0 if statuses & {Status.FINISHED, Status.SKIPPED} else 1
