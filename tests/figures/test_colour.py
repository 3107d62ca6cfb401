"""Do the towers part in colour? The figure of several runs, and what it says of kernels that are known."""

import csv
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from helpers.fake_runs import fake_run
from helpers.paths import ROOT
from twotower.figures.colour_selectivity import Course, describe, summarise, write_colour
from twotower.figures.figure3 import Kernels

GREY = torch.ones(8, 3, 5, 5)
OPPONENT = torch.tensor([1.0, -1.0, 0.0])[None, :, None, None].expand(8, 3, 5, 5)
MIXED = torch.cat([GREY[:4], OPPONENT[:4]])


def course(group: str, seed: int, first: torch.Tensor, second: torch.Tensor) -> Course:
    history = [(10, [0.6, 0.7]), (20, [0.5, 0.7])]
    return Course(group, seed, Kernels(Path(f"seed{seed}"), 20, "conv1", [first, second], history))


COURSES = [course("a", 0, GREY, OPPONENT), course("a", 1, OPPONENT, GREY), course("b", 0, MIXED, MIXED)]


def test_runs_whose_towers_part_are_counted() -> None:
    groups = summarise(COURSES)
    assert list(groups) == ["a", "b"]
    first, second = groups["a"], groups["b"]
    assert (first["runs"], first["parted"], first["tower_0_has_more"]) == (2, 2, 1)
    assert (first["gap_lowest"], first["gap_mean"], first["gap_highest"]) == pytest.approx((1, 1, 1))
    assert (second["runs"], second["parted"], second["gap_mean"]) == (1, 0, 0)
    assert describe(COURSES)[0] == (
        "a: the towers part in 2 of 2 runs; gap 1.00 (1.00 to 1.00); tower 0 has more colour in 1"
    )


def test_the_drawing_and_its_data(tmp_path: Path) -> None:
    written = write_colour(COURSES, tmp_path / "colour.png")
    assert [path.name for path in written] == ["colour.png", "colour.csv", "colour.json", "colour-kernels.csv"]
    rows = list(csv.DictReader(written[1].open()))
    assert [(row["group"], row["seed"], row["step"], row["tower0"]) for row in rows[:3]] == [
        ("a", "0", "10", "0.6000"),
        ("a", "0", "20", "0.5000"),
        ("a", "1", "10", "0.6000"),
    ]
    kernels = list(csv.DictReader(written[3].open()))
    assert len(kernels) == 3 * 16
    assert {float(row["colour_selectivity"]) for row in kernels if row["group"] == "a" and row["tower"] == "0"} == {
        0,
        1,
    }
    assert json.loads(written[2].read_text())["a"]["parted"] == 2
    with Image.open(written[0]) as image:
        assert min(image.size) > 200


def launch(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["figure.py", *arguments])
    runpy.run_path(str(ROOT / "launch" / "figure.py"), run_name="__main__")


def test_the_command_takes_folders_for_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs of one folder are one group, unless their settings differ; other runs' weights are no difference."""
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        options = ("logging=no_wandb", f"seed={seed}")
        fake_run(tmp_path / "plain" / f"seed{seed}", tmp_path, *options, seed=seed)
        weights = f"initial_weights.path={tmp_path}/plain/seed{seed}"
        fake_run(tmp_path / "begun" / f"seed{seed}", tmp_path, *options, weights, seed=seed)
        fake_run(tmp_path / "mixed" / f"seed{seed}", tmp_path, *options, f"optim.momentum=0.{seed + 1}", seed=seed)
    launch(monkeypatch, "colour", "plain/seed0", "plain/seed1", "begun/*", "mixed/*", "output=colour.svg")
    said = capsys.readouterr().out.splitlines()
    assert [line.split(": the towers part in ")[0] for line in said[:-1]] == [
        "plain",
        "begun",
        "mixed, none",
        "mixed, none, optim.momentum=0.2",
    ]
    assert " of 2 runs; gap " in said[0]
    assert (tmp_path / "colour-kernels.csv").is_file()

    fake_run(tmp_path / "one", tmp_path, "logging=no_wandb", "network=one_tower")
    with pytest.raises(SystemExit, match="error: one has one tower, and colour compares two; leave it out"):
        launch(monkeypatch, "colour", "plain/seed0", "one")
