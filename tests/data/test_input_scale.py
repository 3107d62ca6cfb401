"""The scale of the pixels is part of the input: all users of weights and pictures have to know it.

A run whose pixels were divided by a std and whose weights are used on others gives logits that are off by that
factor, so each way of using weights is held against the run itself.
"""

import json
import math
import os
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image

from helpers.composing import compose
from helpers.fake_runs import NUM_CLASSES, draw_images, fake_config, fake_run, scaled_run
from twotower.benchmarks.baseline_loader import PillowImages
from twotower.config import DataConfig, EvaluateConfig, InputConfig, check, check_input
from twotower.data.batch import Batch, Share
from twotower.data.dataset import DataSet, FileSplit
from twotower.data.feed import open_train, open_validation
from twotower.data.preparing.first_use import prepare
from twotower.data.preparing.input_picture import read_crops
from twotower.data.synthetic import SyntheticFeed
from twotower.evaluation.evaluate import evaluate_run
from twotower.evaluation.subject import open_subject
from twotower.runs import checkpoint, rundir
from twotower.runs.mirrors.training_pictures import Handful

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
pytestmark = pytest.mark.slow  # networks are built and evaluated

# The value that each network's source feeds for a pixel 0..255 of R, G, B; see the headers of their yamls.
SOURCES = {
    "half_tower": lambda p: (p / 255 - 0.5) / 0.5,
    "torchvision_alexnet": lambda p: (p / 255 - np.array((0.485, 0.456, 0.406))) / np.array((0.229, 0.224, 0.225)),
    "alexnet_cifar": lambda p: p / 255,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of images of 32 x 32 pixels, which are not resized."""
    root, stream = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(4):
            path = root / split / f"c{number % 2}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(stream.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return root


def dataset_of(squares: Path) -> DataSet:
    return prepare(DataConfig(kind="folder", root=str(squares), size=32), progress=False)


def pixels_of(squares: Path, split: FileSplit) -> list[NDArray[np.float64]]:
    return [np.asarray(Image.open(squares / path), np.float64) for path in split.paths]


# What is fed


@pytest.mark.parametrize("name", SOURCES)
def test_three_networks_are_fed_what_their_sources_feed(squares: Path, name: str) -> None:
    """At validation and in training. No other network's pixels have another scale than 0..255 less a mean."""
    config = replace(compose(f"network={name}").input, crop_size=32, flip=False)
    dataset = dataset_of(squares)
    assert isinstance(dataset.val, FileSplit)
    assert isinstance(dataset.train, FileSplit)
    share = Share(4, 0, 1, CPU, 1)
    with closing(open_validation(dataset, config, share)) as feed:
        shown = next(feed).images
    for image, pixels in zip(shown.movedim(1, -1).numpy(), pixels_of(squares, dataset.val), strict=True):
        np.testing.assert_allclose(image, SOURCES[name](pixels), rtol=1e-5, atol=1e-6)
        assert np.abs(image - (pixels - 127)).max() > 50
    with closing(open_train(dataset, config, share, seed=0, first_step=0)) as feed:
        trained = next(feed).images.movedim(1, -1).numpy()
    wanted = [SOURCES[name](pixels) for pixels in pixels_of(squares, dataset.train)]
    assert all(min(np.abs(image - one).max() for one in wanted) < 1e-5 for image in trained)


def test_the_comparison_with_a_dataloader_is_fed_alike(squares: Path) -> None:
    dataset, config = dataset_of(squares), replace(compose("input=torchvision").input, crop_size=32)
    assert isinstance(dataset.val, FileSplit)
    theirs = PillowImages(dataset, dataset.val, config, training=False)
    with closing(open_validation(dataset, config, Share(4, 0, 1, CPU, 1))) as feed:
        ours = next(feed).images
    assert all(torch.allclose(image, theirs[i][0], rtol=1e-5, atol=1e-6) for i, image in enumerate(ours))


def test_random_tensors_have_the_scale_of_images() -> None:
    """Both come from one draw, so tensors without a scale are as they were before there were scales."""
    dataset = prepare(DataConfig(kind="synthetic", num_train=4, num_val=4, num_classes=2))
    feeds = [
        SyntheticFeed(
            dataset, InputConfig(crop_size=8, std=std), Share(4, 0, 1, CPU, 1), seed=0, num_batches=1, crops="centre"
        )
        for std in ([1.0, 1.0, 1.0], [58.0, 1.0, 2.0])
    ]
    plain_ones, divided = (next(feed).images for feed in feeds)
    assert 60 < float(plain_ones.std()) < 80
    assert torch.allclose(divided * torch.tensor([58.0, 1.0, 2.0])[:, None, None], plain_ones)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"std": [0.229, 0.224, 0.225]},
            r"input\.std=\[0\.229.* \(what is written for pixels in 0\.\.1, times 255\)",
        ),
        ({"std": [58.0, 57.0]}, r"input\.std=\[58\.0, 57\.0\] is not possible; give three numbers from 1 to 255"),
        ({"std": [1.0, 0.0, 1.0]}, r"input\.std=\["),
        ({"std": [1.0, math.nan, 1.0]}, r"input\.std=\[1\.0, nan, 1\.0\] is not possible"),
        ({"mean_value": [300.0, 0.0, 0.0]}, r"input\.mean_value=\[300.*from 0 to 255"),
        ({"mean_value": []}, r"input\.mean_value=\[\]"),
    ],
)
def test_scales_that_cannot_be_are_refused(changes: dict[str, list[float]], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_input(InputConfig(**changes))  # type: ignore[arg-type]
    config = compose("data=synthetic")
    config = replace(config, input=replace(config.input, **changes))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=sentence):
        check(config)


