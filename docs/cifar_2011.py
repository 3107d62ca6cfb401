"""The tables of results/cifar_2011/README.md: the author's four networks of 2011, and what normalisation is worth.

docs/tables.py writes them from what runs.csv has by now; results/PLANNED.md says what is to come.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from twotower.reports.compare import estimate

FOLDER = "cifar_2011"
PLACE = Path(__file__).resolve().parents[1] / "results" / FOLDER
PLANNED = 3  # seeds of each arm
VIEWS = {"centre": "top1_error_centre", "ten": "top1_error_ten"}
WITH, WITHOUT = ("cifar_11pct", "none"), ("cifar_11pct", "no_lrn")

Row = dict[str, str]


@dataclass(frozen=True)
class Arm:
    """A network, and what its author noted of it in 2011 (the table of results on cuda-convnet's page).

    Attributes:
        names: network and ablation, as in runs.csv.
        error_2011: top-1 error in %; None: not among the four.
        time_2011: on a GPU of 2011.
        epochs: here, and of how many in 2011.
        has_ten_crops: whether the author's error is that of ten crops.
    """

    title: str
    names: tuple[str, str]
    error_2011: int | None
    time_2011: str
    epochs: tuple[int, int]
    has_ten_crops: bool


ARMS = (
    Arm("80sec", ("cifar_80sec", "none"), 26, "80 s", (10, 10), False),
    Arm("18pct", ("cifar_18pct", "none"), 18, "20 min", (40, 140), False),
    Arm("13pct", ("cifar_13pct", "none"), 13, "25 min", (40, 160), True),
    Arm("11pct", WITH, 11, "75 min", (40, 520), True),
    Arm("11pct without its norms", WITHOUT, None, "", (40, 520), True),
)


def read_runs(names: tuple[str, str]) -> dict[str, Row]:
    """The finished runs of a network and an ablation, by seed."""
    with (PLACE / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    finished = [row for row in rows if row["status"] == "finished" and (row["network"], row["ablation"]) == names]
    return {row["seed"]: row for row in sorted(finished, key=lambda row: int(row["seed"]))}


def pair(view: str) -> dict[str, float]:
    """By seed, the error without norms less that with them, in points, of the seeds that have both."""
    ours, theirs = read_runs(WITH), read_runs(WITHOUT)
    column = VIEWS[view]
    return {seed: float(theirs[seed][column]) - float(ours[seed][column]) for seed in ours if seed in theirs}


def _write_errors(runs: dict[str, Row], view: str) -> str:
    """Mean, and the standard deviation of several."""
    errors = [float(row[VIEWS[view]]) for row in runs.values()]
    return f"{fmean(errors):.2f}" + (f" ± {stdev(errors):.2f}" if len(errors) > 1 else "")


def write_arms() -> str:
    """A row for each arm: what the author noted, and what came out here."""
    lines = [
        "| network | 2011: error, % | 2011: time | epochs, of 2011's | runs | ten crops, % | centre crop, % | "
        "time of a run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        runs = read_runs(arm.names)
        noted = "" if arm.error_2011 is None else str(arm.error_2011)
        cells = [arm.title, noted, arm.time_2011, f"{arm.epochs[0]} of {arm.epochs[1]}", f"{len(runs)} of {PLANNED}"]
        if runs:
            minutes = fmean(float(row["seconds"]) for row in runs.values()) / 60
            ten = _write_errors(runs, "ten") if arm.has_ten_crops else ""
            cells += [ten, _write_errors(runs, "centre"), f"{minutes:.0f} min"]
        else:
            cells += ["", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_norms() -> str:
    """What the norms of 11pct are worth: by seed, and their mean with its 95 % interval."""
    ours, theirs, pairs = read_runs(WITH), read_runs(WITHOUT), {view: pair(view) for view in VIEWS}
    lines = [
        "| seed | with norms, ten crops, % | without | difference | difference in the centre crop |",
        "|---|---|---|---|---|",
    ]
    for seed in pairs["ten"]:
        errors = [f"{float(runs[seed][VIEWS['ten']]):.2f}" for runs in (ours, theirs)]
        differences = [f"{pairs[view][seed]:+.2f}" for view in ("ten", "centre")]
        lines.append(f"| {seed} | " + " | ".join(errors + differences) + " |")
    means = []
    for view in ("ten", "centre"):
        found = estimate(list(pairs[view].values()))
        interval = "" if found.interval is None else f" ({found.interval[0]:+.2f} to {found.interval[1]:+.2f})"
        means.append(f"{found.mean:+.2f}{interval}")
    lines.append("| mean, 95 % interval | | | " + " | ".join(means) + " |")
    return "\n".join(lines) + "\n"
