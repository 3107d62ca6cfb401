"""The tables of a report: errors, differences with their intervals, commands, runs, the towers' colour."""

import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from twotower.evaluation.predictions import VIEWS
from twotower.figures.figure3 import Kernels, read_kernels, summarise
from twotower.ground.wording import counted, epochs_done, format_duration, signed
from twotower.reports.compare import MEASURES, TITLES, Comparison, Estimate, Group, find_recorded_difference
from twotower.reports.run_records import FinishedRun, Run, Trace, list_finished
from twotower.reports.table import Cell, Table
from twotower.runs.status import Status

_TRAINING = ["python", "launch/two_gpu.py"]  # how every noted command begins
CROPS = {"centre": "centre", "ten": "ten crops"}


def percent(value: float) -> str:
    return f"{value:.2f}"


def _error_cell(error: Estimate | None) -> Cell:
    """Mean and spread."""
    if error is None:
        return Cell("")
    return Cell(percent(error.mean), error.mean, "" if error.spread is None else f"± {error.spread:.2f}")


def _difference_cell(difference: Estimate | None) -> Cell:
    """Mean and interval."""
    if difference is None:
        return Cell("")
    mean, count = difference.mean, difference.count
    if difference.interval is None:
        why = "one seed: no interval" if count == 1 else f"{counted(count, 'seed')} alike: no interval"
        return Cell(signed(mean), mean, why)
    low, high = difference.interval
    interval = f"{signed(low)} to {signed(high)}"
    if not difference.excludes_zero:
        return Cell(signed(mean), mean, interval)
    return Cell(f"{signed(mean)} *", mean, interval, "good" if mean < 0 else "bad")


def make_repeating_command(group: Group) -> str:
    """One command for all runs of a group; empty where the runs did not note theirs, or another one stands there."""
    config = group.config
    try:
        typed = shlex.split(config.command or "")
    except ValueError:  # a quotation mark that is not closed
        return ""
    if typed[:2] != _TRAINING or any(not word.isprintable() for word in typed):
        return ""  # people copy it into a shell, so it is shown only if it does nothing but train
    words = [word for word in typed if not word.startswith("seed=")]
    seeds = [run.config.seed for run in group.runs]
    if len(seeds) > 1:
        words.insert(2, "-m")
    return shlex.join([*words, f"seed={','.join(str(seed) for seed in seeds)}"])


def make_errors_table(comparison: Comparison) -> Table:
    """A row for each group: errors in both views, speed, time and memory."""
    heads = ["network, ablation", "runs", *(f"{TITLES[m]} %, {CROPS[v]}" for v in VIEWS for m in MEASURES)]
    rows = []
    for group in comparison.groups:
        count, memory = len(group.runs), [run.megabytes for run in group.runs if run.megabytes]
        note = f"{group.unfinished} more not finished" if group.unfinished else ""
        seeds = ", ".join(str(run.config.seed) for run in group.runs)
        errors = [_error_cell(group.error(view, measure)) for view in VIEWS for measure in MEASURES]
        peaks = [max(towers[tower] for towers in memory) for tower in range(len(memory[0]))] if memory else []
        megabytes = Cell(" / ".join(f"{peak:.0f}" for peak in peaks), peaks[0] if peaks else None)
        speed, seconds = group.mean_of("images_per_second"), group.mean_of("seconds")
        rows.append(
            [
                Cell(group.label, note=note),
                Cell(str(count), count, f"{'seed' if count == 1 else 'seeds'} {seeds}"),
                *errors,
                Cell(epochs_done(group.mean_of("epochs")), group.mean_of("epochs")),
                Cell(f"{speed:.0f}", speed),
                Cell(format_duration(seconds), seconds),
                megabytes,
            ]
        )
    heads += ["epochs", "images/s", "time", "peak MiB a tower"]
    note = (
        "Error rates of the validation set at the end of training, as mean ± standard deviation over seeds (n - 1). "
        "Speed and time are of training alone, means over runs; runs that shared a machine are slower for it."
    )
    return Table("Errors", heads, rows, note)


def count_pairs(comparison: Comparison, group: Group) -> list[int]:
    """Numbers of seeds that the difference to the baseline has: in the centre crop and, if there are any, in ten."""
    differences = [comparison.difference(group, view, MEASURES[0]) for view in VIEWS]
    counts = [0 if difference is None else difference.count for difference in differences]
    return counts if counts[1] else counts[:1]


