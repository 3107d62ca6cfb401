"""Runs read back, and Figure 1 from them: curves, epochs to 25 %, ratios, and runs that must not be compared."""

import csv
import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from helpers.fake_runs import fake_config
from helpers.paths import ROOT
from twotower.figures import figure1
from twotower.figures.curves import name_runs, write_curves
from twotower.figures.figure1 import Curve, describe, make_curves, summarise, write_figure1
from twotower.runs.failure import note_failure
from twotower.runs.history import read_history


def leave_run(folder: Path, errors: list[float], *overrides: str, finished: bool = True) -> Path:
    """config.yaml and metrics.jsonl of a run: each epoch in windows of 3 steps and 1, whose mean is its error."""
    folder.mkdir(parents=True)
    config = fake_config(Path("nowhere"), "network=cifar_four_layer", "network.width=1", *overrides)
    OmegaConf.save(OmegaConf.structured(config), folder / "config.yaml")
    lines: list[dict[str, Any]] = []
    for number, error in enumerate(errors):
        step = 4 * number
        common = {"top5_error": 0.0, "images_per_second": 9.0, "learning_rate": config.optim.learning_rate}
        first = {"loss": 1.0, "top1_error": error + 3, **common}
        last = {"loss": 5.0, "top1_error": error - 9, **common}
        lines.append({"event": "train", "step": step + 3, "epoch": number + 0.75, **first})
        lines.append({"event": "scales", "step": step + 4, "tower0/conv1/weight": 0.1})
        lines.append({"event": "train", "step": step + 4, "epoch": number + 1.0, **last})
        measured = {"loss": 2.0, "top1_error": error + 5, "top5_error": 1.0}
        lines.append({"event": "validation", "step": step + 4, "epoch": number + 1.0, **measured})
    if finished:
        lines.append({"event": "end", "step": 4 * len(errors)})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def runs(tmp_path: Path) -> list[Path]:
    """ReLU reaches 25 % after 2.5 and 2 epochs, tanh after 6 and 7.5."""
    folders = []
    for seed, (relu, tanh) in enumerate(
        (
            ([50, 30, 20, 15], [60, 50, 40, 35, 30, 25]),
            ([45, 25, 24], [60, 50, 45, 40, 35, 30, 26, 24]),
        )
    ):
        for name, errors in (("relu", relu), ("tanh", tanh)):
            overrides = (f"network.activation={name}", f"seed={seed}", "optim.learning_rate=0.01")
            folders.append(leave_run(tmp_path / f"{name}{seed}", errors, *overrides))
    return folders


