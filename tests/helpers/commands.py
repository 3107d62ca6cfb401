"""Commands in processes of their own, and a folder of tiny images to run them on."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from helpers.paths import ROOT

DEADLINE = 120  # seconds, for one command; far above what it takes

# A network of 1/16 of the width on tiny images: a second a run, apart from starting Python.
SMALL = (
    "data=folder",
    "network.width=0.0625",
    "optim.batch_size=8",
    "optim.learning_rate=0.01",
    "schedule=fixed",
    "schedule.epochs=3",
    "schedule.drop_epochs=[2]",
    "logging.every_steps=2",
    "machine.timeout_seconds=30",
    "machine.threads=1",
    "machine.device=cpu",
)
NO_WANDB = ("logging=no_wandb", "logging.every_steps=2")


def draw_images(root: Path) -> Path:
    """26 + 7 noisy images of three colours."""
    stream = np.random.default_rng(0)
    for split, count in (("train", 26), ("val", 7)):
        for i in range(count):
            label = i % 3
            pixels = stream.integers(0, 120, (40 + i, 50, 3))
            pixels[..., label] += 120
            path = root / split / ["red", "green", "blue"][label] / f"{i:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


def environment() -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "OMP_", "TORCHELASTIC", "GLOO"))}
    return clean | {"WANDB_SILENT": "true", "COLUMNS": "200"}


def command(
    *arguments: str,
    cwd: Path,
    torchrun: int = 0,
    options: Sequence[str] = (),
    script: str = "two_gpu.py",
    variables: Mapping[str, str] = MappingProxyType({}),
    largest_file: int | None = None,
) -> subprocess.Popen[str]:
    """Starts a command of launch/, by torchrun if that starts processes.

    Args:
        options: of torchrun.
        largest_file: limit on the size of each file that it writes, in bytes; not on Windows.
    """
    python = [sys.executable]
    if torchrun:
        python += ["-m", "torch.distributed.run", f"--nproc-per-node={torchrun}", *options]
    return subprocess.Popen(
        [*python, str(ROOT / "launch" / script), *arguments],
        cwd=cwd,
        env=environment() | dict(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=None if largest_file is None else lambda: limit_files(largest_file),
    )


def limit_files(largest: int) -> None:
    """Lets this process and its children write no file that is larger, as on a disk that is full."""
    import resource  # Windows has none

    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))


def find_children(pid: int, words: bytes) -> list[int]:
    """The processes that a process has started, with `words` in their command line; Linux only."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            text = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == pid and words in text:
            found.append(int(entry.name))
    return sorted(found)


def finish(process: subprocess.Popen[str], seconds: float = DEADLINE) -> tuple[int, str]:
    """Exit status and output; the whole process group is killed after so many seconds."""
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


def train(images: Path, cwd: Path, *overrides: str, torchrun: int = 0) -> tuple[int, str]:
    return finish(command(*SMALL, f"data.root={images}", *NO_WANDB, *overrides, cwd=cwd, torchrun=torchrun))


def events(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def numbers(run_dir: Path) -> list[dict[str, Any]]:
    """The events without what a clock or the machine's memory has a part in."""
    timed = ("images_per_second", "exchange_wait_ms", "input_wait_ms", "seconds")
    timed += ("hours", "watt_hours_cpu", "watt_hours_gpu", "energy")
    lasting = [event for event in events(run_dir) if event["event"] != "memory"]
    return [{k: v for k, v in event.items() if k not in timed} for event in lasting]
