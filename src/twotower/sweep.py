"""Sweeps: each job in a folder of its own, whose name is its overrides; finished jobs are not run again."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console
from rich.table import Column, Table

from twotower.config import Config

SWEEPS = Path("sweeps")
MAX_NAME = 120  # characters; file systems stop at 255 bytes


@dataclass
class Outcome:
    """What became of one job."""

    overrides: str
    status: str  # done | skipped | failed
    run_dir: Path
    summary: dict[str, Any] | None
    error: str = ""


def _file_name(text: str) -> str:
    safe = "".join(c if c.isalnum() or c in "=,.+-_" else "_" for c in text) or "defaults"
    if len(safe) > MAX_NAME:
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        safe = f"{safe[: MAX_NAME - 9]}-{digest}"
    return safe


def _swept_keys(overrides: list[str]) -> list[str]:
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [override.key_or_group for override in parsed if override.is_sweep_override()]


def sweep_name(name: str, overrides: list[str]) -> str:
    """The name of a sweep's folder and W&B group: the run's name, the keys that have several values, and a digest of
    the other overrides, so that sweeps that differ in those keep apart.
    """
    swept = _swept_keys(overrides)
    fixed = sorted(o for o in overrides if o.split("=", 1)[0] not in swept)
    digest = [hashlib.sha256("\n".join(fixed).encode()).hexdigest()[:6]] if fixed else []
    return _file_name("-".join([name, *swept, *digest]))


def job_name(job_overrides: list[str], sweep_overrides: list[str]) -> str:
    """What sets a job apart from the others of its sweep: "ablation=no_lrn,seed=0"."""
    swept = _swept_keys(sweep_overrides)
    return ",".join(o for o in job_overrides if o.split("=", 1)[0] in swept) or "defaults"


class Sweep:
    """The jobs of one `python launch/two_gpu.py -m ...`."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.console = Console(highlight=False, soft_wrap=True)

    def run_job(
        self,
        config: Config,
        job_overrides: list[str],
        sweep_overrides: list[str],
        run: Callable[[Config], dict[str, Any]],
    ) -> None:
        """Runs one job, or finds that it is finished; a failure is noted and told, and the sweep goes on."""
        name = sweep_name(config.name, sweep_overrides)
        overrides = job_name(job_overrides, sweep_overrides)
        folder = Path(config.sweep_dir) if config.sweep_dir is not None else SWEEPS / name
        run_dir = folder / _file_name(overrides)
        self.console.rule(f"job {len(self.outcomes) + 1}: {overrides}")
        if (run_dir / "summary.json").exists():
            self.console.print(f"finished before, skipped: {run_dir}")
            summary = json.loads((run_dir / "summary.json").read_text())
            self.outcomes.append(Outcome(overrides, "skipped", run_dir, summary))
            return
        config.run_dir, config.resume = str(run_dir), "auto"
        config.logging.group = config.logging.group or name
        try:
            self.outcomes.append(Outcome(overrides, "done", run_dir, run(config)))
        except (ValueError, OSError) as error:  # ChildProcessError is an OSError
            if str(error):
                self.console.print(f"error: {error}", markup=False)
            self.outcomes.append(Outcome(overrides, "failed", run_dir, None, str(error)))

    @property
    def num_failed(self) -> int:
        return sum(outcome.status == "failed" for outcome in self.outcomes)

    def print_table(self) -> None:
        """All jobs with their validation errors in percent (`best`: the lowest top-1), speed and time."""
        table = Table(Column("job", overflow="fold"), "", "top-1 %", "top-5 %", "best %", "images/s", "minutes")
        for outcome in self.outcomes:
            s = outcome.summary
            numbers = (
                [f"{s[k]:.2f}" for k in ("top1_error", "top5_error", "best_top1_error")]
                + [f"{s['images_per_second']:.0f}", f"{s['seconds'] / 60:.1f}"]
                if s is not None
                else ["", "", "", "", ""]
            )
            table.add_row(outcome.overrides, outcome.status, *numbers)
        self.console.print(table)
        if self.outcomes:
            self.console.print(f"the runs lie in {self.outcomes[0].run_dir.parent}")
