"""Files of a run are complete or absent, and a mean image that is damaged all the same is said and mended."""

import io
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from helpers.contents import contents
from helpers.fake_runs import draw_images, fake_config, fake_run
from twotower.config import EvaluateConfig, ExportConfig
from twotower.data.preparing.first_use import prepare
from twotower.evaluation.evaluate import evaluate_run
from twotower.ground.files import write_whole
from twotower.runs import checkpoint, journal
from twotower.runs.journal import Journal
from twotower.runs.rundir import keep_mean, own_mean
from twotower.training.identity import identify
from twotower.training.processes import run as run_training
from twotower.weights.export import export_run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with images in d/mine."""
    draw_images(tmp_path / "d" / "mine", num_val=1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_is_complete_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a", b"first")

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        for shared in (False, True):
            with pytest.raises(OSError, match="No space"):
                write_whole(tmp_path / "a", b"second", shared)
    assert contents(tmp_path) == {"a": b"first"}
    synced = []
    monkeypatch.setattr(os, "fsync", lambda _descriptor: synced.append((tmp_path / "a").read_bytes()))
    with (tmp_path / "a").open("rb") as reader:
        write_whole(tmp_path / "a", b"second")
        assert reader.read() == b"first", "whoever reads it meanwhile has all of the old one"
    assert synced == [b"first"], "the content is on the disk before the name is"
    assert contents(tmp_path) == {"a": b"second"}


def test_a_run_writes_nothing_in_place(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full after the first byte leaves what was there, whichever file of a resumed run it is."""
    config = fake_config(Path("d/mine"))
    run = here / "run"
    run.mkdir()
    dataset = prepare(config.data, progress=False)
    keep_mean(run, dataset)
    Journal(config, run, 0, 3).close(0)
    before = contents(run)
    assert set(before) == {"config.yaml", "versions.json", "metrics.jsonl", "mean_image.npy"}

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(Path, "write_text", lambda self, text: full(self, text.encode()))
    monkeypatch.setattr(OmegaConf, "save", lambda config, path: full(Path(path), b"x"))
    monkeypatch.setattr(np, "save", _save_in_vain)
    with pytest.raises(OSError, match="No space"):
        Journal(fake_config(Path("d/mine"), "seed=7"), run, 2, 3)
    for write in (lambda: journal.cut_back(run / "metrics.jsonl", 1), lambda: keep_mean(run, _other(dataset))):
        with pytest.raises(OSError, match="No space"):
            write()
    assert contents(run) == before


def _other(dataset: Any) -> Any:
    return replace(dataset, mean_image=dataset.mean_image + 1)


def _save_in_vain(file: Any, array: Any) -> None:
    if isinstance(file, io.BytesIO):
        file.write(b"an array")
    else:
        Path(file).write_bytes(b"x")
        raise OSError(28, "No space left on device")


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "a zip": lambda path: path.write_bytes(b"PK\3\4" + bytes(40)),
    "of another shape": lambda path: np.save(path, np.zeros((3, 4), np.float32)),
    "a number": lambda path: np.save(path, np.float32(1)),
    "of another type": lambda path: np.save(path, np.zeros((4, 4, 3))),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-5000]),
}


def test_a_damaged_mean_image_is_said_and_mended(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is finished: its mean image is written again, and nothing else. What a killed one left goes, too."""
    left = here / "temporary" / "twotower-of-one-that-was-killed"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    monkeypatch.setattr(tempfile, "tempdir", str(left.parent))
    overrides = ("run_dir=run", "schedule=fixed", "schedule.epochs=1", "schedule.max_steps=1", "optim.batch_size=7")
    run = fake_run(here / "run", Path("d/mine"), *overrides)
    config = fake_config(Path("d/mine"), *overrides, "resume=auto")
    dataset = prepare(config.data, progress=False)
    keep_mean(run, dataset)
    whole = (run / "mean_image.npy").read_bytes()
    assert whole == (here / "d" / "mine" / ".twotower" / "mean_image.npy").read_bytes()
    settings = EvaluateConfig(run=str(run), device="cpu", batch_size=8, fresh=True)
    first = evaluate_run(settings)
    for damage in DAMAGES.values():
        (run / "mean_image.npy").write_bytes(whole)
        damage(run / "mean_image.npy")
        with pytest.raises(
            ValueError, match=r"mean_image\.npy is damaged \(.+\); the command .* resume=auto"
        ) as told:
            own_mean(run)
        assert "\n" not in str(told.value)
    for command in (lambda: evaluate_run(settings), lambda: export_run(ExportConfig(run=str(run), force=True))):
        with pytest.raises(ValueError, match=r"mean_image\.npy is damaged"):
            command()
    manifest = checkpoint.find(run) / "manifest.json"
    content = json.loads(manifest.read_text())
    content["identity"] = identify(config, 1, dataset)
    rates = [0.01] * (2 * len(config.network.layers))
    content["rates"] = {"rates": rates, "velocity_rates": rates}
    content["schedule"] = {"num_drops": 0, "best_error": None, "epochs_without_gain": 0}
    best = {"best_top1_error": 1.0, "best_top5_error": 1.0}
    counts = {name: [0.0] * 4 for name in ("window", "epoch")}
    content["progress"] = {**counts, "best": best, "last": {}, "seconds": 1.0, "images": 7, "watching_loss": False}
    manifest.write_text(json.dumps(content))
    (run / "summary.json").write_text('{"top1_error": 1.0}')
    assert run_training(config) == {"top1_error": 1.0}
    assert not left.exists()
    assert "mean_image.npy was damaged, and is written again" in capsys.readouterr().out
    assert (run / "mean_image.npy").read_bytes() == whole
    assert evaluate_run(settings)["loss"] == first["loss"]
