"""The two towers in two processes against one process and against the floor, and training from several inputs.

All contestants of a precision stay alive and take turns in each round, so that a slow minute of the machine hits all
of them; ratios are taken within a round, and medians over the rounds.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from twotower.benchmarks.floor import count_flops, run_floor
from twotower.benchmarks.single_process import Variant, run_single_process
from twotower.benchmarks.take_turns import Contestant, Turn, add_medians
from twotower.benchmarks.tower_process import TOWERS, run_tower
from twotower.config import PRECISIONS, BenchmarkConfig, DataConfig
from twotower.distributed.place import stay_on_this_host, threads_per_process
from twotower.ground.devices import choose_device
from twotower.ground.precision import check_precision
from twotower.ground.processes import cores

BATCHES = (32, 64, 128, 256)
REPLICAS = 2
Say = Callable[[str], None]


def list_precisions(settings: BenchmarkConfig, say: Say) -> list[str]:
    """Those that are asked for; where none are, those that this machine has."""
    if settings.precisions:
        return list(settings.precisions)
    device, found = choose_device(settings.machine.device), []
    for precision in PRECISIONS:
        try:
            check_precision(precision, device)
        except ValueError as error:
            say(f"without {precision}: {error}")
        else:
            found.append(precision)
    return found


def _in_precision(settings: BenchmarkConfig, precision: str) -> BenchmarkConfig:
    return replace(settings, machine=replace(settings.machine, precision=precision))


def _start_towers(
    settings: BenchmarkConfig, files: dict[str, DataConfig], scratch: Path, name: str, replicas: int = 1
) -> Contestant:
    size, rendezvous = TOWERS * replicas, str(scratch / f"rendezvous-{name}")
    return Contestant(
        run_tower,
        [(rank, size, settings, files, rendezvous) for rank in range(size)],
        threads_per_process(settings.machine, size),
    )


@contextmanager
def _ending(contestants: dict[str, Contestant]) -> Iterator[None]:
    """Ends them all, whatever happens; those that are taken out before are not asked."""
    try:
        yield
    finally:
        for contestant in contestants.values():
            contestant.end()


def benchmark_towers(
    settings: BenchmarkConfig, files: dict[str, DataConfig], scratch: Path, say: Say
) -> dict[str, Any]:
    """Rounds and medians of what settings.part asks for: towers, parts_ms, batches, replicas, training."""
    stay_on_this_host()
    results: dict[str, Any] = {}
    precisions = list_precisions(settings, say)
    if settings.part in ("all", "towers"):
        rounds: list[dict[str, float]] = [{} for _ in range(settings.rounds)]
        results["parts_ms"] = {}
        for precision in precisions:
            found, results["parts_ms"][precision] = _compare(_in_precision(settings, precision), scratch, say)
            for result, more in zip(rounds, found, strict=True):
                result.update(more)
        results["towers"] = add_medians(rounds) | {"gigaflops_an_image": count_flops(settings) / 1e9}
    if settings.part in ("all", "batches"):
        results["batches"] = add_medians(_compare_batches(settings, precisions, scratch, say))
    if settings.part in ("all", "replicas"):
        results["replicas"] = add_medians(_compare_replicas(settings, precisions, scratch, say))
    if settings.part in ("all", "training"):
        rounds = [{} for _ in range(settings.rounds)]
        for precision in precisions:
            own = _in_precision(settings, precision)
            towers = {"towers": _start_towers(own, files, scratch, f"training-{precision}")}
            with _ending(towers):
                for number, result in enumerate(rounds):
                    result |= _run_training_round(towers["towers"], own, number, say)
        results["training"] = add_medians(rounds)
    return results


def _compare(settings: BenchmarkConfig, scratch: Path, say: Say) -> tuple[list[dict[str, float]], dict[str, float]]:
    """All rounds in one precision, and the milliseconds of the parts of a step of tower 0 and of the floor."""
    precision, device = settings.machine.precision, choose_device(settings.machine.device)
    contestants: dict[str, Contestant] = {}
    with _ending(contestants):
        contestants["two_towers"] = _start_towers(settings, {}, scratch, precision)
        _choose_variants(contestants, settings, say)
        if device.type == "cpu":  # on one GPU two floors would share it, and on two each has its own index
            contestants["floor"] = Contestant(
                run_floor,
                [(tower, settings, precision, "cpu") for tower in range(TOWERS)],
                threads_per_process(settings.machine, TOWERS),
            )
        rounds = [_run_round(contestants, settings, number, say) for number in range(settings.rounds)]
        parts = contestants["two_towers"].turn("parts")[0].parts_ms or {}
        if "floor" in contestants:
            floor = contestants["floor"].turn("parts")[0].parts_ms or {}
            parts |= {f"floor: {name}": value for name, value in floor.items()}
    return rounds, parts


def _choose_variants(contestants: dict[str, Contestant], settings: BenchmarkConfig, say: Say) -> None:
    """One process, eager and compiled, each in the memory format that was faster in a first turn."""
    for name, variant in (
        ("eager", Variant(settings.machine.precision)),
        ("compiled", Variant(settings.machine.precision, is_compiled=True)),
    ):
        turns: dict[bool, Turn] = {}
        for is_channels_last in (True, False):
            way = replace(variant, is_channels_last=is_channels_last)
            trial = Contestant(run_single_process, [(replace(settings, steps=1), way)], cores())
            try:
                turns[is_channels_last] = trial.turn("synthetic")[0]
            finally:
                trial.end()
        if turns[True].problem:
            say(f"without torch.compile, which fails here: {turns[True].problem}")
            continue
        better = turns[True].seconds_per_step <= turns[False].seconds_per_step
        say(f"one process, {name}, {variant.precision}: {'NHWC' if better else 'NCHW'} is faster")
        variant = replace(variant, is_channels_last=better)
        contestants[f"one_process_{name}"] = Contestant(run_single_process, [(settings, variant)], cores())
        if variant.is_compiled:
            kept = replace(variant, keeps_memory=True)
            contestants[f"one_process_{name}_keeping_memory"] = Contestant(
                run_single_process, [(settings, kept)], cores()
            )


def _run_round(
    contestants: dict[str, Contestant], settings: BenchmarkConfig, number: int, say: Say
) -> dict[str, float]:
    """The figures of a round, by names that begin with the precision."""
    batch, precision = settings.optim.batch_size, settings.machine.precision
    turns = {name: contestant.turn("synthetic") for name, contestant in contestants.items()}
    speeds = {name: batch / max(turn.seconds_per_step for turn in pair) for name, pair in turns.items()}
    pair, ours = turns["two_towers"], speeds["two_towers"]
    found: dict[str, float] = {f"{name}_images_per_second": speed for name, speed in speeds.items()}
    for name, speed in speeds.items():
        if name.startswith("one_process"):
            found[f"two_towers_over_{name}"] = ours / speed
    if "floor" in speeds:
        found["two_towers_percent_of_floor"] = 100 * ours / speeds["floor"]
    for name, members in turns.items():
        found[f"{name}_user_ms_a_step"] = 1e3 * sum(turn.user_seconds for turn in members)
        found[f"{name}_kernel_ms_a_step"] = 1e3 * sum(turn.kernel_seconds for turn in members)
        if name != "floor":
            found[f"{name}_peak_megabytes"] = max(turn.peak_megabytes for turn in members)
    for tower, turn in enumerate(pair):
        found[f"exchange_wait_percent_tower{tower}"] = turn.wait_ms / turn.seconds_per_step / 10
    others = ", ".join(
        f"{name.replace('_', ' ')} {speed:.1f}" for name, speed in speeds.items() if name != "two_towers"
    )
    say(f"{precision}, round {number + 1}/{settings.rounds}: two towers {ours:.1f} images/s, {others}")
    return {f"{precision}_{name}": value for name, value in found.items()}


def _compare_batches(
    settings: BenchmarkConfig, precisions: list[str], scratch: Path, say: Say
) -> list[dict[str, float]]:
    """The towers' speed and memory by batch size, in turn."""
    rounds: list[dict[str, float]] = [{} for _ in range(settings.rounds)]
    for precision in precisions:
        towers: dict[str, Contestant] = {}
        with _ending(towers):
            for batch in BATCHES:
                sized = replace(settings, optim=replace(settings.optim, batch_size=batch))
                towers[f"batch{batch}"] = _start_towers(
                    _in_precision(sized, precision), {}, scratch, f"{precision}-{batch}"
                )
            for result in rounds:
                for batch in BATCHES:
                    pair = towers[f"batch{batch}"].turn("synthetic")
                    speed = batch / max(turn.seconds_per_step for turn in pair)
                    result[f"{precision}_batch{batch}_images_per_second"] = speed
                    result[f"{precision}_batch{batch}_peak_megabytes"] = max(turn.peak_megabytes for turn in pair)
                    say(f"{precision}, batch {batch}: {speed:.1f} images/s")
    return rounds


