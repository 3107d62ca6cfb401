"""The tables of results/towers_in_colour/README.md: do the towers part in colour? docs/tables.py writes them."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from scipy import stats

from twotower.figures.figure3 import measure_gap
from twotower.reports.compare import estimate

FOLDER = "towers_in_colour"
PLACE = Path(__file__).resolve().parents[1] / "results" / FOLDER
CONFIDENCE = 0.95
BASE = "conv3"
ARMS = {  # name in the data -> in words
    BASE: "exchange before conv3 and fc4, as in 2012",
    "everywhere": "before every layer that can have it",
    "none": "before fc4 alone",
    "colour_noise": "as conv3, with colour noise",
    "swapped": "from conv3 after an epoch, conv1 swapped",
    "continued": "the same without the swap",
}
COMPARED = ("everywhere", "none", "colour_noise")  # with BASE
SWAP_STEP = 390  # an epoch

Towers = tuple[list[float], list[float]]


@dataclass(frozen=True)
class Arm:
    """What came out of one arm.

    Attributes:
        kernels: by seed the colour selectivity of each kernel of tower 0 and of tower 1 at the end.
        hours: of all its runs.
    """

    name: str
    kernels: dict[str, Towers]
    hours: float

    @property
    def gaps(self) -> dict[str, float]:
        """By seed, how far the means of the two towers are apart."""
        return {seed: abs(fmean(first) - fmean(second)) for seed, (first, second) in self.kernels.items()}

    @property
    def chances(self) -> dict[str, float]:
        """By seed, the share of chance assignments of the kernels to two towers that have a gap as large."""
        return {seed: measure_gap(*towers)["p_value"] for seed, towers in self.kernels.items()}

    @property
    def parted(self) -> int:
        """The number of runs whose towers part."""
        return sum(chance < 1 - CONFIDENCE for chance in self.chances.values())

    @property
    def tower_0_has_more(self) -> int:
        """The number of runs in which tower 0 is the one with more colour."""
        return sum(fmean(first) > fmean(second) for first, second in self.kernels.values())

    def write_gaps(self) -> str:
        """Mean, lowest and highest."""
        gaps = list(self.gaps.values())
        return f"{fmean(gaps):.2f} ({min(gaps):.2f} to {max(gaps):.2f})"


def read(name: str) -> list[dict[str, str]]:
    """The rows of a CSV of the folder."""
    with (PLACE / name).open() as file:
        return list(csv.DictReader(file))


def measure_arm(name: str) -> Arm:
    """Raises: ValueError for an arm that was not run."""
    kernels: dict[str, Towers] = {}
    for row in read("colour-kernels.csv"):
        if row["group"] == name:
            kernels.setdefault(row["seed"], ([], []))[int(row["tower"])].append(float(row["colour_selectivity"]))
    if not kernels:
        raise ValueError(f"results/{FOLDER}/colour-kernels.csv has no runs of {name}.")
    seconds = sum(float(row["seconds"]) for row in read("runs.csv") if row["run"].split("/")[0] == name)
    return Arm(name, kernels, seconds / 3600)


def pair(base: Arm, arm: Arm) -> list[float]:
    """The gap of the base less that of an arm, by seed. Raises: ValueError if their seeds differ."""
    if sorted(base.gaps) != sorted(arm.gaps):
        raise ValueError(f"{base.name} has seeds {sorted(base.gaps)}, and {arm.name} has {sorted(arm.gaps)}.")
    return [base.gaps[seed] - arm.gaps[seed] for seed in base.gaps]


def correct(chances: Sequence[float]) -> list[bool]:
    """Which of several comparisons Holm's correction at 5 % leaves."""
    order = sorted(range(len(chances)), key=lambda i: chances[i])
    left, going = [False] * len(chances), True
    for rank, place in enumerate(order):
        going = going and chances[place] <= (1 - CONFIDENCE) / (len(chances) - rank)
        left[place] = going
    return left


def _list_arms() -> list[str]:
    run = {row["group"] for row in read("colour-kernels.csv")}
    return [name for name in ARMS if name in run]


