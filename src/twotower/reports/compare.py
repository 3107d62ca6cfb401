"""The cost of an ablation: groups of runs that differ in the seed alone, and their differences to a baseline.

The differences are paired: of two runs with one seed, which saw the same images in the same order. Their mean comes
with a 95 % confidence interval by Student's t over the seeds. It says how far the mean would move with other seeds;
that all runs share one set of validation images is not in it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from scipy import stats

from twotower.config import Config
from twotower.ground.wording import counted
from twotower.reports.counterpart import BASELINE, COUNTERPARTS, find_counterpart, list_overridden
from twotower.reports.labbook import find_difference, read_labbook
from twotower.reports.run_records import FinishedRun, Run, Trace, list_finished
from twotower.runs.variants import count_given, labels_of, list_changes, read_names, select_for_comparison

CONFIDENCE = 0.95
MEASURES = ("top1_error", "top5_error")
TITLES = {"top1_error": "top-1", "top5_error": "top-5"}
_NAMED = 3  # most runs that an error names where none is finished
_ALIKE = 1e-9  # difference of errors in percent that rounding leaves


@dataclass(frozen=True)
class Estimate:
    """Statistics of `count` values: mean, standard deviation (n - 1), and the interval of the mean; in percent.

    One value has neither spread nor interval. Values that are all alike have no interval: errors come in steps, so
    that their agreement is chance.
    """

    mean: float
    count: int
    spread: float | None = None
    interval: tuple[float, float] | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval shows a difference, with the two digits that are printed of it."""
        return self.interval is not None and not round(self.interval[0], 2) <= 0 <= round(self.interval[1], 2)


def estimate(values: Sequence[float]) -> Estimate:
    """Statistics of the values. Raises: ValueError for no values."""
    if not values:
        raise ValueError("there is nothing to estimate from.")
    if len(values) == 1:
        return Estimate(values[0], 1)
    spread = stdev(values)
    if spread < _ALIKE:
        return Estimate(values[0], len(values), 0.0)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * spread / math.sqrt(len(values))
    middle = mean(values)
    return Estimate(middle, len(values), spread, (middle - half, middle + half))


@dataclass(frozen=True)
class Group:
    """Finished runs that differ in the seed alone.

    Attributes:
        label: what sets it apart from the baseline: "no_lrn", "no_exchange", "none, optim.learning_rate=0.01".
        changes: settings other than network and ablation that differ from the baseline's.
        unfinished: number of further runs that were begun and not finished.
    """

    label: str
    config: Config
    runs: list[FinishedRun]
    changes: list[str]
    unfinished: int = 0

    def values(self, view: str, measure: str) -> dict[int, float]:
        """Seed -> error in percent, of the runs that were evaluated in this view."""
        index = MEASURES.index(measure)
        return {run.config.seed: run.errors[view][index] for run in self.runs if view in run.errors}

    def error(self, view: str, measure: str) -> Estimate | None:
        values = list(self.values(view, measure).values())
        return estimate(values) if values else None

    def mean_of(self, key: str) -> float:
        """The mean of one value of summary.json over the group's runs."""
        return mean(run.summary[key] for run in self.runs)


@dataclass(frozen=True)
class Comparison:
    """All groups, the baseline first."""

    groups: list[Group]
    remarks: list[str]

    @property
    def baseline(self) -> Group:
        return self.groups[0]

    @property
    def baseline_name(self) -> str:
        """The baseline in a title: its label, or its network where the label would be `none`, which says nothing."""
        return self.baseline.config.network.name if self.baseline.label == "none" else self.baseline.label

    def difference(self, group: Group, view: str, measure: str) -> Estimate | None:
        """Mean of the differences to the baseline, seed by seed; None for itself or without a common seed."""
        if group is self.baseline:
            return None
        ours, theirs = group.values(view, measure), self.baseline.values(view, measure)
        pairs = [ours[seed] - theirs[seed] for seed in sorted(ours) if seed in theirs]
        return estimate(pairs) if pairs else None


