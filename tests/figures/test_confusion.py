"""Which classes are taken for which, counted against a loop over the images."""

import csv
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.fake_runs import NUM_CLASSES, draw_images, fake_run
from helpers.paths import ROOT
from twotower.figures.confusion import Confusion, count_confusion, summarise, write_confusion


def test_counts_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(200, 5, generator=generator), torch.randint(5, (200,), generator=generator)
    confusion = count_confusion(scores, labels, list("abcde"))
    expected = [[0] * 5 for _ in range(5)]
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        expected[label][row.index(max(row))] += 1
    assert confusion.counts.tolist() == expected
    for label, error in enumerate(confusion.errors):
        assert error == pytest.approx(100 * (1 - expected[label][label] / sum(expected[label])))
    numbers = summarise(confusion)
    right = sum(expected[i][i] for i in range(5))
    assert numbers["top1_error"] == pytest.approx(100 * (1 - right / 200))
    assert list(numbers["error_by_class"].values()) == sorted(numbers["error_by_class"].values(), reverse=True)
    worst = max(expected[i][j] for i in range(5) for j in range(5) if i != j)
    assert numbers["worst_pairs"][0]["images"] == worst


def test_pairs_name_the_class_and_what_it_was_taken_for() -> None:
    confusion = Confusion(["cat", "dog", "eel"], np.array([[6, 4, 0], [1, 9, 0], [0, 0, 0]]))
    assert confusion.worst_pairs() == [("cat", "dog", 4, 40.0), ("dog", "cat", 1, 10.0)]
    assert list(summarise(confusion)["error_by_class"]) == ["cat", "dog"], "eel has no images"


@pytest.mark.parametrize("num_classes", [4, 60])
def test_the_drawing_and_its_data(num_classes: int, tmp_path: Path) -> None:
    stream = np.random.default_rng(0)
    counts = stream.integers(0, 4, (num_classes, num_classes)) + 20 * np.eye(num_classes, dtype=np.int64)
    confusion = Confusion([f"class{i}" for i in range(num_classes)], counts)
    picture, table, numbers = write_confusion(confusion, "a run", tmp_path / "confusion.png")
    rows = list(csv.DictReader(table.open()))
    assert sum(int(row["images"]) for row in rows) == counts.sum()
    assert json.loads(numbers.read_text())["num_images"] == counts.sum()
    with Image.open(picture) as image:
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20


def test_the_command_uses_the_runs_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fake_run(tmp_path / "run", draw_images(tmp_path / "images"), "logging=no_wandb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["figure.py", "confusion", "run=run"])
    runpy.run_path(str(ROOT / "launch" / "figure.py"), run_name="__main__")
    assert "taken for" in capsys.readouterr().out
    assert json.loads((run / "figures" / "confusion.json").read_text())["num_images"] == 3 * NUM_CLASSES
    assert list((run / "predictions").glob("*.safetensors")), "stored for the next time"
