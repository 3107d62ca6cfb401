"""The peaks of memory of processes that train: the two towers, and the network in one piece as torch has it."""

import tempfile
from pathlib import Path

from twotower.benchmarks.single_process import Variant, run_single_process
from twotower.benchmarks.take_turns import Contestant
from twotower.benchmarks.tower_process import TOWERS, run_tower
from twotower.config import BenchmarkConfig, MachineConfig, MemoryConfig, OptimConfig
from twotower.distributed.place import stay_on_this_host, threads_per_process
from twotower.ground.processes import cores

PLAIN = "one process, the network as torch's own layers have it"


def measure_peaks(settings: MemoryConfig) -> dict[str, float]:
    """MiB at the peak of two steps on random images, on the CPU, by what was measured.

    The libraries of a process count, too; what they take before there is a network stands beside.

    Raises: ValueError for a network that is not of two towers.
    """
    if settings.network.towers != TOWERS:
        raise ValueError(
            f"network={settings.network.name} is one tower, and measure=true compares two with one process; leave it "
            "out."
        )
    machine = MachineConfig(device="cpu", precision=settings.precision, fused_steps=settings.fused_steps)
    optim = OptimConfig(batch_size=settings.batch_size)
    steps = BenchmarkConfig(
        settings.network, settings.input, optim, machine, steps=1, num_classes=settings.num_classes
    )
    stay_on_this_host()
    with tempfile.TemporaryDirectory(prefix="twotower-", ignore_cleanup_errors=True) as scratch:
        rendezvous = str(Path(scratch) / "rendezvous")
        towers = Contestant(
            run_tower,
            [(rank, TOWERS, steps, {}, rendezvous) for rank in range(TOWERS)],
            threads_per_process(machine, TOWERS),
        )
        try:
            turns = towers.turn("synthetic")
        finally:
            towers.end()
        plain = Contestant(run_single_process, [(steps, Variant(settings.precision))], cores())
        try:
            whole = plain.turn("synthetic")[0]
        finally:
            plain.end()
    return {
        "a tower, before there is a network": max(turn.before_megabytes for turn in turns),
        "a tower": max(turn.peak_megabytes for turn in turns),
        PLAIN: whole.peak_megabytes,
    }
