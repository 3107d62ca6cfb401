"""All benchmarks: the input by itself, the two towers against one process, and training from each kind of input."""

from collections.abc import Callable
from typing import Any

import torch

from twotower.benchmarks.baseline import build_baseline
from twotower.benchmarks.input import benchmark_input
from twotower.benchmarks.input_files import make_files
from twotower.benchmarks.take_turns import add_medians
from twotower.benchmarks.tower_process import TOWERS
from twotower.benchmarks.towers import benchmark_towers
from twotower.config import BenchmarkConfig, check_bounds
from twotower.ground.devices import choose_device
from twotower.ground.precision import check_precision
from twotower.ground.processes import cores
from twotower.ground.scratch import scratch_folder
from twotower.model.layer_table import plan


def benchmark(settings: BenchmarkConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs all rounds. Returns the content of benchmark.json: per round and medians, units in the names.

    Raises: ValueError for a part that is not known, or a folder that cannot be used.
    """
    check_bounds(settings)
    plan(settings.network, settings.num_classes)
    if settings.network.towers != TOWERS and settings.part != "input":
        raise ValueError(
            f"network={settings.network.name} is one tower, and there is nothing to compare it with; choose a "
            "network of two towers, or part=input."
        )
    for precision in settings.precisions:
        check_precision(precision, choose_device(settings.machine.device), "precisions")
    if settings.part in ("all", "towers"):
        with torch.device("meta"):
            build_baseline(settings.network, settings.num_classes)
    results: dict[str, Any] = {"cores": cores()}
    with scratch_folder() as scratch:
        needs_files = settings.part in ("all", "input", "training")
        files = make_files(settings, scratch, say) if needs_files else {}
        if settings.part in ("all", "input"):
            results["input"] = add_medians(benchmark_input(settings, files, say))
        if settings.part in ("all", "towers", "batches", "replicas", "training"):
            results |= benchmark_towers(settings, files, scratch, say)
    return results
