"""The TensorBoard files of a run, read back with TensorBoard's own reader."""

import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from helpers.event_files import plugin_data_of, read_events_of, scalars_of, text_of
from helpers.fake_runs import fake_config
from helpers.paths import ROOT
from twotower.config import Config, register_schemas, resolve
from twotower.runs.journal import Journal
from twotower.runs.mirrors.metric_names import IMAGES, PICTURE, PREDICTIONS, SUMMARY
from twotower.runs.mirrors.open_mirrors import log_evaluation, log_figures, open_mirrors
from twotower.runs.mirrors.tensorboard_mirror import COMPARED, TensorBoardMirror
from twotower.runs.mirrors.training_pictures import Prediction
from twotower.training.ready_run import get_ready

ON = "logging.tensorboard=true"


@pytest.fixture(scope="module")
def config(images: Path) -> Config:
    return fake_config(images, ON)


def train(config: Config, run_dir: Path, first_step: int, last_step: int) -> None:
    """A training in this process, for the journal's purposes, killed before step 6."""
    journal = Journal(config, run_dir, first_step, 6)
    for step in range(first_step + 1, last_step + 1):
        journal.event("train", step, loss=step + first_step / 10)
    if last_step == 6:
        journal.finish(6, dict.fromkeys(SUMMARY, 1.5) | {"steps": 6})
        journal.close(0)
    else:
        (mirror,) = journal.mirrors.open
        assert isinstance(mirror, TensorBoardMirror)
        mirror._writer.flush()  # the killed process has written so much


def test_a_training_that_was_resumed_is_drawn_once(config: Config, tmp_path: Path) -> None:
    """A run is killed after step 5 and goes on from step 2: TensorBoard drops steps 3 to 5 of the first part."""
    train(config, tmp_path, 0, 5)
    before = scalars_of(read_events_of(tmp_path))["train/loss"]
    assert before == [(step, step) for step in range(1, 6)]
    train(config, tmp_path, 2, 6)
    after = scalars_of(read_events_of(tmp_path))
    wanted = [1, 2, 3.2, 4.2, 5.2, 6.2]
    assert [step for step, _ in after["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert [value for _, value in after["train/loss"]] == pytest.approx(wanted)
    assert after["summary/best_top1_error"] == [(6, 1.5)]
    train(config, tmp_path, 0, 1)  # another run in the same folder
    assert scalars_of(read_events_of(tmp_path)) == {"train/loss": [(1, 1)]}


def test_pictures_and_texts_are_what_was_given(config: Config, tmp_path: Path) -> None:
    stream = np.random.default_rng(0)
    kernels, *crops = (stream.integers(0, 256, (6, 6, 3)).astype(np.uint8) for _ in range(4))
    Image.fromarray(crops[0]).save(tmp_path / "picture.png")
    predictions = [Prediction(crop, f"c{i}", [("c0", 0.75), ("c1", 0.25)]) for i, crop in enumerate(crops)]
    mirrors = open_mirrors(config, tmp_path, {}, 0)
    assert mirrors is not None
    mirrors.picture(tmp_path / "picture.png")
    mirrors.kernels(3, kernels)
    mirrors.predictions(3, predictions)
    mirrors.predictions(3, [])
    mirrors.close(1)
    events = read_events_of(tmp_path)

    def shown(tag: str) -> tuple[int, np.ndarray]:
        (one,) = events.Images(tag)
        return one.step, np.asarray(Image.open(io.BytesIO(one.encoded_image_string)))

    for tag, wanted in ((PICTURE, (0, crops[0])), ("kernels/conv1", (3, kernels))):
        step, pixels = shown(tag)
        assert step == wanted[0]
        assert np.array_equal(pixels, wanted[1])
    pixels = shown(IMAGES)[1]
    assert all(np.array_equal(pixels[:6, 6 * i : 6 * i + 6], crop) for i, crop in enumerate(crops))
    assert "| 2 | c1 | c0 75 %, c1 25 % |" in text_of(events, PREDICTIONS)
    text = text_of(events, "config").removeprefix("```yaml\n").removesuffix("```")
    assert OmegaConf.create(text).network.width == 0.0625


def test_the_tab_hparams_has_what_sweeps_vary(config: Config, tmp_path: Path) -> None:
    train(config, tmp_path, 0, 6)
    events = read_events_of(tmp_path)
    start = plugin_data_of(events, "_hparams_/session_start_info").session_start_info.hparams
    assert (start["network.name"].string_value, start["seed"].number_value) == ("alexnet_2012", 0)
    assert start["optim.learning_rate"].number_value == config.optim.learning_rate
    experiment = plugin_data_of(events, "_hparams_/experiment").experiment
    assert {one.name.tag for one in experiment.metric_infos} == set(COMPARED)
    assert plugin_data_of(events, "_hparams_/session_end_info").session_end_info.status == 1  # the code for success
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1, "no run of its own for the settings"


def test_evaluation_and_figures_stand_beside_the_training(config: Config, tmp_path: Path) -> None:
    train(config, tmp_path, 0, 6)
    view = {"top1_error": 20.0, "top5_error": 5.0, "loss": 0.5, "num_images": 7, "images_per_second": 3.0}
    log_evaluation(tmp_path, config, {}, {"split": "val", "checkpoint": "step-00000006", "centre": view, "ten": None})
    Image.new("RGB", (5, 4), "red").save(tmp_path / "f.png")
    log_figures(tmp_path, config, {"figure3": tmp_path / "f.png"})
    events = read_events_of(tmp_path)
    scalars = scalars_of(events)
    assert scalars["centre/top1_error"] == [(6, 20.0)]
    assert len(scalars["train/loss"]) == 6
    assert {"figures/figure3"} == set(events.Tags()["images"])
    assert not (tmp_path / "wandb").exists()


def test_a_training_goes_on_when_tensorboard_is_lost(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(config, tmp_path, 0, 6)
    (mirror,) = journal.mirrors.open

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    mirror._writer.add_scalar = fail
    journal.event("train", 1, loss=1.0)
    journal.event("train", 2, loss=1.0)
    journal.close(0)
    assert capsys.readouterr().out.count("TensorBoard was lost ([Errno 28] No space left on device)") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_without_the_package_it_is_one_sentence_before_anything_starts(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    present = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else present(name))
    with (
        pytest.raises(ValueError, match=r"needs the tensorboard package; install it by pip install -e '\.\[tensorb"),
        get_ready(config, 1),
    ):
        pass
    assert not list(tmp_path.iterdir())
    log_figures(tmp_path, config, {"figure3": tmp_path / "f.png"})  # the drawing is not lost
    assert "not mirrored: logging.tensorboard=true needs" in capsys.readouterr().out


def test_the_choice_of_conf_has_tensorboard_and_no_wandb() -> None:
    register_schemas()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        alone = resolve(compose("config", ["logging=tensorboard"])).logging
        both = resolve(compose("config", [ON])).logging
    assert (alone.wandb, alone.tensorboard) == ("disabled", True)
    assert (both.wandb, both.tensorboard) == (None, True)
    assert json.dumps(alone.tags) == "null"
