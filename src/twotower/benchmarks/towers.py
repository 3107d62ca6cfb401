"""The two towers in two processes against one process, and training from several inputs.

All contestants stay alive and take turns in each round, so that a slow minute of the machine hits all of them;
ratios are taken within a round, and medians over the rounds.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from twotower.benchmarks.single_process import run_single_process
from twotower.benchmarks.take_turns import Contestant, add_medians
from twotower.benchmarks.tower_process import TOWERS, run_tower
from twotower.config import BenchmarkConfig, DataConfig
from twotower.distributed.place import stay_on_this_host, threads_per_process
from twotower.ground.processes import cores


def benchmark_towers(
    settings: BenchmarkConfig, files: dict[str, DataConfig], scratch: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Rounds and medians of the parts that settings.part asks for: towers, parts_ms, training."""
    stay_on_this_host()
    towers = Contestant(
        run_tower,
        [(t, settings, files, str(scratch / "rendezvous")) for t in range(TOWERS)],
        threads_per_process(settings.machine, TOWERS),
    )
    formats = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
    singles = {
        name: Contestant(run_single_process, [(settings, memory_format)], cores())
        for name, memory_format in (formats.items() if settings.part != "training" else ())
    }
    results: dict[str, Any] = {}
    try:
        if settings.part != "training":
            rounds = [_run_round(towers, singles, settings, number, say) for number in range(settings.rounds)]
            results = {"towers": add_medians(rounds), "parts_ms": towers.turn("parts")[0].parts_ms}
        if settings.part != "towers":
            rounds = [_run_training_round(towers, settings, number, say) for number in range(settings.rounds)]
            results["training"] = add_medians(rounds)
    finally:
        for contestant in (towers, *singles.values()):
            contestant.end()
    return results


def _run_round(
    towers: Contestant,
    singles: dict[str, Contestant],
    settings: BenchmarkConfig,
    number: int,
    say: Callable[[str], None],
) -> dict[str, float]:
    batch = settings.optim.batch_size
    pair = towers.turn("synthetic")
    turns = {name: contestant.turn("synthetic")[0] for name, contestant in singles.items()}
    seconds = max(turn.seconds_per_step for turn in pair)
    single = min(turn.seconds_per_step for turn in turns.values())
    result = {
        "two_towers_images_per_second": batch / seconds,
        **{f"one_process_{name}_images_per_second": batch / turn.seconds_per_step for name, turn in turns.items()},
        "two_towers_over_one_process": single / seconds,
        "exchange_wait_percent_tower0": pair[0].wait_ms / seconds / 10,
        "exchange_wait_percent_tower1": pair[1].wait_ms / seconds / 10,
        "peak_megabytes_tower0": pair[0].peak_megabytes,
        "peak_megabytes_tower1": pair[1].peak_megabytes,
        "peak_megabytes_one_process": min(turn.peak_megabytes for turn in turns.values()),
    }
    say(
        f"round {number + 1}/{settings.rounds}: two towers {result['two_towers_images_per_second']:.1f} images/s, "
        f"one process {batch / single:.1f}, ratio {result['two_towers_over_one_process']:.2f}"
    )
    return result


def _run_training_round(
    towers: Contestant, settings: BenchmarkConfig, number: int, say: Callable[[str], None]
) -> dict[str, float]:
    """Training from each kind of input; the shares are medians over cycles in which each had one step."""
    first, second = (turn.series for turn in towers.turn("training"))
    assert first is not None
    assert second is not None
    seconds = {name: [max(pair) for pair in zip(first[name], second[name], strict=True)] for name in first}
    result: dict[str, float] = {}
    for name, steps in seconds.items():
        key = name.replace(" ", "_decoded_")
        result[f"{key}_images_per_second"] = settings.optim.batch_size / statistics.median(steps)
        shares = [100 * synthetic / step for synthetic, step in zip(seconds["synthetic"], steps, strict=True)]
        result[f"{key}_percent_of_synthetic"] = statistics.median(shares)
    text = ", ".join(
        f"{name} {result[name.replace(' ', '_decoded_') + '_percent_of_synthetic']:.1f} %" for name in seconds
    )
    say(f"training, round {number + 1}/{settings.rounds}, of the speed with synthetic input: {text}")
    return result
