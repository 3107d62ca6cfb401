"""What is lost without a tower: the same as in a network in one piece whose weights from that tower are zeros."""

import csv
import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from helpers.fake_runs import NUM_CLASSES, draw_images, fake_run
from helpers.paths import ROOT
from helpers.towers import load_network
from twotower.config import NetworkConfig
from twotower.distributed.exchange import InProcessExchange
from twotower.evaluation.without_tower import WithoutTower, check_separable
from twotower.figures.confusion import Confusion
from twotower.figures.tower_costs import MOST_DRAWN, TowerCosts, describe, summarise, write_tower_costs
from twotower.model.tower import Tower, forward

NARROW = {"width": 0.0625, "image_size": 64, "lrn": None}


def make_towers(network: NetworkConfig) -> list[Tower]:
    """Towers with weights that are large enough for zeros to matter, in float64."""
    torch.manual_seed(0)
    towers = [Tower(network, 6, tower, 0).double().eval() for tower in range(2)]
    for tower in towers:
        for parameter in tower.parameters():
            torch.nn.init.normal_(parameter, std=2 / max(1, parameter[0].numel()) ** 0.5)
    return towers


def zero_what_reads(towers: Sequence[Tower], tower: int) -> None:
    """Sets to zero each weight, of either tower, that multiplies what `tower` has computed and hands on."""
    for reader in towers:
        for name, parameter in reader.paper_named_parameters().items():
            part = name.split(".")[1]
            if part == ("weight_own" if reader.tower == tower else "weight_other"):
                parameter.data.zero_()


@pytest.mark.parametrize("name", ["alexnet_2012", "no_exchange"])
@pytest.mark.parametrize("tower", [0, 1])
def test_a_tower_that_is_left_out_counts_as_zero(name: str, tower: int) -> None:
    network = load_network(name, **NARROW)
    towers = make_towers(network)
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        found: dict[int, Tensor] = {left_out: forward(towers, images, WithoutTower(left_out)) for left_out in (0, 1)}
        zero_what_reads(towers, tower)
        expected = forward(towers, images, WithoutTower(1 - tower)), forward(towers, images, InProcessExchange())
    assert torch.allclose(found[tower], expected[1], rtol=0, atol=1e-12)
    assert expected[1].abs().max() > 0.1
    assert not torch.allclose(found[1 - tower], expected[1], rtol=0, atol=1e-3)
    # Without both nothing is left but the biases of the last layer.
    biases = [reader.paper_named_parameters()["fc8.bias"] for reader in towers]
    assert torch.allclose(expected[0], torch.cat(biases).expand(3, -1))


def test_a_network_of_one_tower_has_none_to_leave_out() -> None:
    with pytest.raises(ValueError, match="one_tower has one tower, which cannot be left out"):
        check_separable(load_network("one_tower"))
    check_separable(load_network("no_exchange"))


def count(right: Sequence[int], of: int = 10) -> Confusion:
    """The diagonal as given, the rest of each class taken for the next one."""
    counts = np.diag(np.array(right))
    for row, value in enumerate(right):
        counts[row, (row + 1) % len(right)] += of - value
    return Confusion([f"class{i}" for i in range(len(right))], counts)


def test_costs_are_counted_by_class() -> None:
    costs = TowerCosts(count([9, 8, 5]), (count([3, 8, 4]), count([9, 1, 5])))
    assert costs.costs.tolist() == [[60, 0, 10], [0, 70, 0]]
    assert costs.order() == [0, 2, 1]
    numbers = summarise(costs)
    assert numbers["top1_error"] == pytest.approx(100 * 8 / 30)
    assert numbers["top1_error_without"] == pytest.approx([50, 50])
    assert numbers["cost_by_class"]["class1"] == [0, 70]
    lines = describe(costs)
    assert lines[0] == "both towers: top-1 error 26.67 % of 30 images"
    assert "without tower 0: 50.00 %; most of all class0 needs it, which loses +60.0 points, and +0.0" in lines[1]
    assert "without tower 1: 50.00 %; most of all class1 needs it, which loses +70.0 points, and +0.0" in lines[2]


@pytest.mark.parametrize("num_classes", [4, MOST_DRAWN + 5])
def test_the_drawing_and_its_data(num_classes: int, tmp_path: Path) -> None:
    both, without = count([8] * num_classes), count([*range(4), *[2] * (num_classes - 4)])
    picture, table, numbers = write_tower_costs(TowerCosts(both, (without, both)), "a run", tmp_path / "towers.png")
    rows = list(csv.DictReader(table.open()))
    assert [float(row["top1_error_without_tower0"]) for row in rows[:4]] == [100, 90, 80, 70]
    assert {float(row["top1_error"]) for row in rows} == {20}
    assert json.loads(numbers.read_text())["num_images"] == 10 * num_classes
    with Image.open(picture) as image:
        assert min(image.size) > 300
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    images = draw_images(tmp_path / "images")
    run = fake_run(tmp_path / "run", images, "logging=no_wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["figure.py", "towers", "run"])
    runpy.run_path(str(ROOT / "launch" / "figure.py"), run_name="__main__")
    assert f"of {3 * NUM_CLASSES} images" in capsys.readouterr().out
    assert len(list(csv.DictReader((run / "figures" / "towers.csv").open()))) == NUM_CLASSES
    stored = [file.name for file in (run / "predictions").glob("*.safetensors")]
    assert len(stored) == 1, "those of both towers; the others must not be taken for the run's own"

    fake_run(tmp_path / "one", images, "logging=no_wandb", "network=one_tower")
    monkeypatch.setattr(sys, "argv", ["figure.py", "towers", "one"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "launch" / "figure.py"), run_name="__main__")
    assert str(end.value) == "error: one_tower has one tower, which cannot be left out; give a run of two towers."
