"""The tables of results/cifar_2011 follow from its kept runs, read here as they lie, by other code."""

import csv
import json
import re
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import yaml

from helpers.paths import ROOT
from twotower.reports.collect import find_runs
from twotower.reports.compare import compare
from twotower.reports.spreadsheets import make_groups_spreadsheet
from twotower.reports.table import as_csv

FOLDER = ROOT / "results" / "cifar_2011"
TITLES = {  # network and ablation -> title of the row, epochs
    ("cifar_80sec", "none"): ("80sec", "10 of 10"),
    ("cifar_18pct", "none"): ("18pct", "40 of 140"),
    ("cifar_13pct", "none"): ("13pct", "40 of 160"),
    ("cifar_11pct", "none"): ("11pct", "40 of 520"),
    ("cifar_11pct", "no_lrn"): ("11pct without its norms", "40 of 520"),
}
QUANTILES = {2: 12.706205, 3: 4.302653}  # of Student's t at 97.5 %, by number of pairs


def read_kept() -> dict[tuple[str, str], dict[int, dict[str, Any]]]:
    """By network and ablation, and by seed: configuration, summary, errors."""
    arms: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for path in sorted((FOLDER / "kept").rglob("config.yaml")):
        config = yaml.safe_load(path.read_text())
        about, summary = (json.loads((path.parent / name).read_text()) for name in ("kept.json", "summary.json"))
        runs = arms.setdefault((config["network"]["name"], config["ablation"]), {})
        assert config["seed"] not in runs
        runs[config["seed"]] = {"config": config, "summary": summary, "folder": path.parent, **about["errors"]}
    return arms


KEPT = read_kept()


def table(name: str) -> list[list[str]]:
    """The cells of a table of the page, without its heads."""
    text = (FOLDER / "README.md").read_text().split(f"<!-- table: {name} -->\n")[1].split("<!-- end -->")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def numbers(cell: str) -> list[float]:
    return [float(number) for number in re.findall(r"[-+]?\d+(?:\.\d+)?", cell)]


def test_each_arm() -> None:
    rows = {row[0]: row for row in table("cifar_arms")}
    assert list(rows) == [title for title, _ in TITLES.values()]
    for names, (title, epochs) in TITLES.items():
        runs = KEPT.get(names, {})
        _, _, _, told_epochs, told_runs, ten, centre, minutes = rows[title]
        assert (told_epochs, told_runs) == (epochs, f"{len(runs)} of 3")
        if not runs:
            assert (ten, centre, minutes) == ("", "", "")
            continue
        for view, cell in (("centre", centre), ("ten", ten)):
            errors = [run[view][0] for run in runs.values()]
            spread = [stdev(errors)] if len(errors) > 1 else []
            if cell:
                assert numbers(cell) == pytest.approx([mean(errors), *spread], abs=0.0051)
            else:
                assert (view, title) in {("ten", "80sec"), ("ten", "18pct")}
        seconds = mean(run["summary"]["seconds"] for run in runs.values())
        assert numbers(minutes) == pytest.approx([seconds / 60], abs=0.51)


def test_the_norms() -> None:
    ours, theirs = KEPT["cifar_11pct", "none"], KEPT["cifar_11pct", "no_lrn"]
    *rows, means = table("cifar_norms")
    assert [int(row[0]) for row in rows] == sorted(set(ours) & set(theirs))
    assert len(rows) >= 2
    pairs: dict[str, list[float]] = {"ten": [], "centre": []}
    for row in rows:
        seed = int(row[0])
        for view in pairs:
            pairs[view].append(theirs[seed][view][0] - ours[seed][view][0])
        expected = [ours[seed]["ten"][0], theirs[seed]["ten"][0], pairs["ten"][-1], pairs["centre"][-1]]
        assert [float(cell) for cell in row[1:]] == pytest.approx(expected, abs=0.0051)
    for cell, values in zip(means[3:], pairs.values(), strict=True):
        half = QUANTILES[len(values)] * stdev(values) / len(values) ** 0.5
        assert numbers(cell) == pytest.approx([mean(values), mean(values) - half, mean(values) + half], abs=0.0051)


def test_the_runs_are_those_that_were_planned() -> None:
    """What each run was, and that it differs from its network's yaml in nothing but its length."""
    for names, runs in KEPT.items():
        assert set(runs) <= {0, 1, 2}
        for seed, run in runs.items():
            config, summary = run["config"], run["summary"]
            epochs = int(TITLES[names][1].split()[0])
            assert (config["schedule"]["epochs"], config["machine"]["precision"]) == (epochs, "fp32")
            assert summary["steps"] == epochs * 390
            lines = [json.loads(line) for line in (run["folder"] / "metrics.jsonl").read_text().splitlines()]
            last = [line for line in lines if line["event"] == "validation"][-1]
            assert last["top1_error"] == pytest.approx(run["centre"][0], abs=0.011)
            words = set(config["command"].split())
            assert {f"experiment={names[0]}", f"seed={seed}"} <= words
            free = r"(experiment|ablation|seed|data\.root|schedule\.epochs|machine\.threads|input\.cache|logging)=.*"
            assert all(re.fullmatch(free, word) for word in words - {"python", "launch/two_gpu.py", "resume=auto"})


def test_a_report_of_what_is_kept_says_the_same() -> None:
    """Its table, group by group; the text's command writes it."""
    runs = find_runs([str(FOLDER / "kept")])
    (base,) = (
        group.label
        for group in compare(runs).groups
        if (group.config.network.name, group.config.ablation) == ("cifar_11pct", "none")
    )
    found = compare(runs, base)
    again = list(csv.DictReader(as_csv(make_groups_spreadsheet(found)).splitlines()))
    rows = list(csv.DictReader((FOLDER / "table.csv").open()))
    assert [row["group"] for row in again] == [row["group"] for row in rows]
    for ours, theirs in zip(again, rows, strict=True):
        keys = [key for key in ours if re.fullmatch(r"top\d_error_(centre|ten)_.*", key) and ours[key]]
        assert keys
        assert [float(ours[key]) for key in keys] == pytest.approx([float(theirs[key]) for key in keys], abs=1e-3)


def test_nothing_large_is_kept() -> None:
    files = [path for path in Path(FOLDER / "kept").rglob("*") if path.is_file()]
    allowed = {"config.yaml", "kept.json", "metrics.jsonl", "summary.json", "versions.json", "energy.json"}
    assert {path.name for path in files} <= allowed
    assert max(path.stat().st_size for path in files) < 40_000
