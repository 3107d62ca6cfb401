"""A long training: does it need more memory, descriptors or threads at its end than at its beginning?

Both towers of a small network are trained with frequent checkpoints and validations until the time is over. After the
first fifth, in which libraries allocate what they keep, and at the end each process is measured; a growth beyond what
`MOST_GROWTH` allows is a failure. Then the run is stopped politely, and must end at once.

    python -m campaigns.soak --count 60 --seed 0      in the folder tests/; the count is minutes
"""

import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from campaigns import FAILURES, Say, run_alone
from helpers.commands import draw_images, events
from helpers.marked import TRAINING, Marked
from twotower.runs import checkpoint

SHORT, FULL = 1, 120
START_SECONDS = 600.0
MINUTE = 60.0
EVERY_SECONDS = 5.0  # between measurements, of which the highest of a fifth counts
END_SECONDS = 30.0


@dataclass(frozen=True)
class Measured:
    """What one process holds."""

    megabytes: float
    descriptors: float
    threads: float


MOST_GROWTH = Measured(megabytes=40, descriptors=2, threads=2)


def measure(pid: int) -> Measured:
    """Raises: ProcessLookupError if the process has ended, OSError."""
    folder = Path("/proc") / str(pid)
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    if "VmRSS" not in status:
        raise ProcessLookupError(f"process {pid} has ended")
    descriptors = len(list((folder / "fd").iterdir()))
    return Measured(int(status["VmRSS"].split()[0]) / 1024, descriptors, int(status["Threads"]))


def _highest(samples: list[Measured]) -> Measured:
    return Measured(*(max(values) for values in zip(*map(astuple, samples), strict=True)))


def run(count: int, seed: int, say: Say) -> dict[str, int]:
    """Trains for `count` minutes. Returns steps, checkpoints that are whole, and failures."""
    root = Path(tempfile.mkdtemp(prefix="campaign-soak-"))
    images = draw_images(root / "images")
    settings = [part for part in TRAINING if not part.startswith(("schedule.", "checkpoint.", "optim.l"))]
    command = Marked(
        (
            "two_gpu.py",
            *settings,
            f"data.root={images}",
            f"seed={seed}",
            "optim.learning_rate=0.000001",  # 26 images again and again would else drive the loss to infinity
            "logging=no_wandb",
            "run_dir=run",
            "schedule.epochs=1000000",
            "schedule.drop_epochs=[]",
            "checkpoint.every_steps=20",
            "logging.every_steps=5",
        ),
        root,
    )
    failures: list[str] = []
    try:
        if not command.wait_until(lambda: any(root.glob("run/checkpoints/step-*")), START_SECONDS):
            raise RuntimeError(f"it has not begun: {command.said()[-2000:]}")
        names = {command.process.pid: "launcher"} | {pid: f"tower {i}" for i, pid in enumerate(command.towers())}
        samples: dict[int, list[Measured]] = {pid: [] for pid in names}
        end = time.monotonic() + MINUTE * count
        while time.monotonic() < end and command.process.poll() is None:
            for pid in names:
                with suppress(OSError):
                    samples[pid].append(measure(pid))
            time.sleep(EVERY_SECONDS)
        if command.process.poll() is not None:
            failures.append(f"it has ended by itself: {command.said()[-2000:]}")
        for pid, name in names.items():
            fifth = max(1, len(samples[pid]) // 5)
            before, after = _highest(samples[pid][fifth : 2 * fifth] or samples[pid]), _highest(samples[pid][-fifth:])
            for field in fields(Measured):
                first, last = getattr(before, field.name), getattr(after, field.name)
                say(f"{name}: {field.name} {first:.0f} in the second fifth, {last:.0f} in the last")
                if last - first > getattr(MOST_GROWTH, field.name):
                    failures.append(f"{name}: {field.name} grew from {first:.0f} to {last:.0f}")
        command.process.send_signal(signal.SIGTERM)
        if command.wait(END_SECONDS) is None or command.left_after(END_SECONDS):
            failures.append("it does not end after SIGTERM")
        if "Traceback" in command.said():
            failures.append("a traceback")
        found = events(root / "run")
        folder = root / "run" / "checkpoints"
        steps = checkpoint.checkpoint_steps(folder)
        for step in steps:
            checkpoint.verify_checkpoint(checkpoint.place(folder, step))
    finally:
        command.end()
        shutil.rmtree(root, ignore_errors=True)
    for failure in failures:
        say(f"FAILED {failure}")
    return {
        FAILURES: len(failures),
        "minutes": count,
        "steps": max((event["step"] for event in found), default=0),
        "validations": sum(event["event"] == "validation" for event in found),
        "whole checkpoints at the end": len(steps),
    }


if __name__ == "__main__":
    sys.exit(run_alone("soak", run, FULL))
