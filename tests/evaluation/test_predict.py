"""launch/predict.py: photographs get the classes that evaluation gives them, upright, with words, and drawn."""

import csv
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from helpers.fake_runs import NUM_CLASSES, draw_images, fake_run
from helpers.paths import ROOT
from twotower.config import EvaluateConfig, ExportConfig, PredictConfig
from twotower.data.class_names import ilsvrc_words, name_classes
from twotower.data.dataset import MEAN_IMAGE
from twotower.data.photographs import list_photographs, turn_upright
from twotower.evaluation.evaluate import make_predictions
from twotower.evaluation.load_network import open_trained
from twotower.evaluation.predict import predict_photographs
from twotower.evaluation.subject import open_subject
from twotower.weights.export import export_run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with weights that were drawn and not trained, and its mean image; its images lie beside it."""
    folder = tmp_path_factory.mktemp("predict")
    run = fake_run(folder / "run", draw_images(folder / "images"), "data.size=72", "input.std=[2,2.5,3]")
    subject = open_subject(str(run), EvaluateConfig(run=str(run), device="cpu"))
    np.save(run / MEAN_IMAGE, subject.dataset.mean_image)
    return run


def launch(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["predict.py", *arguments])
    runpy.run_path(str(ROOT / "launch" / "predict.py"), run_name="__main__")


@pytest.mark.parametrize("crops", ["centre", "ten"])
def test_photographs_get_what_evaluation_gives_them(run: Path, crops: str) -> None:
    """Evaluation takes another way to the same pixels: DALI decodes and resizes there, Pillow and torch here."""
    subject = open_subject(str(run), EvaluateConfig(run=str(run), crops=crops, device="cpu"))
    stored = make_predictions(subject, EvaluateConfig(run=str(run), crops=crops, device="cpu"))[crops]
    val = subject.dataset.val
    files = [run.parent / "images" / val.name(i) for i in range(len(val))]
    trained = open_trained(PredictConfig(run=str(run), crops=crops, device="cpu"))
    found, problems = predict_photographs(files, trained, crops)
    assert not problems
    assert len(found) == 3 * NUM_CLASSES
    difference, of_others = [], []
    for row, one in enumerate(found):
        assert len(one.classes) == 5
        assert one.probabilities == sorted(one.probabilities, reverse=True)
        told = np.log(np.maximum(one.probabilities, 1e-30))
        for into, image in ((difference, row), (of_others, row - 1)):
            wanted = stored.log_probabilities[image].double().numpy()[one.classes]
            into.append(np.abs(told - np.log(np.maximum(np.exp(wanted), 1e-30))).max())
    # Both resizes may round a pixel differently, by one grey level; logits of these weights go into the hundreds.
    assert max(difference) < 2
    assert np.median(difference) < 0.02 * np.median(of_others), "another photograph's would not have passed"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_telephones_photograph_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    scene = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    with_tag = Image.fromarray(scene)
    exif = with_tag.getexif()
    exif[0x0112] = orientation
    with_tag.save(tmp_path / "it.png", exif=exif)
    with Image.open(tmp_path / "it.png") as image:
        wanted = np.array(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(turn_upright(scene, (tmp_path / "it.png").read_bytes()), wanted)
    assert wanted.shape == ((9, 6, 3) if orientation > 4 else (6, 9, 3))
    assert (orientation == 1) == np.array_equal(wanted, scene)


def test_the_command_prints_and_draws(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One file that is no image costs its own prediction and the exit status, not those of the others."""
    folder = tmp_path / "of a=person, with [signs]"
    folder.mkdir()
    shutil.copy(run.parent / "images" / "val" / "c0" / "0.png", folder / "cat.png")
    (folder / "page.jpg").write_text("<html>not found</html>")
    single = run.parent / "images" / "val" / "c1" / "0.png"
    with pytest.raises(SystemExit) as end:
        launch(monkeypatch, str(run), str(folder), str(single))
    assert "page.jpg cannot be used" in str(end.value)
    printed = capsys.readouterr().out
    assert printed.index("cat.png") < printed.index(str(single)) < printed.index("drawn: ")
    assert printed.count(" %") == 10
    with (run / "figures" / "predict.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["photograph"], row["rank"]) for row in rows] == [
        (str(photograph), str(rank)) for photograph in (folder / "cat.png", single) for rank in range(1, 6)
    ]
    with Image.open(run / "figures" / "predict.png") as drawing:
        assert np.asarray(drawing.convert("RGB")).std() > 10


def test_an_exported_file_says_the_same(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path, *_) = export_run(ExportConfig(run=str(run), output=str(tmp_path), force=True))
    photographs = list_photographs([str(run.parent / "images" / "val" / "c2")])
    told = []
    for settings in (
        PredictConfig(run=str(run), device="cpu"),
        PredictConfig(weights=str(path), device="cpu", check=False),
    ):
        trained = open_trained(settings)
        told.append(predict_photographs(photographs, trained, "centre")[0])
    of_run, of_file = told
    assert [one.classes for one in of_run] == [one.classes for one in of_file]
    for one, other in zip(of_run, of_file, strict=True):
        np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=1e-4)
        np.testing.assert_array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run=RUN"], "no photograph is given"),
        (["run=RUN", "none.jpg"], "none.jpg does not exist"),
        (["run=RUN", "EMPTY"], "has no photographs"),
        (["IMAGE"], "give one of run=RUN and weights=FILE"),
        (["run=RUN", "weights=a.pth", "IMAGE"], "give one of run=RUN and weights=FILE"),
        (["run=RUN", "network=caffenet", "IMAGE"], "network= is for weights=FILE"),
        (["run=RUN", "output=page.html", "IMAGE"], "must end in .png, .svg or .pdf"),
        (["run=RUN", "crops=five", "IMAGE"], "crops=five is not known"),
        (["run=EMPTY", "IMAGE"], "is not the folder of a run"),
    ],
)
def test_what_cannot_be_predicted_is_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    image = run.parent / "images" / "val" / "c0" / "0.png"
    places = {"RUN": str(run), "EMPTY": str(tmp_path), "IMAGE": str(image)}
    for name, place in places.items():
        arguments = [argument.replace(name, place) for argument in arguments]
    with pytest.raises(SystemExit) as end:
        launch(monkeypatch, *arguments)
    assert told in str(end.value)


def test_words_of_the_1000_classes() -> None:
    """Places of some classes as everybody's tables have them; ids in sorted order, as the labels are."""
    words = ilsvrc_words()
    ids = list(words)
    assert len(ids) == 1000
    assert ids == sorted(ids)
    assert all(wnid[0] == "n" and wnid[1:].isdigit() and len(wnid) == 9 for wnid in ids)
    for place, first in {
        0: "tench",
        281: "tabby",
        388: "giant panda",
        701: "parachute",
        999: "toilet tissue",
    }.items():
        assert words[ids[place]].split(",")[0] == first
    named = name_classes(ids)
    assert len(set(named)) == 1000, "no two classes are called alike"
    assert {named[134], named[517]} == {"crane (n02012849)", "crane (n03126707)"}
    assert name_classes(["n01440764", "mine"]) == ["tench", "mine"]
    assert name_classes(["n01440764"], {"n01440764": "Schleie, Tinca tinca"}) == ["Schleie"]
