"""A tower that dies, stalls or loses its parent takes the other one with it in time, whatever that one does then."""

import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.commands import DEADLINE, NO_WANDB, events
from helpers.marked import TRAINING, Marked

GONE_SECONDS = 5.0  # from the death of one until the last process of the run is gone
SILENT_SECONDS = 4  # machine.timeout_seconds where a tower is stopped
TRIES = 2  # another program may keep a process from ending in time once, and does not do it twice
KILLED, STARTING, STALLED, PARENT = "killed", "killed while the other one starts", "stalled", "parent killed"


@dataclass(frozen=True)
class Ending:
    """How a run ended: the seconds from the death to the end of its last process, its exit status, what it said."""

    seconds: float
    status: int | None
    said: str


def trains(folder: Path) -> bool:
    return (folder / "run" / "metrics.jsonl").exists() and bool(events(folder / "run"))


def hears_stops(pid: int) -> bool:
    """Whether it has imported torch and goes to meet the others: the kernel's word on its handler of SIGTERM."""
    caught = re.search(r"(?m)^SigCgt:\s*(\w+)", (Path("/proc") / str(pid) / "status").read_text())
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def end_one(images: Path, folder: Path, how: str, torchrun: int) -> Ending:
    folder.mkdir()
    arguments = ("two_gpu.py", *TRAINING, *NO_WANDB, f"data.root={images}", "schedule.epochs=100000", "run_dir=run")
    patience = SILENT_SECONDS if how == STALLED else DEADLINE  # so that no other case ends by it
    run = Marked((*arguments, f"machine.timeout_seconds={patience}"), folder, torchrun)
    try:
        assert run.wait_until(lambda: len(run.towers()) == 2, DEADLINE), run.said()
        first, second = run.towers()
        if how == STARTING:
            os.kill(second, signal.SIGSTOP)  # so that the first one waits for it within torch
            assert run.wait_until(lambda: hears_stops(first), DEADLINE), run.said()
            time.sleep(0.5)
        else:
            assert run.wait_until(lambda: trains(folder), DEADLINE), run.said()
        began = time.monotonic()
        if how == PARENT:
            run.process.kill()
        else:
            os.kill(second, signal.SIGSTOP if how == STALLED else signal.SIGKILL)
        left = run.left_after(DEADLINE)
        seconds = time.monotonic() - began
        assert not left, f"{left} stay behind: {run.said()}"
        return Ending(seconds, run.wait(0), run.said())
    finally:
        run.end()


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.parametrize("torchrun", [0, 2])
@pytest.mark.parametrize("how", [KILLED, STARTING, STALLED, PARENT])
def test_a_lost_tower_stops_the_other_in_time_and_leaves_no_orphans(
    images: Path, tmp_path: Path, how: str, torchrun: int
) -> None:
    most = GONE_SECONDS + (SILENT_SECONDS if how == STALLED else 0)
    for number in range(TRIES):
        ending = end_one(images, tmp_path / str(number), how, torchrun)
        print(f"{how}, {'torchrun' if torchrun else 'python'}: all gone after {ending.seconds:.1f} s")
        if ending.seconds <= most:
            break
    assert ending.seconds <= most
    assert ending.status != 0
    if how == KILLED and not torchrun:
        assert "Tower 1 " in ending.said or "tower 1:" in ending.said, ending.said
    if how == STALLED:
        assert "lost tower" in ending.said, ending.said
        assert f"nothing came from it for {SILENT_SECONDS} s" in ending.said, ending.said
    if how != PARENT and not (how == STARTING and torchrun):
        assert "resume=auto" in ending.said, ending.said
        assert "Terminating process" not in ending.said, "torch's word on the other tower"
