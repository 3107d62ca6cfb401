"""The tables of results/towers_in_colour follow from its data, computed here once more by other code."""

import csv
import re
import runpy
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest

from helpers.paths import ROOT

FOLDER = ROOT / "results" / "towers_in_colour"
QUANTILE = 2.262157  # of Student's t at 97.5 % for ten pairs
TOWERS = runpy.run_path(str(ROOT / "docs" / "towers_in_colour.py"))


def read(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((FOLDER / name).open()))


def table(name: str) -> list[list[str]]:
    """The cells of a table of the page, without its heads."""
    text = (FOLDER / "README.md").read_text().split(f"<!-- table: {name} -->\n")[1].split("<!-- end -->")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def numbers(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"[-+]?\d+(?:\.\d+)?", cell)]


@pytest.fixture(scope="module")
def kernels() -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """By arm and seed, the selectivities of tower 0 and of tower 1."""
    rows = read("colour-kernels.csv")
    values: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        values.setdefault((row["group"], row["seed"], row["tower"]), []).append(float(row["colour_selectivity"]))
    assert {len(each) for each in values.values()} == {16}
    arms: dict[str, Any] = {}
    for arm, seed, _ in values:
        arms.setdefault(arm, {})[seed] = tuple(np.array(values[arm, seed, tower]) for tower in "01")
    return arms


def gaps_of(runs: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    return {seed: abs(float(first.mean() - second.mean())) for seed, (first, second) in runs.items()}


def chance_of(first: np.ndarray, second: np.ndarray) -> float:
    stream = np.random.Generator(np.random.MT19937(7))
    dealt = stream.permuted(np.tile(np.concatenate([first, second]), (10_000, 1)), axis=1)
    apart = np.abs(dealt[:, :16].mean(1) - dealt[:, 16:].mean(1))
    return float((apart >= abs(first.mean() - second.mean()) - 1e-12).mean())


def test_each_arm(kernels: dict[str, Any]) -> None:
    rows = {row[0].replace(" ", "_"): row for row in table("colour_arms")}
    assert set(rows) == set(kernels)
    assert {"conv3", "everywhere", "none", "swapped"} <= set(rows)
    base = gaps_of(kernels["conv3"])
    for arm, (_, _, runs, parted, gap, difference, more) in rows.items():
        gaps, chances = gaps_of(kernels[arm]), [chance_of(*towers) for towers in kernels[arm].values()]
        assert int(runs) == len(gaps) == 10
        sure = sum(chance < 0.045 for chance in chances)
        assert sure <= int(parted) <= sure + sum(0.045 <= chance <= 0.055 for chance in chances)
        assert numbers(gap) == pytest.approx(
            [mean(gaps.values()), min(gaps.values()), max(gaps.values())], abs=0.0051
        )
        assert int(more) == sum(first.mean() > second.mean() for first, second in kernels[arm].values())
        if not difference:
            assert arm in ("conv3", "swapped", "continued")
            continue
        pairs = [base[seed] - gaps[seed] for seed in base]
        half = QUANTILE * stdev(pairs) / 10**0.5
        assert numbers(difference) == pytest.approx([mean(pairs), mean(pairs) - half, mean(pairs) + half], abs=0.0051)
        if abs(mean(pairs)) < half:
            assert difference.endswith("not seen"), "Holm's correction never finds more than the interval"


def test_each_run(kernels: dict[str, Any]) -> None:
    rows = table("colour_runs")
    assert [row[0] for row in rows] == [str(seed) for seed in range(10)]
    for seed, *cells in rows:
        first, second = kernels["conv3"][seed]
        expected = [first.mean(), second.mean(), abs(first.mean() - second.mean())]
        assert [float(cell) for cell in cells[:3]] == pytest.approx(expected, abs=0.0051)
        assert float(cells[3]) == pytest.approx(chance_of(first, second), abs=0.03)
        assert float(cells[5]) == pytest.approx(gaps_of(kernels["everywhere"])[seed], abs=0.0051)
        rows_of = [row for row in read("colour.csv") if (row["group"], row["seed"]) == ("conv3", seed)]
        apart = {int(row["step"]): abs(float(row["tower0"]) - float(row["tower1"])) for row in rows_of}
        later = [step for step in apart if all(gap >= apart[1560] / 2 for at, gap in apart.items() if at >= step)]
        assert int(cells[4]) == min(later)


def test_the_gap_that_one_run_can_show(kernels: dict[str, Any]) -> None:
    """The text's figure: the gap that 5 % of random assignments exceed, in the middle of the runs of conv3."""
    limits = []
    for first, second in kernels["conv3"].values():
        stream = np.random.Generator(np.random.MT19937(8))
        dealt = stream.permuted(np.tile(np.concatenate([first, second]), (10_000, 1)), axis=1)
        limits.append(np.quantile(np.abs(dealt[:, :16].mean(1) - dealt[:, 16:].mean(1)), 0.95))
    text = " ".join((FOLDER / "README.md").read_text().split())
    here, full = re.findall(r"gaps from about (0\.\d+) on.*from about (0\.\d+) on", text)[0]
    assert float(here) == pytest.approx(np.median(limits), abs=0.006)
    assert float(full) == pytest.approx(np.median(limits) * (16 / 48) ** 0.5, abs=0.006)


def test_where_the_label_goes() -> None:
    def more(arm: str, step: str) -> dict[str, bool]:
        rows = [row for row in read("colour.csv") if (row["group"], row["step"]) == (arm, step)]
        return {row["seed"]: float(row["tower1"]) > float(row["tower0"]) for row in rows}

    before = more("conv3", "390")
    assert len(before) == 10
    for arm, cell in table("colour_swapped"):
        after = more(arm, "1170")
        kept = sum(after[seed] == (before[seed] if arm == "continued" else not before[seed]) for seed in before)
        assert numbers(cell) == [kept, 10]


def test_what_a_tower_is_worth() -> None:
    ends = {row["seed"]: row for row in read("colour.csv") if row["group"] == "conv3"}  # the last step stays
    costs: dict[str, list[tuple[float, float]]] = {}
    for row in read("towers.csv"):
        error, first, second = (
            float(row[key]) for key in ("top1_error", "top1_error_without_tower0", "top1_error_without_tower1")
        )
        end = ends[row["seed"]]
        lost = (first - error, second - error)
        costs.setdefault(row["class"], []).append(
            lost if float(end["tower0"]) > float(end["tower1"]) else (lost[1], lost[0])
        )
    rows = table("colour_costs")
    assert len(rows) == len(costs) == 10
    for name, *cells in rows:
        assert len(costs[name]) == 10
        expected = [mean(pair[column] for pair in costs[name]) for column in range(2)]
        assert [float(cell) for cell in cells] == pytest.approx(expected, abs=0.051)


def test_holms_correction() -> None:
    """The smallest against 5 % / 3, the next one against 5 % / 2; after the first that fails, none is left."""
    correct = TOWERS["correct"]
    assert correct([0.04, 0.01, 0.02]) == [True, True, True]
    assert correct([0.04, 0.01, 0.03]) == [False, True, False]
    assert correct([0.02, 0.02, 0.02]) == [False, False, False]
    assert correct([0.2]) == [False]
