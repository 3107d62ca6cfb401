"""The table of claims: what it prints follows from the data in the repository, computed here once more."""

import csv
import random
import re
import runpy
from collections.abc import Callable
from statistics import mean, stdev

import numpy as np
import pytest

from helpers.paths import ROOT

TABLES = runpy.run_path(str(ROOT / "docs" / "tables.py"))
PAGES = [ROOT / "results" / "README.md", ROOT / "README.md"]
QUANTILES = {3: 4.302653, 10: 2.262157, 12: 2.200985}  # of Student's t at 97.5 %, by number of pairs
NARROW, FIGURE_1 = "imagenette_narrow", "figure1_cifar10"


def _read(folder: str, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((ROOT / "results" / folder / name).open()))


def _rows() -> dict[str, list[str]]:
    """The cells behind each claim of the whole table, by the claim's text."""
    text = (ROOT / "results" / "README.md").read_text().split("<!-- table: claims -->\n")[1].split("<!-- end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in text.splitlines()[2:]]
    assert len(rows) >= 16
    return {row[1]: row for row in rows}


def _pairs(folder: str, base: Callable[[dict[str, str]], bool], arm: Callable[[dict[str, str]], bool]) -> list[float]:
    runs = _read(folder, "runs.csv")
    before, after = (
        {row["seed"]: float(row["top1_error_ten"]) for row in runs if is_of(row)} for is_of in (base, arm)
    )
    assert len(before) == len(after) == 3
    return [after[seed] - before[seed] for seed in before]


def _is_baseline(row: dict[str, str]) -> bool:
    return row["network"] == "alexnet_2012" and row["ablation"] == "none"


DIFFERENCES: dict[str, tuple[list[float], int]] = {
    "without normalisation": (_pairs(NARROW, _is_baseline, lambda row: row["ablation"] == "no_lrn"), 1),
    "pooling without overlap": (_pairs(NARROW, _is_baseline, lambda row: row["ablation"] == "no_overlap"), 1),
    "two towers without the exchange below fc8": (
        _pairs(NARROW, _is_baseline, lambda row: row["network"] == "no_exchange"),
        1,
    ),
    "ten crops instead of one": (
        [float(row["top1_error_ten"]) - float(row["top1_error_centre"]) for row in _read(NARROW, "runs.csv")],
        -1,
    ),
    "half precision (2012: of the exchange alone)": (
        _pairs(
            "bf16_photographs",
            lambda row: row["run"].startswith("precision_fp32"),
            lambda row: row["run"].startswith("precision_bf16"),
        ),
        0,
    ),
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_a_page_has_what_would_be_written(page: object) -> None:
    text = page.read_text()  # type: ignore[attr-defined]
    assert re.search(r"<!-- table: \w*claims -->\n\|", text)
    assert TABLES["fill_tables"](text) == text, "stale: run python docs/tables.py"
    stale = text.replace("to +11.5)", "to +11.4)")
    assert stale != text
    assert TABLES["fill_tables"](stale) == text


@pytest.mark.parametrize("claim", DIFFERENCES)
def test_a_difference_follows_from_its_runs(claim: str) -> None:
    pairs, sign = DIFFERENCES[claim]
    half = QUANTILES[len(pairs)] * stdev(pairs) / len(pairs) ** 0.5
    low, high = mean(pairs) - half, mean(pairs) + half
    row = _rows()[claim]
    assert [float(number) for number in re.findall(r"[-+][\d.]+", row[4])] == pytest.approx(
        [mean(pairs), low, high], abs=0.051
    )
    expected = "not seen" if low <= 0 <= high else "reproduced" if sign * low > 0 else "contradicted"
    assert row[6] == (expected if sign else "")
    assert row[5] == (f"2 x {len(pairs)}" if len(pairs) == 3 else str(len(pairs)))


def test_every_claim_that_was_run_is_recomputed() -> None:
    run = {claim for claim, row in _rows().items() if row[6] != "not run"}
    assert run == {*DIFFERENCES, *RATIOS, COLOUR, PARTED, RESTRICTED, RENUMBERED, NORMS}
    assert all(set(row[4:6] + row[7:]) == {""} for row in _rows().values() if row[6] == "not run")


RATIOS = {"epochs of tanh for each of ReLU, to 25 % training error on CIFAR-10": 25, "the same to 35 %": 35}
COLOUR = "in every run one tower becomes colour-agnostic, the other one colour-specific"


def _epochs(activation: str, seed: str, level: float) -> float | None:
    errors = [
        float(row["train_top1_error"])
        for row in _read(FIGURE_1, "figure1.csv")
        if (row["activation"], row["seed"]) == (activation, seed)
    ]
    for number, error in enumerate(errors):
        if error <= level:
            return number + (errors[number - 1] - level) / (errors[number - 1] - error)
    return None


@pytest.mark.parametrize("claim", RATIOS)
def test_a_ratio_follows_from_the_curves(claim: str) -> None:
    level = RATIOS[claim]
    relu, tanh = ([_epochs(name, seed, level) for seed in "012"] for name in ("relu", "tanh"))
    printed = [float(number) for number in re.findall(r"[\d.]+", _rows()[claim][4])]
    if None in tanh:
        longest = sum((row["activation"], row["seed"]) == ("tanh", "0") for row in _read(FIGURE_1, "figure1.csv"))
        assert tanh[0] is None
        assert 0 <= longest / relu[0] - printed[0] < 0.1
        assert _rows()[claim][6] == "reproduced, as a bound"
    else:
        pairs = [slow / fast for slow in tanh for fast in relu]
        assert printed == pytest.approx([mean(tanh) / mean(relu), min(pairs), max(pairs)], abs=0.051)
        assert _rows()[claim][6] == "reproduced"


def test_the_gaps_in_colour_follow_from_their_runs() -> None:
    ends: dict[tuple[str, str], float] = {}
    for row in _read(NARROW, "colour.csv"):  # in the order of steps
        ends[row["group"], row["seed"]] = abs(float(row["tower0"]) - float(row["tower1"]))
    printed = [float(number) for number in re.findall(r"[\d.]+", _rows()[COLOUR][4])]
    assert len(ends) == 12
    assert printed[:2] == pytest.approx([min(ends.values()), max(ends.values())], abs=0.0051)
    assert printed[2] > 0.05
    assert _rows()[COLOUR][6] == "not seen"


PARTED = "the same, of four layers on CIFAR-10"
RESTRICTED = "restricted connectivity makes it: the gap less that with the exchange at every layer"
RENUMBERED = "which tower has more colour is a renumbering"


def _kernels(group: str) -> dict[str, list[np.ndarray]]:
    """By seed the selectivities of both towers' kernels."""
    rows = [row for row in _read("towers_in_colour", "colour-kernels.csv") if row["group"] == group]
    return {
        seed: [
            np.array(
                [float(row["colour_selectivity"]) for row in rows if (row["seed"], row["tower"]) == (seed, tower)]
            )
            for tower in "01"
        ]
        for seed in sorted({row["seed"] for row in rows})
    }


def _gap(towers: list[np.ndarray]) -> float:
    return abs(float(towers[0].mean() - towers[1].mean()))


def test_the_towers_that_part_are_counted_once_more() -> None:
    """By dealing out the kernels with a generator of another kind."""
    runs = _kernels("conv3")
    assert len(runs) == 10
    assert {len(tower) for towers in runs.values() for tower in towers} == {16}
    shuffle, parted = random.Random(1), 0
    for towers in runs.values():
        pool, larger = np.concatenate(towers).tolist(), 0
        for _ in range(10_000):
            shuffle.shuffle(pool)
            larger += abs(mean(pool[:16]) - mean(pool[16:])) >= _gap(towers) - 1e-12
        assert not 0.045 < larger / 10_000 < 0.055, "too near to the limit for 10,000 draws to decide"
        parted += larger / 10_000 < 0.05
    gaps = [_gap(towers) for towers in runs.values()]
    row = _rows()[PARTED]
    printed = [float(number) for number in re.findall(r"[\d.]+", row[4])]
    assert printed == pytest.approx([parted, 10, mean(gaps), min(gaps), max(gaps)], abs=0.0051)
    assert (row[5], row[6]) == ("10", "reproduced" if parted == 10 else "not seen")


def test_the_gap_that_restricted_connectivity_makes() -> None:
    ours, theirs = _kernels("conv3"), _kernels("everywhere")
    assert sorted(ours) == sorted(theirs)
    pairs = [_gap(ours[seed]) - _gap(theirs[seed]) for seed in ours]
    half = QUANTILES[10] * stdev(pairs) / 10**0.5
    row = _rows()[RESTRICTED]
    printed = [float(number) for number in re.findall(r"[-+][\d.]+", row[4])]
    assert printed == pytest.approx([mean(pairs), mean(pairs) - half, mean(pairs) + half], abs=0.0051)
    assert row[6] == ("reproduced" if mean(pairs) > half else "contradicted" if mean(pairs) < -half else "not seen")


def test_the_renumbering_is_counted() -> None:
    runs = _kernels("conv3")
    count = sum(towers[0].mean() > towers[1].mean() for towers in runs.values())
    assert _rows()[RENUMBERED][4].startswith(f"tower 0 in {count} of 10 (")


NORMS = "a four-layer network on CIFAR-10, 13 % without normalisation, 11 % with"


def test_what_the_norms_of_2011_are_worth() -> None:
    runs = [row for row in _read("cifar_2011", "runs.csv") if row["network"] == "cifar_11pct"]
    ours, theirs = (
        {row["seed"]: float(row["top1_error_ten"]) for row in runs if row["ablation"] == ablation}
        for ablation in ("none", "no_lrn")
    )
    pairs = [theirs[seed] - ours[seed] for seed in ours if seed in theirs]
    assert len(pairs) >= 2
    half = {2: 12.706205, 3: 4.302653}[len(pairs)] * stdev(pairs) / len(pairs) ** 0.5
    row = _rows()[NORMS]
    printed = [float(number) for number in re.findall(r"[-+][\d.]+", row[4])]
    assert printed == pytest.approx([mean(pairs), mean(pairs) - half, mean(pairs) + half], abs=0.0051)
    verdict = "not seen" if abs(mean(pairs)) <= half else "reproduced" if mean(pairs) > 0 else "contradicted"
    assert row[5:7] == [f"2 x {len(pairs)}", verdict + (" so far" if len(pairs) < 3 else "")]


def test_the_front_page_has_the_same_figures() -> None:
    text = PAGES[1].read_text().split("<!-- table: short_claims -->\n")[1].split("<!-- end -->")[0]
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in text.splitlines()[2:]]
    assert len(rows) >= 7
    for linked, ours, *_, runs, verdict in rows:
        claim, folder = re.fullmatch(r"\[(.*)\]\((.*)\)", linked).groups()  # type: ignore[union-attr]
        assert (ROOT / folder).is_file()
        assert [ours, runs, verdict] == _rows()[claim][4:7]


def test_verdicts() -> None:
    judge = TABLES["CLAIMS"]["judge"]
    assert [judge(0.1, 2, 1), judge(-2, -0.1, 1), judge(-2, 0.1, 1), judge(-2, -0.1, -1), judge(0.1, 2, 0)] == [
        "reproduced",
        "contradicted",
        "not seen",
        "reproduced",
        "",
    ]
