"""Evaluation: the mean of ten crops, the centre crop beside it, and predictions that are stored and used again."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.fake_runs import draw_images, fake_run, save_checkpoint
from helpers.paths import ROOT
from twotower.config import EvaluateConfig
from twotower.data.batch import Share
from twotower.data.feed import open_validation
from twotower.distributed.exchange import InProcessExchange
from twotower.evaluation import evaluate, predictions
from twotower.evaluation.evaluate import evaluate_run, make_predictions, predict
from twotower.evaluation.subject import load_towers, open_subject
from twotower.ground import tensor_files
from twotower.model.tower import forward

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("images"))


@pytest.fixture
def run(images: Path, tmp_path: Path) -> Path:
    return fake_run(tmp_path / "run", images)


def settings(run: Path, **changes: Any) -> EvaluateConfig:
    return EvaluateConfig(run=str(run), device="cpu", batch_size=8, **changes)


def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The passes through a network from here on, by their crops."""
    seen: list[str] = []

    def counted(*args: Any) -> Any:
        seen.append(args[3])
        return predict(*args)

    monkeypatch.setattr(evaluate, "predict", counted)
    return seen


def test_ten_crops_are_the_mean_of_ten_softmax_outputs(run: Path) -> None:
    """Against the crops one by one, their probabilities summed in float64; the logits' mean is another thing."""
    subject = open_subject(str(run), settings(run))
    towers = load_towers(subject.checkpoint, subject.manifest, subject.config, 7, CPU)
    feed = open_validation(subject.dataset, subject.config.input, Share(21, 0, 1, CPU, 1), crops="ten")
    batch = next(feed)
    feed.close()
    with torch.no_grad():
        logits = [forward(towers, batch.images[:, i].contiguous(), InProcessExchange()) for i in range(10)]
    expected = sum(one.double().softmax(1) for one in logits) / 10
    wrong = (sum(one.double() for one in logits) / 10).softmax(1)
    found = predict(towers, subject.dataset, subject.config, "ten", 8, CPU)
    assert found["ten"].labels.equal(batch.labels)
    torch.testing.assert_close(found["ten"].probabilities().double(), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found["ten"].probabilities().double(), wrong, atol=1e-2)
    # The third of the ten is the centre, and the first a corner.
    centre, corner = logits[2].log_softmax(1), logits[0].log_softmax(1)
    torch.testing.assert_close(found["centre"].log_probabilities, centre, atol=1e-3, rtol=1e-4)
    assert not torch.allclose(found["centre"].log_probabilities, corner, atol=1e-1)


@pytest.mark.parametrize("overrides", [(), ("network=alexnet",), ("input=paper",)])
def test_the_centre_row_is_that_of_the_centre_crop_alone(images: Path, tmp_path: Path, overrides: tuple) -> None:
    run = fake_run(tmp_path / "run", images, *overrides)
    alone = evaluate_run(settings(run))
    assert alone["ten"] is None
    beside = evaluate_run(settings(run, crops="ten", fresh=True))
    assert beside["centre"]["pass_crops"] == "ten"
    for key in ("top1_error", "top5_error", "num_images"):
        assert beside["centre"][key] == alone["centre"][key] == alone[key]
    assert beside["centre"]["loss"] == pytest.approx(alone["loss"], rel=1e-6)
    assert beside["ten"]["loss"] != pytest.approx(alone["loss"], rel=1e-3)
    assert json.loads((run / "evaluation.json").read_text()) == beside
    assert {key: beside[key] for key in ("top1_error", "top5_error", "loss")} == {
        key: beside["ten"][key] for key in ("top1_error", "top5_error", "loss")
    }


def test_predictions_are_computed_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = passes(monkeypatch)
    first = evaluate_run(settings(run, crops="ten"))
    again = evaluate_run(settings(run, crops="ten"))
    centre = evaluate_run(settings(run))
    assert seen == ["ten"], "the centre crop is among the ten"
    assert (first["ten"]["stored"], again["ten"]["stored"], centre["centre"]["stored"]) == (False, True, True)
    assert {**first["ten"], "stored": True} == again["ten"], "the speed is that of the first time"
    assert centre["ten"] == again["ten"]
    evaluate_run(settings(run, fresh=True))
    assert seen == ["ten", "centre"]
    names = sorted(path.name for path in (run / "predictions").iterdir())
    assert names == [".lock", "step-00000001-val-centre.safetensors", "step-00000001-val-ten.safetensors"]


