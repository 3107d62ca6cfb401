"""Makes prepared sets in this process or by the command, and compares their images with Pillow's."""

import contextlib
import io
import os
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from helpers.archives import prepare_here
from helpers.paths import ROOT
from twotower.config import SourceConfig
from twotower.data.dataset import DataSet
from twotower.data.prepared_set import load_prepared

SIZE = 64


def made(source: SourceConfig, output: Path, **options: Any) -> DataSet:
    prepare_here(source, output, **{"size": SIZE, "quality": 100, **options})
    return load_prepared(output)


def stored(dataset: DataSet, split: str = "train") -> dict[str, tuple[str, NDArray[np.uint8]]]:
    """Class and pixels of each image by its name in the shard, decoded by Pillow."""
    part = getattr(dataset, split)
    found = {}
    for i, label in enumerate(part.labels):
        image = np.asarray(opened(part.read(i).tobytes()))
        found[part.name(i).rpartition("/")[2]] = (dataset.classes[label], image)
    assert len(found) == len(part)
    return found


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def pillow_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The oracle: the centre square and the triangle filter by Pillow, which share no code with the package."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    part = image.convert("RGB").crop((left, top, left + side, top + side))
    return np.asarray(part.resize((size, size), Image.Resampling.BILINEAR))


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


class Command:
    """launch/prepare_data.py in a session of its own, with a mark in its environment that finds all its processes."""

    def __init__(self, *overrides: str, folder: Path, largest_file: int = resource.RLIM_INFINITY) -> None:
        self.mark = f"PREPARE_SET_TEST={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "launch" / "prepare_data.py"), *overrides],
            cwd=folder,
            env={**os.environ, name: value, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file)),
        )

    def finish(self, timeout: float = 60) -> tuple[int, str, str]:
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        return self.process.returncode, out, err

    def processes(self) -> dict[int, str]:
        """Number and command line of each of its processes."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (path / "environ").read_bytes().split(b"\0"):
                    found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def wait_for(self, ready: Callable[[], bool], timeout: float = 60) -> None:
        """Waits until it is ready, or has ended."""
        end = time.monotonic() + timeout
        while self.process.poll() is None and not ready():
            assert time.monotonic() < end, "waited too long"
            time.sleep(0.002)

    def kill(self) -> None:
        """Kills the first process alone, and waits until the others have ended by themselves."""
        self.process.kill()
        self.process.communicate(timeout=30)
        end = time.monotonic() + 30
        while left := self.processes():
            assert time.monotonic() < end, f"outlived the one that was killed: {left}"
            time.sleep(0.02)


def overrides_of(source: SourceConfig, output: Path, *more: str) -> list[str]:
    names = [f"source.{key}={getattr(source, key)}" for key in ("root", "train", "val", "devkit")]
    counts = [f"source.expected.{split}={count}" for split, count in source.expected.items()]
    return ["source=ilsvrc2012", f"output={output}", *names, *counts, "size=64", "images_per_shard=2", *more]
