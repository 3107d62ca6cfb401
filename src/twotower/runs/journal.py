"""What a run leaves behind, written by rank 0 alone: metrics.jsonl (the source of truth), its mirrors, the screen.

metrics.jsonl has one JSON object a line, flushed at once:
    {"event": "train", "step": 120, "epoch": 4.0, "loss": ..., "top1_error": ..., "top5_error": ...,
     "images_per_second": ..., "exchange_wait_ms": ..., "exchange_bytes": ..., "input_wait_ms": ...,
     "learning_rate": ...}
Errors are in percent, losses in nats, wait and bytes are means per step of tower 0 in one direction; `step` counts
finished updates. `validation` comes after each epoch. `scales` has "tower0/conv1/weight", ".../update" and
".../output", the mean absolute values of a layer, and "tower0/conv1/colour", its kernels' colour selectivity.
`memory` has "tower0" and "tower1", the peaks in MiB so far (of a GPU what torch used, else of the process);
`rates` has each layer's learning rates where they change in a recorded schedule; `notice` has a text. W&B and
TensorBoard get the same values as train/loss, validation/top1_error, scales/tower0/conv1/weight ...: see `mirror`.
"""

import json
import time
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from twotower.config import Config
from twotower.ground.files import write_json, write_whole
from twotower.ground.screen import print_table
from twotower.ground.versions import versions
from twotower.ground.words import counted
from twotower.runs.events import cut_back
from twotower.runs.mirrors.mirror import open_mirror

PLAIN_LINE_SECONDS = 10.0  # at most one plain line in so many seconds where there is no terminal


class Journal:
    """Opened once by rank 0, closed in every case."""

    def __init__(
        self, config: Config, run_dir: Path, first_step: int, total_steps: int, picture: Path | None = None
    ) -> None:
        self.config, self.run_dir = config, run_dir
        self.console = Console(highlight=False, soft_wrap=True)
        write_whole(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)).encode())
        found = versions()
        write_json(run_dir / "versions.json", found)
        if first_step:
            cut_back(run_dir / "metrics.jsonl", first_step)
        self._file = (run_dir / "metrics.jsonl").open("a" if first_step else "w")
        self._progress: Progress | None = None
        self.mirror = open_mirror(config, run_dir, found, first_step, self.say)  # None: it has none
        if self.mirror is not None and picture is not None and not first_step:
            self.mirror.picture(picture)
        self._last_plain_line = 0.0
        self._measured_from: tuple[int, float] | None = None  # the step and the time of the first line
        self._task: TaskID | None = None
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[values]}"))
            self._progress = Progress(*columns, TimeRemainingColumn(), TextColumn("left"), console=self.console)
            self._task = self._progress.add_task("step 0", total=total_steps, completed=first_step, values="")
            self._progress.start()
        self.total_steps = total_steps

    def event(self, event: str, step: int, **values: Any) -> None:
        """Appends one line to metrics.jsonl and mirrors its numbers."""
        self._file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
        self._file.flush()
        if self.mirror is not None:
            self.mirror.event(event, step, values)

    def show_training(self, step: int, values: dict[str, float]) -> None:
        """Moves the progress bar, or prints a plain line now and then."""
        text = (
            f"loss {values['loss']:.3f}  top-1 {values['top1_error']:.1f} %  top-5 {values['top5_error']:.1f} %  "
            f"{values['images_per_second']:.0f} images/s"
        )
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step, description=f"step {step}", values=text)
            return
        now = time.monotonic()
        if now - self._last_plain_line >= PLAIN_LINE_SECONDS:
            self.say(f"step {step}/{self.total_steps}  {text}{self._left(step, now)}")
            self._last_plain_line = now
        if self._measured_from is None:
            self._measured_from = (step, now)

    def _left(self, step: int, now: float) -> str:
        """How long the rest will take at the pace so far, validation and checkpoints included.

        Nothing before that is known: the first line's steps also filled buffers and caches, so they are not in it.
        """
        if self._measured_from is None or step == self.total_steps:
            return ""
        first, began = self._measured_from
        return f"  {_minutes((self.total_steps - step) * (now - began) / (step - first))} left"

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        (self._progress.console if self._progress else self.console).print(line, markup=False)

    def finish(self, step: int, summary: dict[str, Any]) -> None:
        """Writes summary.json and prints the last table."""
        self.event("end", step, **summary)
        write_json(self.run_dir / "summary.json", summary)
        if self.mirror is not None:
            self.mirror.summary(step, summary)
        self._stop_progress()
        table = Table("", "final", "best")
        for key, name in (("top1_error", "top-1 error, %"), ("top5_error", "top-5 error, %")):
            table.add_row(name, f"{summary[key]:.2f}", f"{summary['best_' + key]:.2f}")
        print_table(table)
        self.say(
            f"{counted(summary['steps'], 'step')} in {_minutes(summary['seconds'])}, "
            f"{summary['images_per_second']:.0f} images/s while training\n"
            f"metrics, summary and checkpoints: {self.run_dir}"
        )

    def _stop_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def close(self, exit_code: int) -> None:
        """Ends mirrors and files, also after an error."""
        self._stop_progress()
        self._file.close()
        if self.mirror is not None:
            self.mirror.close(exit_code)
            self.mirror = None


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
