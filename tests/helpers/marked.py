"""Commands whose processes are all found again, whoever their parent is, and what a run must look like in the end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from uuid import uuid4

from safetensors import safe_open

from helpers.commands import environment, limit_files, numbers
from helpers.paths import ROOT
from twotower.runs import checkpoint

MARK = "TWOTOWER_CAMPAIGN"

# A network of 1/16 of the width on tiny images, and a checkpoint after each of its nine steps.
TRAINING = (
    "data=folder",
    "network.width=0.0625",
    "optim.batch_size=8",
    "optim.learning_rate=0.01",
    "schedule=fixed",
    "schedule.epochs=3",
    "schedule.drop_epochs=[2]",
    "logging.every_steps=2",
    "checkpoint.every_steps=1",
    "machine.threads=1",
    "machine.device=cpu",
)


def _begin(largest_file: int | None) -> None:
    """In the new process: it hears SIGHUP, also where the campaign itself was started by nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if largest_file is not None:
        limit_files(largest_file)


class Marked:
    """A command of launch/ in a session of its own, with a mark in the environment of all its processes.

    Args:
        arguments: the script's name and its arguments.
        folder: where it runs; its temporary folder is `folder`/tmp.
        torchrun: processes that torchrun starts, with `options` of torchrun; 0: python starts the script.
        largest_file: limit on the size of a file, in bytes.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        torchrun: int = 0,
        options: Sequence[str] = (),
        largest_file: int | None = None,
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.mark, self.torchrun = uuid4().hex, torchrun
        (folder / "tmp").mkdir(exist_ok=True)
        python = [sys.executable]
        if torchrun:
            python += ["-m", "torch.distributed.run", f"--nproc-per-node={torchrun}", *options]
        script, *rest = arguments
        self.output = folder / f"output-{self.mark}.txt"
        own = {MARK: self.mark, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
        with self.output.open("wb") as file:
            # A file and no pipe: whoever outlives the command must not keep its end from being seen.
            self.process = subprocess.Popen(
                [*python, str(ROOT / "launch" / script), *rest],
                cwd=folder,
                env=environment() | own | dict(variables),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: _begin(largest_file),
            )

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def processes(self) -> dict[int, str]:
        """Number and command line of each of its processes that has not ended."""
        return find_marked(self.mark)

    def towers(self) -> list[int]:
        """Its towers' processes, or the workers of a preparation, whoever has started them."""
        lines = self.processes().items()
        if not self.torchrun:
            return sorted(pid for pid, line in lines if "spawn_main" in line)
        # A process that was just forked has its parent's command line still, and is no tower.
        return sorted(pid for pid, line in lines if "two_gpu.py" in line and self._parent(pid) == self.process.pid)

    def _parent(self, pid: int) -> int | None:
        with suppress(OSError):
            return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        return None

    def wait(self, seconds: float) -> int | None:
        """Its exit status; None if it still runs after so long."""
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        return None

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Whether it was ready before it ended, and in time."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            if ready():
                return True
            time.sleep(0.002)
        return False

    def left_after(self, seconds: float) -> dict[int, str]:
        """Its processes that are there after so many seconds; returns as soon as there are none."""
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left

    def end(self) -> None:
        """Kills all that is left of it."""
        for pid in self.processes():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def find_marked(mark: str) -> dict[int, str]:
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in (path / "environ").read_bytes().split(b"\0"):
                line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if line:  # a process that has ended and was not waited for has none
                    found[int(path.name)] = line
    return found


def read_tensors(path: Path) -> dict[str, bytes]:
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118  # it is no mapping


def result_of(run_dir: Path) -> dict[str, object]:
    """What two runs have alike if they are the same bit for bit: weights, velocities, steps and all events."""
    found: dict[str, object] = {"events": numbers(run_dir)}
    path = checkpoint.find(run_dir)
    found["step"] = checkpoint.verify_checkpoint(path).step
    for file in sorted(path.glob("*.safetensors")):
        found[file.name] = read_tensors(file)
    return found


def find_debris(*folders: Path) -> list[str]:
    """What only a killed process leaves: half-written files, and folders of its own in the temporary folder."""
    patterns = (".*.pending", "pending-*", "twotower-*")
    return sorted(str(path) for folder in folders for pattern in patterns for path in folder.rglob(pattern))


def is_running(process_id: int) -> bool:
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
