"""Contestants of a benchmark: processes that stay alive and take turns, so that a slow minute hits all of them."""

import multiprocessing as mp
import os
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch


@dataclass(frozen=True)
class Turn:
    """The times of one process in its turn.

    Attributes:
        user_seconds, kernel_seconds: of processor time that a step takes, in this process.
        wait_ms: milliseconds of each step that the tower waits for the other one.
        parts_ms: milliseconds of each part of a step.
        peak_megabytes, before_megabytes: of memory, in MiB; before there was a network.
        series: input -> seconds of each step.
        problem: why the contestant cannot run here; empty if it can.
    """

    seconds_per_step: float
    user_seconds: float = 0.0
    kernel_seconds: float = 0.0
    wait_ms: float = 0.0
    parts_ms: dict[str, float] | None = None
    peak_megabytes: float = 0.0
    before_megabytes: float = 0.0
    series: dict[str, list[float]] | None = None
    problem: str = ""


@dataclass(frozen=True)
class Timed:
    """The mean of several steps, in seconds: by the clock, and of the processor in the program and in the kernel."""

    seconds: float
    user_seconds: float = 0.0
    kernel_seconds: float = 0.0

    def turn(self, **others: Any) -> Turn:
        """The same as a `Turn`."""
        return Turn(self.seconds, self.user_seconds, self.kernel_seconds, **others)


def add_medians(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """The rounds with the median of each of their numbers."""
    return {"medians": {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}, "rounds": rounds}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


GPU_STEPS = 50  # fewer are over in milliseconds there, which is noise


def count_steps(device: torch.device, steps: int) -> int:
    """The steps of a turn: as many as the settings say, on a GPU at least GPU_STEPS."""
    return max(steps, GPU_STEPS) if device.type == "cuda" else steps


def time_steps(device: torch.device, steps: int, step: Callable[[], object]) -> Timed:
    """One step, the mean over `steps`."""
    synchronize(device)
    before, began = os.times(), time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(device)
    seconds, after = time.perf_counter() - began, os.times()
    return Timed(seconds / steps, (after.user - before.user) / steps, (after.system - before.system) / steps)


class Contestant:
    """Processes that take their turns together."""

    def __init__(
        self, target: Callable[..., None], arguments: list[tuple[Any, ...]], threads: int, daemon: bool = True
    ) -> None:
        context = mp.get_context("spawn")
        # The child reads it when it imports torch.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self.pipes: list[Connection] = []
        self.processes = []
        for own_arguments in arguments:
            ours, theirs = context.Pipe()
            process = context.Process(target=run_guarded, args=(target, *own_arguments, theirs), daemon=daemon)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def turn(self, request: str) -> list[Turn]:
        """The answers of all processes. Raises: ChildProcessError if one has ended."""
        try:
            for pipe in self.pipes:
                pipe.send(request)
            return [pipe.recv() for pipe in self.pipes]
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise ChildProcessError(self._explain_end()) from error

    def _explain_end(self) -> str:
        """Why a process is gone, as far as its exit status tells."""
        for number, process in enumerate(self.processes):
            process.join(timeout=1)
            if process.exitcode is not None and process.exitcode < 0:
                name = signal.Signals(-process.exitcode).name
                kernel = ", as the system does when memory runs out" if name == "SIGKILL" else ""
                return f"process {number} of {len(self.processes)} was ended by {name}{kernel}"
        return "a process has ended; its error is printed above"

    def end(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            with suppress(BrokenPipeError, ConnectionResetError):  # it has ended already
                pipe.send("end")
            process.join(timeout=20)
            if process.is_alive():
                process.kill()


def run_guarded(target: Callable[..., None], *arguments: Any) -> None:
    # Ctrl-C goes to all processes of a terminal; the one that started these ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        target(*arguments)
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