@dataclass(frozen=True)
class Recorded:
    """The difference of a run of 2012 to its baseline, 10-view, in percent of error."""

    run: str
    top1_error: float
    top5_error: float


def find_recorded_difference(group: Group, baseline: Group) -> Recorded | None:
    """The difference that the lab book has for this network or ablation.

    None where something else was changed as well, or the baseline is not the run of 2012 that the lab book compares
    with.
    """
    name = find_counterpart(group.config)
    is_paper = find_counterpart(baseline.config) == BASELINE and not list_overridden(baseline.config)
    if name is None or name == BASELINE or not is_paper or group.changes or list_overridden(group.config):
        return None
    entries = read_labbook()
    for entry in entries:
        points = find_difference(entry, entries)
        if entry.run in COUNTERPARTS[name] and entry.view == "10-view" and points is not None:
            return Recorded(entry.run, *points)
    return None


def _choose_baseline(configs: list[Config]) -> int:
    """The paper's network without an ablation, or another without one, or any; that with the fewest settings."""
    plain = [i for i, config in enumerate(configs) if config.ablation == "none"]
    paper = [i for i in plain if configs[i].network.name == BASELINE]
    return min(paper or plain or range(len(configs)), key=lambda i: count_given(configs[i]))


def compare(runs: Sequence[Trace], baseline: str | None = None) -> Comparison:
    """Groups the finished runs.

    Args:
        baseline: the label of the group to compare with; None: the paper's network without an ablation, if it is
            there.

    Raises: ValueError if no run is finished, two runs are the same experiment with the same seed, or no group has
    the label.
    """
    experiments = [members for members in _gather(runs) if list_finished(members)]
    if not experiments:
        reasons = [f"{run.name} is {run.status}: {run.remark}" for run in runs[:_NAMED]]
        raise ValueError(
            f"of {counted(len(runs), 'run')} none is finished, so there is nothing to compare "
            f"({'; '.join(reasons)}); the command that started them goes on with those that were stopped."
        )
    for members in experiments:
        _check_seeds(list_finished(members))
    configs = [members[0].config for members in experiments]
    first = _choose_baseline(configs)
    if baseline is not None:
        labels = labels_of(configs, configs[first])
        if baseline not in labels:
            raise ValueError(f"baseline={baseline} is no group of these runs; choose one of {', '.join(labels)}.")
        first = labels.index(baseline)
    groups = _make_groups(experiments, configs, configs[first])
    ordered = [groups[first], *(group for i, group in enumerate(groups) if i != first)]
    remarks = [
        f"{group.label} differs from the baseline in more than its name says, so its difference has two causes"
        for group in ordered[1:]
        if group.changes and read_names(group.config) != read_names(ordered[0].config)
    ]
    return Comparison(ordered, remarks)


def _gather(runs: Sequence[Trace]) -> list[list[Run]]:
    """Gathers the runs that differ in the seed alone."""
    experiments: list[tuple[dict[str, Any], list[Run]]] = []
    for run in runs:
        if not isinstance(run, Run):
            continue
        settings = select_for_comparison(run.config)
        same = next((members for known, members in experiments if known == settings), None)
        if same is None:
            experiments.append((settings, [run]))
        else:
            same.append(run)
    return [members for _, members in experiments]


def _check_seeds(runs: Sequence[FinishedRun]) -> None:
    by_seed: dict[int, FinishedRun] = {}
    for run in runs:
        twin = by_seed.setdefault(run.config.seed, run)
        if twin is not run:
            raise ValueError(
                f"{twin.run_dir} and {run.run_dir} are the same experiment with the same seed {run.config.seed}, "
                "which would count twice; give one of them."
            )


def _make_groups(experiments: list[list[Run]], configs: list[Config], base: Config) -> list[Group]:
    groups = []
    for members, config, label in zip(experiments, configs, labels_of(configs, base), strict=True):
        finished = sorted(list_finished(members), key=lambda run: run.config.seed)
        groups.append(Group(label, config, finished, list_changes(config, base), len(members) - len(finished)))
    return groups
