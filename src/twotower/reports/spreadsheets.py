"""The numbers of a report for other programs: a row for each group, and one for each run."""

from collections.abc import Sequence
from typing import Any

from twotower.evaluation.predictions import VIEWS
from twotower.reports.compare import MEASURES, Comparison, Group, find_recorded_difference
from twotower.reports.run_records import FinishedRun, Run, Trace
from twotower.reports.table import Table, plain_cell
from twotower.reports.tables import count_pairs, make_repeating_command

_ERRORS = [f"{measure}_{view}" for view in VIEWS for measure in MEASURES]
_STATISTICS = ("mean", "spread", "difference", "low", "high")
_NAMES = ["group", "network", "ablation", "runs", "seeds"]
_RECORDED = ["run_2012", "top1_error_2012_difference", "top5_error_2012_difference"]
_COSTS = ["images_per_second", "seconds", "epochs"]
_MEGABYTES = ["megabytes_tower0", "megabytes_tower1"]
_GROUP_HEADS = [
    *_NAMES,
    *(f"{error}_{statistic}" for error in _ERRORS for statistic in _STATISTICS),
    *("pairs_centre", "pairs_ten", *_RECORDED, *_COSTS, *_MEGABYTES, "command"),
]
_RUN_HEADS = ["run", "status", "network", "ablation", "seed", *_ERRORS, *_COSTS[:2], "command", "remark"]


def _list_statistics(comparison: Comparison, group: Group) -> list[float | None]:
    """`_STATISTICS` of each of `_ERRORS`."""
    numbers: list[float | None] = []
    for view in VIEWS:
        for measure in MEASURES:
            error, difference = group.error(view, measure), comparison.difference(group, view, measure)
            numbers += [error.mean, error.spread] if error is not None else [None] * 2
            if difference is None:
                numbers += [None] * 3
            else:
                numbers += [difference.mean, *(difference.interval or [None] * 2)]
    return numbers


def _list_group(comparison: Comparison, group: Group) -> list[Any]:
    """The numbers of one row, in the order of `_GROUP_HEADS`."""
    seeds = " ".join(str(run.config.seed) for run in group.runs)
    recorded, counts = find_recorded_difference(group, comparison.baseline), count_pairs(comparison, group)
    memory = [run.megabytes for run in group.runs if run.megabytes]
    return [
        *(group.label, group.config.network.name, group.config.ablation, len(group.runs), seeds),
        *_list_statistics(comparison, group),
        *(counts[0] or None, counts[1] if len(counts) > 1 else None),
        *((recorded.run, recorded.top1_error, recorded.top5_error) if recorded is not None else [None] * 3),
        *(group.mean_of(key) for key in _COSTS),
        *(max(run[t] for run in memory) if memory and t < len(memory[0]) else None for t in (0, 1)),
        make_repeating_command(group),
    ]


def make_groups_spreadsheet(comparison: Comparison) -> Table:
    """A row for each group with every number in a column of its own; errors in percent, differences in points."""
    rows = [[plain_cell(content) for content in _list_group(comparison, group)] for group in comparison.groups]
    return Table("Groups", _GROUP_HEADS, rows)


def make_runs_spreadsheet(runs: Sequence[Trace]) -> Table:
    """A row for each run and job."""
    rows = []
    for run in runs:
        names: list[Any] = [None] * 3
        numbers: list[float | None] = [None] * (len(_ERRORS) + 2)
        command = None
        if isinstance(run, Run):
            names, command = [run.config.network.name, run.config.ablation, run.config.seed], run.config.command
        if isinstance(run, FinishedRun):
            numbers = [run.errors[view][i] if view in run.errors else None for view in VIEWS for i in (0, 1)]
            numbers += [run.summary.get(key) for key in _COSTS[:2]]
        texts = [None if number is None else f"{number:.6g}" for number in numbers]
        rows.append([plain_cell(content) for content in (run.name, run.status, *names, *texts, command, run.remark)])
    return Table("Runs", _RUN_HEADS, rows)