def make_differences_table(comparison: Comparison) -> Table:
    """A row for each group but the baseline: paired differences, and those of 2012."""
    heads = ["network, ablation", "pairs"]
    heads += [f"{TITLES[measure]}, {CROPS[view]}" for view in VIEWS for measure in MEASURES]
    heads += ["2012: top-1, ten crops", "2012: top-5, ten crops"]
    rows = []
    for group in comparison.groups[1:]:
        recorded = find_recorded_difference(group, comparison.baseline)
        of_2012 = [Cell("")] * 2
        if recorded is not None:
            values = (recorded.top1_error, recorded.top5_error)
            of_2012 = [Cell(signed(value), value, f"run {recorded.run}") for value in values]
        differences = [comparison.difference(group, view, measure) for view in VIEWS for measure in MEASURES]
        pairs = count_pairs(comparison, group)
        shown = " / ".join(str(count) for count in dict.fromkeys(pairs))
        cells = [_difference_cell(difference) for difference in differences]
        rows.append(
            [
                Cell(group.label),
                Cell(shown, pairs[0], "" if len(set(pairs)) == 1 else "centre / ten crops"),
                *cells,
                *of_2012,
            ]
        )
    note = (
        "Percentage points of error more than the baseline's: means of the differences of runs with one seed, and "
        "their 95 % confidence intervals (Student's t over the seeds). *: intervals without zero, as one in twenty "
        "is where nothing differs. An interval holds what other seeds would change, not what other validation images "
        "would. The differences of 2012 are from the lab book: the full network, all of ILSVRC-2012, one run each."
    )
    return Table(f"Differences to the baseline ({comparison.baseline_name})", heads, rows, note)


def make_commands_table(comparison: Comparison) -> Table:
    rows = []
    for group in comparison.groups:
        command = make_repeating_command(group)
        rows.append(
            [Cell(group.label), Cell(command or "not noted by these runs", kind="command" if command else "muted")]
        )
    return Table("Commands that repeat them", ["network, ablation", "command"], rows)


_KINDS = {Status.FINISHED: "", Status.NOT_APPLICABLE: "muted"}  # kinds of the cells of a status; all others are bad


def _result_cells(run: FinishedRun) -> list[Cell]:
    """Errors in both views, lowest top-1 error, speed and time."""
    pairs = [run.errors.get(view) for view in VIEWS]
    errors = [Cell("") if pair is None else Cell(percent(pair[i]), pair[i]) for pair in pairs for i in (0, 1)]
    best, speed, seconds = (run.summary.get(key) for key in ("best_top1_error", "images_per_second", "seconds"))
    return [
        *errors,
        Cell("") if best is None else Cell(percent(best), best),
        Cell("") if speed is None else Cell(f"{speed:.0f}", speed),
        Cell("") if seconds is None else Cell(format_duration(seconds), seconds),
    ]


def make_runs_table(runs: Sequence[Trace]) -> Table:
    """A row for each run and job, whatever became of it."""
    results = [*(f"{TITLES[m]} %, {CROPS[v]}" for v in VIEWS for m in MEASURES), "best top-1 %", "images/s", "time"]
    rows = [
        [
            Cell(run.name),
            Cell(run.status, kind=_KINDS.get(run.status, "bad")),
            Cell(str(run.config.seed), run.config.seed) if isinstance(run, Run) else Cell(""),
            *(_result_cells(run) if isinstance(run, FinishedRun) else [Cell("")] * len(results)),
            Cell(run.remark),
        ]
        for run in runs
    ]
    return Table("All runs", ["run", "status", "seed", *results, "remark"], rows)


@cache
def read_kernels_once(run_dir: Path) -> Kernels:
    """`read_kernels` for the several tables and pictures that need them."""
    return read_kernels(run_dir)


def has_kernels(run: FinishedRun) -> bool:
    """Whether a run has a checkpoint that can be read."""
    if not run.has_checkpoint:
        return False
    try:
        read_kernels_once(run.run_dir)
    except ValueError:
        return False
    return True


def has_two_towers(run: FinishedRun) -> bool:
    """Whether colour can be compared: there are two towers, and a checkpoint that can be read."""
    return run.config.network.towers == 2 and has_kernels(run)


def make_colour_table(runs: Sequence[Trace]) -> Table | None:
    """Colour selectivity of conv1 in both towers, a row for each run that has it."""
    rows = []
    for run in list_finished(runs):
        if has_two_towers(run):
            numbers = summarise(read_kernels_once(run.run_dir))
            more, gap = numbers["more_colour"], numbers["gap"]
            values = (
                *numbers["mean_selectivity"],
                gap["value"],
                gap["p_value"],
                more["probability"],
                more["p_value"],
            )
            rows.append([Cell(run.name), *(Cell(f"{value:.3f}", value) for value in values)])
    if not rows:
        return None
    heads = ["run", "tower 0", "tower 1", "gap", "p of the gap", "P(more colour)", "p of P"]
    note = (
        "Mean part of a conv1 kernel's energy that is not grey: 0 grey, 0.667 drawn at random, 1 colour alone. p of "
        "the gap: the share of 10,000 random assignments of the kernels to two towers that have a gap as large. P: "
        "how often a kernel of the more colourful tower exceeds one of the other; 0.5 is no difference. p of P: "
        "how often towers of one distribution would come out as far apart (Mann and Whitney). Section 6.1 of the "
        "paper says that one tower becomes colour-agnostic and the other colour-specific in every run."
    )
    return Table("Colour selectivity of the towers", heads, rows, note)