# What is shown


def test_pictures_have_the_pixels_again(squares: Path) -> None:
    """The images that W&B gets of the validation, and the rows of the picture of the input."""
    dataset, config = dataset_of(squares), replace(compose("input=torchvision").input, crop_size=32)
    assert isinstance(dataset.train, FileSplit)
    whole = pixels_of(squares, dataset.train)
    assert config.mean_value is not None
    fed = torch.from_numpy((np.stack(whole) - config.mean_value) / config.std).float().movedim(-1, 1)
    handful = Handful(4, ["a", "b"], np.full((32, 32, 3), config.mean_value, np.float32), config.std)
    handful.look(Batch(fed, torch.zeros(4, dtype=torch.int64)), torch.zeros(4, 2))
    assert all(np.array_equal(found.pixels, pixels) for found, pixels in zip(handful.predictions, whole, strict=True))
    shown = read_crops(dataset, [0, 1, 2, 3], replace(config, flip=False))
    for picture, pixels in zip(shown, whole, strict=True):
        assert np.abs(picture.astype(int) - pixels).max() <= 1  # rounds down


# Runs


def test_another_scale_makes_stored_predictions_stale(images: Path, tmp_path: Path) -> None:
    run = scaled_run(tmp_path / "run", images)
    settings = EvaluateConfig(run=str(run), device="cpu")
    before = evaluate_run(settings)
    assert evaluate_run(settings)["centre"]["stored"]
    config = OmegaConf.load(run / "config.yaml")
    config.input.std = [50.0, 57.12, 57.375]
    OmegaConf.save(config, run / "config.yaml")
    after = evaluate_run(settings)
    assert not after["centre"]["stored"]
    assert after["loss"] != before["loss"]


def without_scale(path: Path) -> None:
    """config.yaml as older versions wrote it."""
    config = OmegaConf.load(path)
    del config.input["std"], config.input["mean_value"]
    OmegaConf.save(config, path)


def test_runs_of_before_are_what_they_were(images: Path, tmp_path: Path) -> None:
    """Older runs have no scale in their configuration or checkpoints, and their stored results still count."""
    run = fake_run(tmp_path / "run", images, "network=half_tower", "network.image_size=91", "input=crops_and_flips")
    settings = EvaluateConfig(run=str(run), device="cpu")
    before = evaluate_run(settings)
    without_scale(run / "config.yaml")
    manifest = next((run / "checkpoints").glob("*/manifest.json"))
    content = json.loads(manifest.read_text())
    del content["input"]
    manifest.write_text(json.dumps(content))
    identity = open_subject(str(run), settings).identity
    assert not {"std", "mean_value"} & identity["input"].keys()
    again = evaluate_run(settings)
    assert again["centre"]["stored"]
    assert evaluate_run(replace(settings, fresh=True))["loss"] == before["loss"] == again["loss"]


def test_a_run_does_not_go_on_with_another_scale(images: Path, tmp_path: Path) -> None:
    """The command that began an older run of half_tower does not resume it, because today it has a scale."""
    old = fake_config(images, "network=half_tower", "network.image_size=91", "input=crops_and_flips")
    run = fake_run(tmp_path / "run", images, "network=half_tower", "network.image_size=91", "input=crops_and_flips")
    classes = [f"c{label}" for label in range(NUM_CLASSES)]
    rundir.check_resumable(checkpoint.find(run), old, classes, {})
    now = fake_config(images, "network=half_tower", "network.image_size=91")
    with pytest.raises(ValueError, match=r"with input\.mean_value=None, and that is \[127\.5.* now; use the run's"):
        rundir.check_resumable(checkpoint.find(run), now, classes, {})
    now = replace(now, input=replace(now.input, mean_value=None))
    with pytest.raises(ValueError, match=r"trained with input\.std=\[1\.0, 1\.0, 1\.0\], and that is \[127\.5"):
        rundir.check_resumable(checkpoint.find(run), now, classes, {})


def test_an_interrupted_run_of_before_is_found(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`resume=auto` finds it, though it has fewer keys than today's configuration."""
    monkeypatch.chdir(tmp_path)
    run = fake_run(Path("runs") / "old", images)
    without_scale(run / "config.yaml")
    (Path("runs") / "broken").mkdir()
    (Path("runs") / "broken" / "config.yaml").write_text("input: {nothing: 1}\n")
    shutil.copytree(run / "checkpoints", Path("runs") / "broken" / "checkpoints")
    os.utime(Path("runs") / "broken" / "config.yaml")  # the newest run, so the first that is compared
    config = fake_config(images, "resume=auto")
    assert rundir.find_home(config).run_dir == run
    other = replace(config, input=replace(config.input, std=[2.0, 1.0, 1.0]))
    assert rundir.find_home(other).run_dir != run