def test_an_epochs_error_is_the_mean_over_its_steps(tmp_path: Path) -> None:
    """Windows count by their steps: three at +3 and one at -9."""
    run = leave_run(tmp_path / "run", [40.0, 30.0], finished=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "st')  # the last line of a run that was killed
    history = read_history(run)
    assert not history.finished
    assert [epoch.epoch for epoch in history.epochs] == [1, 2]
    assert [epoch.train["top1_error"] for epoch in history.epochs] == [40.0, 30.0]
    assert [epoch.train["loss"] for epoch in history.epochs] == [2.0, 2.0]
    assert [epoch.validation["top1_error"] for epoch in history.epochs] == [45.0, 35.0]


def test_epochs_to_a_level_and_their_ratio(tmp_path: Path) -> None:
    curves = make_curves([read_history(run) for run in runs(tmp_path)])
    assert [(curve.activation, curve.seed) for curve in curves] == [
        ("relu", 0),
        ("relu", 1),
        ("tanh", 0),
        ("tanh", 1),
    ]
    summary = summarise(curves)
    assert summary["activations"]["relu"]["epochs"] == [2.5, 2.0]
    assert summary["activations"]["tanh"]["epochs"] == [6.0, 7.5]
    ratio = summary["ratios_to_relu"]["tanh"]
    assert (ratio["mean"], ratio["lowest"], ratio["highest"]) == (3.0, 2.4, 3.75)
    never = [replace(curve, epochs=[1.0], errors=[40.0]) if curve.seed == 1 else curve for curve in curves]
    summary = summarise(never)
    assert summary["activations"]["tanh"]["epochs"] == [6.0, None]
    assert summary["ratios_to_relu"] == {}, "no ratio where one of them never gets there"


def test_a_part_of_an_epoch_is_no_epoch(tmp_path: Path) -> None:
    """A run that max_steps ended within its first epoch, and one within its third."""
    assert Curve("a", "relu", 0, 0.01, [0.03], [80.0]).epochs_to(85) == 0.03
    curve = Curve("a", "relu", 0, 0.01, [1.0, 2.0, 2.5], [60.0, 50.0, 40.0])
    assert curve.epochs_to(45) == 2.25
    assert curve.epochs_to(55) == 1.5
    run = leave_run(tmp_path / "run", [80.0])
    journal = run / "metrics.jsonl"
    journal.write_text(journal.read_text().replace('"epoch": 1.0', '"epoch": 0.03'))
    (read,) = make_curves([read_history(run)])
    assert (read.epochs, read.errors) == ([0.03], [80.0])
    _, table, _ = write_figure1([read], 85, tmp_path / "figure1.png")
    assert [row["epoch"] for row in csv.DictReader(table.open())] == ["0.03"]


def test_what_is_said_of_a_level(tmp_path: Path) -> None:
    relu = [Curve("a", "relu", seed, 0.01, [1.0, 2.0], [60.0, error]) for seed, error in enumerate((50, 40, 52))]
    tanh = [Curve("b", "tanh", 0, 0.02, [1.0], [80.0])]
    part = [Curve("c", "sigmoid", 0, 0.03, [0.03], [80.0])]
    assert describe([*relu, *tanh, *part], 50) == [
        "ReLU, rate 0.01: 50 % after 2.00, 1.50 epochs, not within 2 epochs (1 run)",
        "tanh, rate 0.02: 50 % not within 1 epoch",
        "sigmoid, rate 0.03: 50 % not within 0.03 epochs",
    ]


def test_one_epoch_can_be_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(figure1, "save", lambda figure, path, **options: figures.append(figure))
    write_figure1([Curve("a", "relu", 0, 0.01, [0.55], [80.0])], 25, tmp_path / "figure1.png")
    (axes,) = figures[0].axes
    points = [line for line in axes.lines if list(line.get_xdata()) == [0.55]]
    assert points
    assert all(line.get_marker() == "o" for line in points)
    assert axes.get_xlim()[0] == 0
    assert axes.get_xlim()[1] > 0.55
    assert axes.get_ylim()[0] < 25 < 80 < axes.get_ylim()[1]


def test_the_recorded_numbers_come_out_of_the_recorded_curves() -> None:
    """results/figure1_cifar10: to 35 %, ReLU takes 3.1 epochs and tanh 17.2, 5.5 times as many."""
    folder = ROOT / "results" / "figure1_cifar10"
    read: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in csv.DictReader((folder / "figure1.csv").open()):
        read.setdefault((row["activation"], row["seed"]), []).append(row)
    curves = [
        Curve(
            "",
            activation,
            int(seed),
            float(rows[0]["learning_rate"]),
            [float(row["epoch"]) for row in rows],
            [float(row["train_top1_error"]) for row in rows],
        )
        for (activation, seed), rows in read.items()
    ]
    summary = summarise(curves, 35)
    means = {name: numbers["mean"] for name, numbers in summary["activations"].items() if numbers["mean"] is not None}
    assert {name: round(value, 1) for name, value in means.items()} == {"relu": 3.1, "tanh": 17.2}
    assert round(summary["ratios_to_relu"]["tanh"]["mean"], 1) == 5.5
    recorded = json.loads((folder / "summary.json").read_text())["levels"]
    (at_35,) = [level for level in recorded if level["level"] == 35]
    for name, mean in means.items():
        # The table has three digits of each error.
        assert mean == pytest.approx(at_35["activations"][name]["mean"], abs=1e-2)


def test_the_files_hold_what_was_drawn(tmp_path: Path) -> None:
    curves = make_curves([read_history(run) for run in runs(tmp_path)])
    picture, table, numbers = write_figure1(curves, 25, tmp_path / "figure1.png")
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == sum(len(curve.errors) for curve in curves) == 21
    assert rows[0] == {
        "activation": "relu",
        "seed": "0",
        "learning_rate": "0.01",
        "epoch": "1",
        "train_top1_error": "50.000",
    }
    assert json.loads(numbers.read_text()) == json.loads(json.dumps(summarise(curves, 25)))
    with Image.open(picture) as image:
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20, "not an empty page"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("optim.batch_size=64",), "optim.batch_size"),
        (("network.width=0.5",), "network"),
        (("network.activation=relu", "optim.learning_rate=0.02", "seed=7"), "learning rates 0.02 and 0.01"),
        (("network.activation=relu", "optim.learning_rate=0.01", "seed=0"), "the same seed"),
    ],
)
def test_what_must_not_be_compared_is_refused(overrides: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    folders = [*runs(tmp_path), leave_run(tmp_path / "other", [40.0], *overrides)]
    with pytest.raises(ValueError, match=sentence):
        make_curves([read_history(run) for run in folders])


def test_curves_of_several_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table has all epochs of all runs, an unfinished run is called so, and too many runs are refused."""
    folders = [*runs(tmp_path / "sweep"), leave_run(tmp_path / "sweep" / "begun", [40.0], finished=False)]
    histories = [read_history(folder) for folder in folders]
    assert name_runs(histories) == ["relu0", "tanh0", "relu1", "tanh1", "begun (unfinished)"]
    picture, table, _ = write_curves(histories, tmp_path / "curves.png")
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 22
    assert (rows[0]["epoch"], rows[0]["train_top1_error"], rows[0]["validation_top1_error"]) == ("1", "50", "55")
    with Image.open(picture) as image:
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20
    with pytest.raises(ValueError, match="20 runs, and one drawing shows at most 16"):
        write_curves(histories * 4, tmp_path / "many.png")


def launch(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["figure.py", *arguments])
    runpy.run_path(str(ROOT / "launch" / "figure.py"), run_name="__main__")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    runs(tmp_path / "sweep")
    monkeypatch.chdir(tmp_path)
    launch(monkeypatch, "figure1", "runs=[sweep/*]", "output=out.svg")
    printed = capsys.readouterr().out
    assert "ReLU, rate 0.01: 25 % after 2.50, 2.00 epochs" in printed
    assert (
        "tanh takes 3.00 times as many epochs as ReLU (2.40 to 3.75 over pairs of runs); the paper: about 6"
        in printed
    )
    assert all((tmp_path / f"out.{kind}").stat().st_size > 100 for kind in ("svg", "csv", "json"))
    Path("sweep/never").mkdir()
    note_failure(Path("sweep/never"), "why")
    launch(monkeypatch, "figure1", *sorted(str(path) for path in Path("sweep").iterdir()), "output=again.svg")
    assert capsys.readouterr().out.replace("again", "out") == printed, "as the shell expands a pattern"
    launch(monkeypatch, "curves", "run=sweep/relu0")
    assert (tmp_path / "curves.csv").stat().st_size > 100, "a figure of several runs goes to where one is"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("figure9", "runs=[a]"), "figure9 is not known"),
        (("figure1",), "give the runs to draw"),
        (("figure1", "runs=[nothing/*]"), "matches no run"),
        (("figure1", "run=nothing"), "run=nothing matches no run"),
        (("figure1", "run=empty", "runs=[begun]"), "not both"),
        (
            ("figure1", "run=begun", "data_root=images"),
            "data_root= is for figure4, activations, confusion, towers",
        ),
        (("figure1", "runs=[empty]"), "is not the folder of a run"),
        (("figure1", "runs=[begun]"), "has no finished epoch"),
        (("figure1", "runs=[begun]", "output=a.jpg"), r"must end in one of \.png"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    leave_run(tmp_path / "begun", [], finished=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=sentence):
        launch(monkeypatch, *arguments)
