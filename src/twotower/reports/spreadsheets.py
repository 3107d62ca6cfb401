"""The numbers of a report for other programs: a row for each group, and one for each run."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twotower.reports.collect import Found
from twotower.reports.compare import MEASURES, VIEWS, Comparison, recorded_difference
from twotower.reports.tables import pairs_of, repeating_command


def write_table_csv(comparison: Comparison, path: Path) -> None:
    """A row for each group with every number in a column of its own; errors in percent, differences in points."""
    heads = ["group", "network", "ablation", "runs", "seeds"]
    for view in VIEWS:
        for measure in MEASURES:
            name = f"{measure}_{view}"
            heads += [f"{name}_mean", f"{name}_spread", f"{name}_difference", f"{name}_low", f"{name}_high"]
    heads += ["pairs_centre", "pairs_ten", "run_2012", "top1_error_2012_difference", "top5_error_2012_difference"]
    heads += ["images_per_second", "seconds", "epochs", "megabytes_tower0", "megabytes_tower1", "command"]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(heads)
        for group in comparison.groups:
            seeds = " ".join(str(run.config.seed) for run in group.runs if run.config is not None)
            row: list[Any] = [group.label, group.config.network.name, group.config.ablation, len(group.runs), seeds]
            for view in VIEWS:
                for measure in MEASURES:
                    error, difference = group.error(view, measure), comparison.difference(group, view, measure)
                    row += [error.mean, error.spread] if error is not None else [None, None]
                    row += (
                        [None, None, None]
                        if difference is None
                        else [difference.mean, *(difference.interval or (None, None))]
                    )
            recorded = recorded_difference(group, comparison.baseline)
            counts = pairs_of(comparison, group)
            row += [counts[0] or None, counts[1] if len(counts) > 1 else None]
            row += [recorded.run, recorded.top1_error, recorded.top5_error] if recorded is not None else [None] * 3
            row += [group.mean_of(key) for key in ("images_per_second", "seconds", "epochs")]
            memory = [run.megabytes for run in group.runs if run.megabytes]
            row += [
                max(one[tower] for one in memory) if memory and tower < len(memory[0]) else None for tower in (0, 1)
            ]
            writer.writerow(
                [f"{value:.6g}" if isinstance(value, float) else value for value in [*row, repeating_command(group)]]
            )


def write_runs_csv(runs: Sequence[Found], path: Path) -> None:
    """A row for each run and job."""
    errors = [f"{measure}_{view}" for view in VIEWS for measure in MEASURES]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "run",
                "status",
                "network",
                "ablation",
                "seed",
                *errors,
                "images_per_second",
                "seconds",
                "command",
                "remark",
            ]
        )
        for run in runs:
            config, found, summary = run.config, run.errors or {}, run.summary or {}
            named = [config.network.name, config.ablation, config.seed] if config is not None else [None] * 3
            numbers = [found[view][i] if view in found else None for view in VIEWS for i in (0, 1)]
            numbers += [summary.get("images_per_second"), summary.get("seconds")]
            shown = [f"{value:.6g}" if value is not None else None for value in numbers]
            command = config.command if config is not None else None
            writer.writerow([run.name, run.status, *named, *shown, command, run.remark])