def write_arms() -> str:
    """A row for each arm."""
    base = measure_arm(BASE)
    arms = [measure_arm(name) for name in _list_arms()]
    compared = [arm for arm in arms if arm.name in COMPARED]
    pairs = {arm.name: pair(base, arm) for arm in compared}
    left = dict(zip(pairs, correct([float(stats.ttest_1samp(p, 0).pvalue) for p in pairs.values()]), strict=True))
    lines = [
        "| arm | exchange | runs | towers that part | gap, mean (lowest to highest) | conv3 has more by | "
        "tower 0 has more colour |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in arms:
        difference = ""
        if arm.name in pairs:
            found, seen = estimate(pairs[arm.name]), "seen" if left[arm.name] else "not seen"
            assert found.interval is not None
            difference = f"{found.mean:+.2f} ({found.interval[0]:+.2f} to {found.interval[1]:+.2f}), {seen}"
        name, runs = arm.name.replace("_", " "), len(arm.gaps)
        lines.append(
            f"| {name} | {ARMS[arm.name]} | {runs} | {arm.parted} | {arm.write_gaps()} | {difference} | "
            f"{arm.tower_0_has_more} |"
        )
    return "\n".join(lines) + "\n"


def _find_steps(group: str) -> dict[str, int]:
    """By seed the first of the measured steps from which on the gap is at least half of that at the end."""
    courses: dict[str, list[tuple[int, float]]] = {}
    for row in read("colour.csv"):  # in the order of steps
        if row["group"] == group:
            gap = abs(float(row["tower0"]) - float(row["tower1"]))
            courses.setdefault(row["seed"], []).append((int(row["step"]), gap))
    found = {}
    for seed, course in courses.items():
        lower = [place for place, (_, gap) in enumerate(course) if gap < course[-1][1] / 2]
        found[seed] = course[lower[-1] + 1 if lower else 0][0]
    return found


def write_runs() -> str:
    """Of each run of conv3: both towers, the gap, its chance and since when; and the other arms' gaps by seed."""
    base, others = measure_arm(BASE), [measure_arm(name) for name in COMPARED if name in _list_arms()]
    titles, steps = [f"gap, {arm.name}".replace("_", " ") for arm in others], _find_steps(BASE)
    heads = ["seed", "tower 0", "tower 1", "gap", "p", "from step", *titles]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for seed, (first, second) in base.kernels.items():
        values = [f"{value:.2f}" for value in (fmean(first), fmean(second), base.gaps[seed], base.chances[seed])]
        values += [str(steps[seed]), *(f"{arm.gaps[seed]:.2f}" for arm in others)]
        lines.append(f"| {seed} | " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def _more_colour(group: str, step: int | None) -> dict[str, int]:
    """By seed the tower that has more colour at a step; None: at the end."""
    found: dict[str, int] = {}
    for row in read("colour.csv"):  # in the order of steps
        if row["group"] == group and step in (None, int(row["step"])):
            found[row["seed"]] = int(float(row["tower1"]) > float(row["tower0"]))
    return found


def write_swapped() -> str:
    """Where the label goes when conv1 is swapped, and where it goes when it is not."""
    before = _more_colour(BASE, SWAP_STEP)
    lines = ["| arm | the tower with the kernels of more colour has more at the end |", "|---|---|"]
    for name, is_swapped in (("swapped", True), ("continued", False)):
        if name in _list_arms():
            after = _more_colour(name, None)
            kept = sum(after[seed] == (1 - before[seed] if is_swapped else before[seed]) for seed in after)
            lines.append(f"| {name} | {kept} of {len(after)} |")
    return "\n".join(lines) + "\n"


def write_costs() -> str:
    """What each class loses without the tower that has more colour, and without the other: means over seeds."""
    more, costs = _more_colour(BASE, None), {}
    for row in read("towers.csv"):
        without = [float(row[f"top1_error_without_tower{tower}"]) - float(row["top1_error"]) for tower in range(2)]
        tower = more[row["seed"]]
        costs.setdefault(row["class"], []).append((without[tower], without[1 - tower]))
    lines = ["| class | without the tower with more colour | without the other |", "|---|---|---|"]
    means = {name: [fmean(column) for column in zip(*values, strict=True)] for name, values in costs.items()}
    for name, (colour, other) in sorted(means.items(), key=lambda item: item[1][1] - item[1][0]):
        lines.append(f"| {name} | {colour:+.1f} | {other:+.1f} |")
    return "\n".join(lines) + "\n"
