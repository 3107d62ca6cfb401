"""Processes that are the towers of a test, ended whatever happens."""

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from twotower.config import MachineConfig
from twotower.distributed.place import Place
from twotower.distributed.world import open_world


def _process(
    rank: int, size: int, timeout: float, device: str, folder: Path, body: Callable[..., Any], args: tuple
) -> None:
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        machine = MachineConfig(device=device, timeout_seconds=timeout)
        with open_world(machine, Place(rank, size, rank, size), rendezvous=str(folder / "rendezvous")) as world:
            result = body(world, *args)
        torch.save(result, folder / f"{rank}.saving")
        (folder / f"{rank}.saving").rename(folder / f"{rank}.pt")
    except BaseException:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
        raise


def run_processes(
    body: Callable[..., Any],
    folder: Path,
    *args: Any,
    size: int = 2,
    timeout: float = 30.0,
    deadline: float = 90.0,
    device: str = "cpu",
    may_be_lost: tuple[int, ...] = (),
) -> dict[int, Any]:
    """Runs body(world, *args) in `size` processes over gloo and returns what each rank returned.

    The processes give up after `timeout` seconds without an answer, and are killed after `deadline` seconds.

    Args:
        body: a function at the top level of a module.
        folder: an empty one, for the rendezvous and the results.
        may_be_lost: ranks that need not return anything; they are killed when all others have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = mp.get_context("spawn")
    arguments = [(rank, size, timeout, device, folder, body, args) for rank in range(size)]
    processes = [context.Process(target=_process, args=a, daemon=True) for a in arguments]
    awaited = [rank for rank in range(size) if rank not in may_be_lost]
    end = time.monotonic() + deadline
    try:
        for process in processes:
            process.start()
        for rank in awaited:
            processes[rank].join(max(0.0, end - time.monotonic()))
        failures = [f"rank {rank}:\n{(folder / f'{rank}.txt').read_text()}" for rank in _that_failed(folder, size)]
        assert not failures, "\n".join(failures)
        for rank in awaited:
            assert processes[rank].exitcode is not None, f"rank {rank} still runs after {deadline:g} s"
            assert processes[rank].exitcode == 0, f"rank {rank} ended with exit code {processes[rank].exitcode}"
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            if process.pid is not None:
                process.join()
    results = {rank: torch.load(folder / f"{rank}.pt", weights_only=False) for rank in awaited}
    for rank in awaited:
        (folder / f"{rank}.pt").unlink()  # a full tower is 120 MB, and pytest keeps its folders
    return results


def _that_failed(folder: Path, size: int) -> list[int]:
    return [rank for rank in range(size) if (folder / f"{rank}.txt").exists()]