def _compare_replicas(
    settings: BenchmarkConfig, precisions: list[str], scratch: Path, say: Say
) -> list[dict[str, float]]:
    """Two processes, and four as two replicas that share each batch, in turn on the same cores or GPUs."""
    rounds: list[dict[str, float]] = [{} for _ in range(settings.rounds)]
    batch = settings.optim.batch_size
    shared = replace(settings, optim=replace(settings.optim, batch_size=batch // REPLICAS))
    for precision in precisions:
        contestants: dict[str, Contestant] = {}
        with _ending(contestants):
            for replicas, sized in ((1, settings), (REPLICAS, shared)):
                contestants[f"replicas{replicas}"] = _start_towers(
                    _in_precision(sized, precision), {}, scratch, f"{precision}-replicas{replicas}", replicas
                )
            for number, result in enumerate(rounds):
                speeds = {}
                for name, contestant in contestants.items():
                    speeds[name] = batch / max(turn.seconds_per_step for turn in contestant.turn("synthetic"))
                    result[f"{precision}_{name}_images_per_second"] = speeds[name]
                one, more = speeds.values()
                result[f"{precision}_replicas{REPLICAS}_over_replicas1"] = more / one
                say(
                    f"{precision}, round {number + 1}/{settings.rounds}: one replica {one:.1f} images/s, {REPLICAS} "
                    f"{more:.1f}"
                )
    return rounds


def _name_input(name: str, settings: BenchmarkConfig) -> str:
    """`fp32_prepared_decoded_once` for `prepared once`."""
    return f"{settings.machine.precision}_{name.replace(' ', '_decoded_')}"


def _run_training_round(towers: Contestant, settings: BenchmarkConfig, number: int, say: Say) -> dict[str, float]:
    """Training from each kind of input; the shares are medians over cycles in which each had one step.

    Returns: the figures, by names that begin with the precision.
    """
    first, second = (turn.series for turn in towers.turn("training"))
    assert first is not None
    assert second is not None
    seconds = {name: [max(pair) for pair in zip(first[name], second[name], strict=True)] for name in first}
    result: dict[str, float] = {}
    for name, steps in seconds.items():
        key = _name_input(name, settings)
        result[f"{key}_images_per_second"] = settings.optim.batch_size / statistics.median(steps)
        shares = [100 * synthetic / step for synthetic, step in zip(seconds["synthetic"], steps, strict=True)]
        result[f"{key}_percent_of_synthetic"] = statistics.median(shares)
    text = ", ".join(
        f"{name} {result[_name_input(name, settings) + '_percent_of_synthetic']:.1f} %" for name in seconds
    )
    which = f"training, {settings.machine.precision}, round {number + 1}/{settings.rounds}"
    say(f"{which}, of the speed with synthetic input: {text}")
    return result
