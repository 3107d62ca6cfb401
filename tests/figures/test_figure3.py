"""Figure 3: the kernels of both towers in the checkpoint, and their colour selectivity."""

import csv
import json
import runpy
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from helpers.fake_runs import fake_run
from helpers.paths import ROOT
from twotower.figures.figure3 import Kernels, measure_gap, read_kernels, summarise, write_figure3
from twotower.model.conv1_kernels import mosaic
from twotower.runs import checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two towers with random kernels, and a journal of three measurements."""
    folder = fake_run(tmp_path / "run", tmp_path / "nowhere", "network.width=0.25", "logging=no_wandb")
    lines = [
        {"event": "scales", "step": step, "tower0/conv1/colour": 0.6 - step / 100, "tower1/conv1/colour": 0.7}
        for step in (5, 10, 20)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def of(first: torch.Tensor, second: torch.Tensor) -> Kernels:
    return Kernels(Path("run"), 1, "conv1", [first, second], [])


def more(first: torch.Tensor, second: torch.Tensor) -> tuple[int, float, float]:
    """Index of the more colourful tower, probability that a kernel of it sees more colour, and p value."""
    more = summarise(of(first, second))["more_colour"]
    return more["tower"], more["probability"], more["p_value"]


GREY = torch.ones(1, 3, 5, 5)
OPPONENT = torch.tensor([1.0, -1.0, 0.0])[None, :, None, None].expand(1, 3, 5, 5)


def test_kernels_are_those_of_the_checkpoint(run: Path) -> None:
    read = read_kernels(run)
    path = checkpoint.find(run)
    for tower, kernels in enumerate(read.of_tower):
        assert torch.equal(kernels, load_file(path / f"tower{tower}.safetensors")["conv1.weight"])
    assert (read.layer, len(read.of_tower[0])) == ("conv1", 12)
    assert [step for step, _ in read.history] == [5, 10, 20]
    assert [tower0 for _, (tower0, _) in read.history] == pytest.approx([0.55, 0.5, 0.4])


def test_the_gap_is_compared_with_chance_assignments() -> None:
    """Against all assignments where there are few, and against draws of our own where there are many."""
    few = [0.1, 0.2, 0.3], [0.7, 0.8]
    pool = [*few[0], *few[1]]
    gaps = [
        abs(np.mean([pool[i] for i in chosen]) - np.mean([pool[i] for i in range(5) if i not in chosen]))
        for chosen in combinations(range(5), 3)
    ]
    found = measure_gap(*few)
    assert found["value"] == pytest.approx(0.55)
    assert found["p_value"] == pytest.approx(sum(gap >= 0.55 - 1e-12 for gap in gaps) / len(gaps))

    stream = np.random.default_rng(3)
    many = stream.uniform(0, 1, 16), stream.uniform(0.2, 1, 16)
    observed, larger, whole = abs(many[0].mean() - many[1].mean()), 0, np.concatenate(many)
    for _ in range(20_000):
        dealt = stream.permutation(whole)
        larger += abs(dealt[:16].mean() - dealt[16:].mean()) >= observed
    assert measure_gap(*many)["p_value"] == pytest.approx(larger / 20_000, abs=0.02)
    assert measure_gap(*many) == measure_gap(*many), "the same numbers every time"
    assert measure_gap(many[0], many[0] + 2)["p_value"] < 0.001
    assert measure_gap(many[0], many[0])["p_value"] == 1


def test_towers_that_differ_and_towers_that_do_not() -> None:
    grey, colour = GREY.expand(4, 3, 5, 5), OPPONENT.expand(3, 3, 5, 5)
    assert summarise(of(grey, colour))["mean_selectivity"] == pytest.approx([0, 1])
    assert more(grey, colour)[:2] == (1, 1.0)
    assert more(colour, grey)[:2] == (0, 1.0)
    assert more(colour, colour)[1:] == (0.5, pytest.approx(1))
    mixed = torch.cat([GREY, OPPONENT])
    assert more(mixed, OPPONENT)[:2] == (1, 0.75)


def test_few_kernels_show_little() -> None:
    """Four kernels all exceed four others: 2 of the 70 ways to part eight do (exact, two-sided)."""
    levels = torch.linspace(0, 1, 8, dtype=torch.float64)
    kernels = torch.stack([GREY[0].double() * (1 - level) + OPPONENT[0].double() * level for level in levels])
    assert more(kernels[:4], kernels[4:]) == (1, 1.0, pytest.approx(2 / 70))


def test_a_mosaic_has_each_kernel_in_its_place() -> None:
    kernels = torch.randn(18, 3, 5, 5)
    picture = mosaic(kernels, -4, 4)
    assert picture.shape == (2 * 6 + 1, 16 * 6 + 1, 3)
    for number, (row, column) in {0: (0, 0), 15: (0, 15), 17: (1, 1)}.items():
        part = picture[row * 6 + 1 : row * 6 + 6, column * 6 + 1 : column * 6 + 6]
        assert np.allclose(part, ((kernels[number] + 4) / 8).permute(1, 2, 0).numpy(), atol=1e-6)
    assert (picture[:, ::6] == 1).all(), "a white pixel between them"


def test_the_command_writes_the_picture_and_its_data(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sent: list[tuple[Path, str, dict[str, Path]]] = []
    target = "twotower.figures.draw_figure.log_figures"
    monkeypatch.setattr(target, lambda run, config, drawn: sent.append((run, config.name, drawn)))
    monkeypatch.setattr(sys, "argv", ["figure.py", "figure3", "runs=[run]", "output=kernels.png"])
    runpy.run_path(str(ROOT / "launch" / "figure.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert sent == [(run, "fake", {"figure3": Path("kernels.png")})], "to W&B too"
    summary = summarise(read_kernels(run))
    assert f"tower 0: mean colour selectivity {summary['mean_selectivity'][0]:.3f}" in printed
    assert f"with probability {summary['more_colour']['probability']:.2f}" in printed
    rows = list(csv.DictReader((tmp_path / "kernels.csv").open()))
    assert len(rows) == 24
    assert json.loads((tmp_path / "kernels.json").read_text()) == summary
    with Image.open(tmp_path / "kernels.png") as image:
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 500, "kernels in colour"


def test_one_tower_is_drawn_too(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", tmp_path / "nowhere", "network=one_tower")
    kernels = read_kernels(run)
    assert len(kernels.of_tower) == 1
    assert "more_colour" not in summarise(kernels)
    assert all(path.stat().st_size > 50 for path in write_figure3(kernels, tmp_path / "one.svg"))