def test_what_is_stored_is_what_is_counted(run: Path) -> None:
    """A file with equal probabilities has the error of guessing: 6 of 7, and 2 of 7."""
    before = evaluate_run(settings(run))
    path = run / "predictions" / "step-00000001-val-centre.safetensors"
    tensors, identity = load_file(path), predictions.read_identity(path)
    assert identity is not None
    even = torch.full_like(tensors["log_probabilities"], -1.945910)
    predictions.store(path, predictions.Predictions(even, tensors["labels"], 1.0, "centre"), identity)
    changed = evaluate_run(settings(run))
    assert changed["top1_error"] == pytest.approx(600 / 7)
    assert changed["top5_error"] == pytest.approx(200 / 7)
    assert changed["loss"] == pytest.approx(1.945910)
    assert evaluate_run(settings(run, fresh=True))["loss"] == pytest.approx(before["loss"], rel=1e-6)


@pytest.mark.parametrize("change", ["checkpoint", "version", "images", "input", "damaged", "without origin"])
def test_stored_predictions_of_something_else_are_not_used(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    if change == "images":
        images = shutil.copytree(images, tmp_path / "images")
    run = fake_run(tmp_path / "run", images)
    before = evaluate_run(settings(run))
    seen = passes(monkeypatch)
    path = run / "predictions" / "step-00000001-val-centre.safetensors"
    if change == "checkpoint":
        save_checkpoint(run, open_subject(str(run), settings(run)).config, seed=1)
    elif change == "version":
        monkeypatch.setattr(predictions, "package_version", lambda: "0.0")
    elif change == "images":
        shutil.copy(images / "val" / "c0" / "0.png", images / "val" / "c0" / "new.png")
    elif change == "input":
        config = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(config.replace("mean: central", "mean: aligned"))
    elif change == "damaged":
        path.write_bytes(path.read_bytes()[:50])
    else:
        save_file(load_file(path), path)
    after = evaluate_run(settings(run))
    assert seen == ["centre"]
    assert not after["centre"]["stored"]
    if change == "checkpoint":
        assert after["loss"] != pytest.approx(before["loss"], rel=1e-3)
    assert evaluate_run(settings(run))["centre"]["stored"], "the new ones are stored in their place"


def test_storing_is_complete_or_absent(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_short(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(tensor_files, "save_file", cut_short)
    with pytest.raises(OSError, match="No space"):
        make_predictions(open_subject(str(run), settings(run)), settings(run))
    assert not (run / "predictions").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"crops": "five"}, "crops=five is not known"),
        ({"device": "tpu"}, "device=tpu is not known"),
        ({"batch_size": 0}, "batch_size=0 is not possible; give at least 1"),
        ({"split": "test"}, "split=test is not in this data set"),
    ],
)
def test_settings_that_cannot_be_are_refused(run: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        evaluate_run(EvaluateConfig(**({"run": str(run), "device": "cpu"} | changes)))


def launch(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments, "device=cpu"])
    runpy.run_path(str(ROOT / "launch" / "evaluate.py"), run_name="__main__")


def test_the_command_prints_both_views(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    launch(monkeypatch, "run=run")
    assert "the mean of ten crops: python launch/evaluate.py run crops=ten" in capsys.readouterr().out
    launch(monkeypatch, "run=run", "crops=ten")
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if "│ val" in line]
    assert [row.split("│")[2].strip() for row in rows] == ["centre", "ten, mean"]
    assert "crops=ten" not in printed
    assert "centre: from stored predictions" in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "give a run, several runs or weights=FILE, and only one"),
        (("run=run", "runs=[run,run]"), "give a run, several runs or weights=FILE, and only one"),
        (("weights=a.npy", "run=b"), "give a run, several runs or weights=FILE, and only one"),
        (("run=run", "coefficients=[1]"), "is for an ensemble"),
        (("run=run", "output=a.json"), "RUN/evaluation.json"),
        (("run=run", "network=caffenet"), "a run knows its own"),
        (("weights=a.caffemodel",), "give data_root=DIR"),
        (("weights=a.caffemodel", "data_root=b"), "a.caffemodel does not exist; give a run's"),
        (("weights=FILE", "data_root=b"), "does not say what network it belongs to; give network=NAME"),
    ],
)
def test_one_thing_is_evaluated(
    arguments: tuple, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "their.caffemodel"
    file.touch()
    arguments = tuple(one.replace("FILE", str(file)) for one in arguments)
    with pytest.raises(SystemExit, match=sentence):
        launch(monkeypatch, *arguments)
