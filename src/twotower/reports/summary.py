"""The numbers of a report as one JSON object, to be kept beside a result: groups, differences, colour, versions."""

from collections.abc import Sequence
from typing import Any

from twotower.evaluation.predictions import VIEWS
from twotower.figures import figure3
from twotower.ground.stored_files import read_json
from twotower.ground.versions import VERSIONS
from twotower.ground.wording import on_one_line
from twotower.reports.compare import MEASURES, Comparison, Estimate, Group, find_recorded_difference
from twotower.reports.data_sets import describe_data
from twotower.reports.run_records import FinishedRun, Trace, list_finished
from twotower.reports.tables import has_two_towers, make_repeating_command, read_kernels_once


def _round(estimate: Estimate) -> dict[str, Any]:
    return {
        "runs": estimate.count,
        "mean": round(estimate.mean, 4),
        "spread": None if estimate.spread is None else round(estimate.spread, 4),
    }


def _summarise_error(error: Estimate | None) -> dict[str, Any] | None:
    return None if error is None else _round(error)


def _summarise_difference(difference: Estimate | None) -> dict[str, Any] | None:
    if difference is None:
        return None
    low, high = (None, None) if difference.interval is None else (round(bound, 4) for bound in difference.interval)
    return _round(difference) | {"low": low, "high": high}


def _summarise_colour(run: FinishedRun) -> dict[str, Any]:
    summary = figure3.summarise(read_kernels_once(run.run_dir))
    return {key: summary[key] for key in ("mean_selectivity", "more_colour", "gap")}


def _summarise_group(comparison: Comparison, group: Group) -> dict[str, Any]:
    recorded = find_recorded_difference(group, comparison.baseline)
    keys = [(view, measure) for view in VIEWS for measure in MEASURES]
    return {
        "network": group.config.network.name,
        "ablation": group.config.ablation,
        "seeds": [run.config.seed for run in group.runs],
        "errors": {f"{measure}_{view}": _summarise_error(group.error(view, measure)) for view, measure in keys},
        "differences": {
            f"{measure}_{view}": _summarise_difference(comparison.difference(group, view, measure))
            for view, measure in keys
        },
        "recorded_2012": None
        if recorded is None
        else {"run": recorded.run} | {measure: round(getattr(recorded, measure), 4) for measure in MEASURES},
        "colour_selectivity": {run.name: _summarise_colour(run) for run in group.runs if has_two_towers(run)},
        "images_per_second": round(group.mean_of("images_per_second"), 1),
        "seconds": round(group.mean_of("seconds"), 1),
        "command": make_repeating_command(group),
    }


def _list_versions(runs: Sequence[Trace]) -> list[dict[str, str]]:
    """Each combination of versions that the finished runs were made with, once."""
    combinations: list[dict[str, str]] = []
    for run in list_finished(runs):
        try:
            stored = read_json(run.run_dir / "versions.json", VERSIONS, "leave it out")
        except ValueError:
            continue
        versions = {on_one_line(key, 60): on_one_line(value, 200) for key, value in stored.items()}
        if versions and versions not in combinations:
            combinations.append(versions)
    return combinations


def summarise(runs: Sequence[Trace], comparison: Comparison) -> dict[str, Any]:
    """Errors in percent, differences in percentage points, colour selectivity of tower 0 and tower 1 of each run."""
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.status] = counts.get(run.status, 0) + 1
    return {
        "data": describe_data(comparison.baseline.runs[0]),
        "runs": counts,
        "baseline": comparison.baseline.label,
        "groups": {group.label: _summarise_group(comparison, group) for group in comparison.groups},
        "versions": _list_versions(runs),
    }
