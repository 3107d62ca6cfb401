"""Activations of both towers: the oracle's values, the tile_maps, the layers that there are, and the command."""

import csv
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from helpers import oracle
from helpers.fake_runs import draw_images, fake_run
from helpers.paths import ROOT
from helpers.towers import load_network
from twotower.config import EvaluateConfig
from twotower.data.decode import cut_square
from twotower.evaluation.subject import open_subject
from twotower.figures.activations import (
    Activations,
    choose_layer,
    choose_most_active,
    count_silent,
    describe,
    list_steps,
    make_activations,
    tile_maps,
    write_activations,
)
from twotower.figures.photographs import Photograph
from twotower.runs import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("activations")
    return fake_run(folder / "run", draw_images(folder / "images"), "logging=no_wandb")


def test_maps_are_those_that_the_next_layer_reads(run: Path) -> None:
    """conv1 of the oracle after its steps, for an image that Pillow decodes; tower 0 has the first maps."""
    subject = open_subject(str(run), EvaluateConfig(run=str(run)))
    activations = make_activations(subject, None, "c2/1.png")
    assert (activations.layer, activations.reader, activations.class_name) == ("conv1", "conv2", "c2")
    assert activations.steps == ["response norm", "max pooling", "ReLU"]
    path = checkpoint.find(run)
    towers = [load_file(path / f"tower{tower}.safetensors") for tower in range(2)]
    weight, bias = (torch.cat([weights[f"conv1.{kind}"] for weights in towers]) for kind in ("weight", "bias"))
    mean = subject.dataset.mean_image
    assert mean is not None
    with Image.open(run.parent / "images" / "val" / "c2" / "1.png") as image:
        square = cut_square(np.array(image.convert("RGB")), len(mean))
    begin = (len(mean) - 64) // 2
    crop = (slice(begin, begin + 64),) * 2
    assert np.array_equal(activations.image.pixels, square[crop]), "the image beside is the one that the network sees"
    pixels = torch.from_numpy(square.astype(np.float32) - mean)[crop].permute(2, 0, 1)[None]
    preset = oracle.PRESETS["alexnet_2012"]
    expected = oracle.steps(
        F.conv2d(F.pad(pixels, (0, 3, 0, 3)), weight, bias, stride=4), preset.conv1_steps, preset
    )[0]
    both = torch.cat(activations.of_tower)
    assert oracle.deviation(both, expected) < 0.02
    assert oracle.deviation(both, expected.roll(len(expected) // 2, 0)) > 0.2, "the other order is seen"


def test_the_most_active_maps_in_their_order() -> None:
    maps = torch.zeros(60, 3, 4)
    maps[::2] = torch.arange(30.0)[:, None, None] + torch.rand(30, 3, 4)
    assert choose_most_active(maps, 10) == list(range(40, 60, 2))
    assert choose_most_active(maps, 32) == sorted([*range(0, 60, 2), 1, 3]), "of count_silent ones the first"
    assert count_silent(maps) == 30


@pytest.mark.parametrize(("count", "rows", "columns"), [(6, 1, 6), (16, 2, 8), (48, 4, 12), (25, 3, 9)])
def test_a_mosaic_has_each_map_in_its_place(count: int, rows: int, columns: int) -> None:
    maps = torch.randn(count, 3, 5)
    picture = tile_maps(maps)
    assert picture.shape == (rows * 4 + 1, columns * 6 + 1)
    for number in (0, columns - 1, count - 1):
        y, x = number // columns * 4 + 1, number % columns * 6 + 1
        assert np.array_equal(picture[y : y + 3, x : x + 5], maps[number].numpy())
    assert np.isnan(picture).sum() == picture.size - maps.numel()


def test_steps_are_those_that_the_network_has() -> None:
    assert list_steps(load_network("alexnet_2012"), "conv2") == [
        "ReLU",
        "response norm",
        "spatial norm",
        "max pooling",
    ]
    assert list_steps(load_network("alexnet_2012", lrn=None, spatial_norm=None), "conv2") == ["ReLU", "max pooling"]
    assert list_steps(load_network("cifar_four_layer", activation="tanh"), "conv3") == ["tanh", "average pooling"]


def test_a_layer_that_is_no_convolution_is_refused() -> None:
    with pytest.raises(ValueError, match="layer=fc6 is no convolution of network=half_tower; choose one of conv1, "):
        choose_layer(load_network("half_tower"), "fc6")


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_dead_and_broken_maps_are_drawn_too(value: float, tmp_path: Path) -> None:
    """The table has all maps, also where there are more than are drawn."""
    image = Photograph(np.zeros((64, 64, 3), np.uint8), "val/c0/0.png", 0)
    activations = Activations("a run", image, "c0", "conv3", [], "conv4", [torch.full((60, 3, 3), value)])
    picture, table = write_activations(activations, tmp_path / "dead.png")
    assert len(list(csv.DictReader(table.open()))) == 60
    assert picture.stat().st_size > 1000
    assert "60 maps" in describe(activations)[0]


def launch(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["figure.py", *arguments])
    runpy.run_path(str(ROOT / "launch" / "figure.py"), run_name="__main__")


def test_the_command_writes_the_picture_and_its_data(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    launch(monkeypatch, "activations", "run=r*n", "layer=conv3", "image=5")
    printed = capsys.readouterr().out
    assert "conv3 for val/c1/2.png (c1)" in printed
    rows = list(csv.DictReader((run / "figures" / "activations-conv3-5.csv").open()))
    activations = make_activations(open_subject(str(run), EvaluateConfig(run=str(run))), "conv3", "5")
    assert len(rows) == sum(len(maps) for maps in activations.of_tower) == 24
    for row in rows:
        maps = activations.of_tower[int(row["tower"])][int(row["map"])]
        assert float(row["mean"]) == pytest.approx(float(maps.mean()), rel=1e-4, abs=1e-9)
        assert float(row["max"]) == pytest.approx(float(maps.max()), rel=1e-4, abs=1e-9)
    with Image.open(run / "figures" / "activations-conv3-5.png") as image:
        assert min(image.size) > 300
        assert len(image.convert("RGB").getcolors(1 << 22) or []) > 1000, "the photograph in colour"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("layer=fc7",), "layer=fc7 is no convolution of network=alexnet_2012; choose one of conv1, conv2, conv3"),
        (("image=21",), "image 21 is not in the validation set; choose 0 to 20"),
        (("image=dog.png",), "no image of the validation set is called dog.png"),
        (("images=[1]",), "images= is for figure4; activations has no such option"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], sentence: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    with pytest.raises(SystemExit, match=sentence):
        launch(monkeypatch, "activations", "run=run", *arguments)
