"""The numbers of a report as one JSON object, to be kept beside a result: groups, differences, colour, versions."""

import json
from collections.abc import Sequence
from typing import Any

from twotower.figures import figure3
from twotower.reports.collect import FINISHED, Found, describe_data
from twotower.reports.compare import MEASURES, VIEWS, Comparison, Estimate, Group, recorded_difference
from twotower.reports.tables import colour_of, kernels_of, repeating_command


def _rounded(one: Estimate) -> dict[str, Any]:
    return {
        "runs": one.count,
        "mean": round(one.mean, 4),
        "spread": None if one.spread is None else round(one.spread, 4),
    }


def _error(one: Estimate | None) -> dict[str, Any] | None:
    return None if one is None else _rounded(one)


def _difference(one: Estimate | None) -> dict[str, Any] | None:
    if one is None:
        return None
    low, high = (None, None) if one.interval is None else (round(bound, 4) for bound in one.interval)
    return _rounded(one) | {"low": low, "high": high}


def _colour(run: Found) -> dict[str, Any]:
    found = figure3.summarise(kernels_of(run.run_dir))
    return {key: found[key] for key in ("mean_selectivity", "more_colour")}


def _group(comparison: Comparison, group: Group) -> dict[str, Any]:
    recorded = recorded_difference(group, comparison.baseline)
    keys = [(view, measure) for view in VIEWS for measure in MEASURES]
    return {
        "network": group.config.network.name,
        "ablation": group.config.ablation,
        "seeds": [run.config.seed for run in group.runs if run.config is not None],
        "errors": {f"{measure}_{view}": _error(group.error(view, measure)) for view, measure in keys},
        "differences": {
            f"{measure}_{view}": _difference(comparison.difference(group, view, measure)) for view, measure in keys
        },
        "recorded_2012": None
        if recorded is None
        else {"run": recorded.run} | {measure: round(getattr(recorded, measure), 4) for measure in MEASURES},
        "colour_selectivity": {run.name: _colour(run) for run in group.runs if colour_of(run) is not None},
        "images_per_second": round(group.mean_of("images_per_second"), 1),
        "seconds": round(group.mean_of("seconds"), 1),
        "command": repeating_command(group),
    }


def _versions(runs: Sequence[Found]) -> list[dict[str, str]]:
    """Each combination of versions that the runs were made with, once."""
    found: list[dict[str, str]] = []
    for run in runs:
        path = run.run_dir / "versions.json"
        try:
            versions = json.loads(path.read_text()) if run.status == FINISHED else {}
        except (OSError, ValueError):
            versions = {}
        if versions and versions not in found:
            found.append(versions)
    return found


def summarise(runs: Sequence[Found], comparison: Comparison) -> dict[str, Any]:
    """Errors in percent, differences in percentage points, colour selectivity of tower 0 and tower 1 of each run."""
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.status] = counts.get(run.status, 0) + 1
    return {
        "data": describe_data(comparison.baseline.runs[0]),
        "runs": counts,
        "baseline": comparison.baseline.label,
        "groups": {group.label: _group(comparison, group) for group in comparison.groups},
        "versions": _versions(runs),
    }
