"""Records a run, on rank 0 alone: metrics.jsonl (the source of truth), its mirrors, the screen.

metrics.jsonl has one JSON object a line, flushed at once:
    {"event": "train", "step": 120, "epoch": 4.0, "loss": ..., "top1_error": ..., "top5_error": ...,
     "images_per_second": ..., "exchange_wait_ms": ..., "exchange_bytes": ..., "input_wait_ms": ...,
     "learning_rate": ...}
Errors are in percent, losses in nats, wait and bytes are means per step of tower 0 in one direction; `step` counts
finished updates. `validation` comes after each epoch. `scales` has "tower0/conv1/weight", ".../update" and
".../output", the mean absolute values of a layer, and "tower0/conv1/colour", its kernels' colour selectivity.
`memory` has "tower0" and "tower1", the peaks in MiB so far (of a GPU what torch used, else of the process);
`rates` has each layer's learning rates where they change in a recorded schedule; `notice` has a text. W&B and
TensorBoard get the same values as train/loss, validation/top1_error, scales/tower0/conv1/weight ...: see
`mirrors/metric_names.py`.
"""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from twotower.config import Config
from twotower.data.dataset import MEAN_IMAGE
from twotower.data.photographs import is_picture
from twotower.ground.files import Lines, write_json, write_text
from twotower.ground.progress import Meter
from twotower.ground.screen import print_table
from twotower.ground.versions import read_versions
from twotower.ground.wording import counted, format_duration, on_lines
from twotower.runs.events import cut_back
from twotower.runs.mirrors.mirror import Mirrors
from twotower.runs.mirrors.open_mirrors import open_mirrors

METRICS = "metrics.jsonl"


class FolderGoneError(OSError):
    """The run's folder, or a file in it that the run needs later, is not there any more, or is another one."""

    @staticmethod
    def of(run_dir: Path, lost: str) -> "FolderGoneError":
        """The sentence; `lost` is what is missing there."""
        return FolderGoneError(
            f"{lost} in run_dir={run_dir} was removed or replaced while the run was training, so it stops here; "
            "nothing more is written there. Start it again, with another run_dir=DIR if something else has taken its "
            "place."
        )


class SilentJournal:
    """The journal of a process that records nothing, because rank 0 does it for all."""

    mirrors = Mirrors()

    def check_folder(self) -> None:
        """There is nothing to look at."""

    def event(self, event: str, step: int, **values: Any) -> None:
        """Nothing is written."""

    def show_training(self, step: int, values: dict[str, float]) -> None:
        """Nothing is shown."""

    def say(self, line: str) -> None:
        """Nothing is printed."""

    def finish(self, step: int, summary: dict[str, Any]) -> None:
        """Nothing is written."""

    def close(self, exit_code: int) -> None:
        """There is nothing to close."""


class Journal(SilentJournal):
    """Opened once by rank 0, closed in every case."""

    def __init__(
        self, config: Config, run_dir: Path, first_step: int, total_steps: int, picture: Path | None = None
    ) -> None:
        self.config, self.run_dir = config, run_dir
        self.console = Console(highlight=False, soft_wrap=True)
        write_text(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))
        versions = {**read_versions(), "precision": config.machine.precision}
        write_json(run_dir / "versions.json", versions)
        if first_step:
            cut_back(run_dir / METRICS, first_step)
        self._file = Lines(run_dir / METRICS, append=first_step > 0)
        self._begun_with = {path.name for path in run_dir.iterdir()}
        self.mirrors = open_mirrors(config, run_dir, versions, first_step, self.say)
        if picture is not None and not first_step and is_picture(picture):
            self.mirrors.picture(picture)
        self._meter = Meter("training", total_steps, "steps", done=first_step, console=self.console)

    def check_folder(self) -> None:
        """Raises: FolderGoneError if the run's folder, or a file in it that the run needs later, was removed."""
        lost = [name for name in ("config.yaml", MEAN_IMAGE) if name in self._begun_with]
        lost = [name for name in lost if not (self.run_dir / name).exists()]
        if not self._file.is_at_its_path():
            lost.insert(0, METRICS)
        if lost:
            raise FolderGoneError.of(self.run_dir, ", ".join(lost))

    def event(self, event: str, step: int, **values: Any) -> None:
        """Appends one line to metrics.jsonl and mirrors its numbers."""
        self._file.write(json.dumps({"event": event, "step": step, **values}))
        self.mirrors.event(event, step, values)

    def show_training(self, step: int, values: dict[str, float]) -> None:
        """Moves the progress bar, or prints a line every ten seconds where there is no terminal."""
        text = (
            f"loss {values['loss']:.3f}, top-1 error {values['top1_error']:.1f} %, "
            f"top-5 error {values['top5_error']:.1f} %, "
            f"{values['images_per_second']:.0f} images/s"
        )
        self._meter.reach(step, text)

    def say(self, line: str) -> None:
        """Prints a line that stays, above the progress bar."""
        self.console.print(on_lines(line), markup=False)

    def finish(self, step: int, summary: dict[str, Any]) -> None:
        """Writes summary.json and prints the last table."""
        self.event("end", step, **summary)
        write_json(self.run_dir / "summary.json", summary)
        self.mirrors.summary(step, {key: value for key, value in summary.items() if not isinstance(value, str)})
        self._meter.close()
        table = Table("", "final", "best")
        for key, name in (("top1_error", "top-1 error, %"), ("top5_error", "top-5 error, %")):
            table.add_row(name, f"{summary[key]:.2f}", f"{summary['best_' + key]:.2f}")
        print_table(table)
        spent = ""
        if "energy" in summary:
            spent = f"{format_duration(3600 * summary['hours'])} in all; energy: {summary['energy']}\n"
        self.say(
            f"{counted(summary['steps'], 'step')} in {format_duration(summary['seconds'])}, "
            f"{summary['images_per_second']:.0f} images/s while training\n"
            f"{spent}metrics, summary and checkpoints: {self.run_dir}"
        )

    def close(self, exit_code: int) -> None:
        """Ends mirrors and files, also after an error."""
        self._meter.close()
        self._file.close()
        self.mirrors.close(exit_code)
