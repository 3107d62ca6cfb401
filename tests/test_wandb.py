"""The W&B side of a run: all that is promised is in its offline file, with the numbers of metrics.jsonl."""

import json
import os
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import wandb_file
from commands import DEADLINE, SMALL, command, events, finish
from fake_runs import draw_images as draw_classes
from fake_runs import fake_config, fake_run
from twotower.config import EvaluateConfig, check
from twotower.data import Batch
from twotower.evaluate import evaluate_run, read_config
from twotower.figure3 import mosaic
from twotower.journal import Journal
from twotower.mirror import IMAGES, MIRRORED, PREDICTIONS, STAGED, log_figures, metrics_of, open_mirror, summary_of
from twotower.pictures import HANDFUL, Handful, centre_of, draw_kernels
from wandb_file import OfflineRun, ended_runs, read_runs

OFFLINE = "logging.wandb=offline"
ASKED = ("logging.group=trial", "logging.tags=[mine]", "logging.notes=a note", "logging.wandb_checkpoints=last")


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 2 epochs of 3 steps. What W&B would leave in the home folder would be in home/ beside it."""
    cwd = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(cwd / "home"))
        overrides = (*SMALL, *ASKED, f"data.root={images}", "run_dir=run", "schedule.epochs=2")
        status, output = finish(command(*overrides, cwd=cwd))
    assert status == 0, output
    return cwd / "run"


@pytest.fixture(scope="module")
def mirrored(finished: Path) -> OfflineRun:
    return ended_runs(finished, 1)[0]


def find_faults(run: OfflineRun, run_dir: Path) -> list[str]:
    """What is missing in a run that finished, or differs from metrics.jsonl."""
    network = read_config(run_dir).network
    faults = [f"{key} was not logged" for key in metrics_of(network) if key not in run.keys]
    faults += [f"{key} is not in the summary" for key in summary_of() if "/" not in key and key not in run.summary]
    faults += [
        f"{key} has no step" for key in run.keys for row in run.history if key in row and "train/step" not in row
    ]
    over_steps = {name for name, axis in run.metrics.items() if axis == "train/step"}
    prefixes = {key.partition("/")[0] for key in run.keys}
    faults += [f"{name}/* is not over train/step" for name in prefixes if f"{name}/*" not in over_steps]
    for event in MIRRORED:
        written = [e for e in events(run_dir) if e["event"] == event]
        wanted = [(e["step"], key, e[key]) for e in written for key in e if key not in ("event", "step")]
        found = [
            (row["train/step"], key.removeprefix(f"{event}/"), value)
            for row in run.history
            for key, value in row.items()
            if key.startswith(f"{event}/") and key not in ("train/step", IMAGES, PREDICTIONS)
        ]
        if sorted(wanted) != sorted(found):
            faults.append(f"the numbers of {event} are not those of metrics.jsonl")
    for key in (
        key for key in metrics_of(network) if key.startswith(("kernels/", "input/")) or key in (IMAGES, PREDICTIONS)
    ):
        faults += [f"{path} of {key} is not there" for path in run.files(key) if not path.is_file()]
    faults += [
        f"{key} is not in the configuration" for key in ("versions", "commit", "network") if key not in run.config
    ]
    return faults + ([] if run.exit_code == 0 else [f"exit code {run.exit_code}"])


def test_a_finished_run_has_everything(finished: Path, mirrored: OfflineRun) -> None:
    assert find_faults(mirrored, finished) == []
    assert mirrored.keys == {*metrics_of(read_config(finished).network), "train/step"}
    about = mirrored.about
    assert (about.run_group, about.job_type, about.display_name, about.notes) == (
        "trial",
        "training",
        "run",
        "a note",
    )
    assert set(about.tags) == {"mine", "alexnet_2012", "ablation:none"}
    config = mirrored.config
    assert config["versions"] == json.loads((finished / "versions.json").read_text())
    assert config["commit"] == config["versions"]["commit"]
    assert (config["network"]["width"], config["seed"], config["resumed_from_step"]) == (0.0625, 0, 0)
    summary = json.loads((finished / "summary.json").read_text())
    assert {key: mirrored.summary[key] for key in summary} == summary


def test_what_is_missing_or_wrong_would_be_found(finished: Path, mirrored: OfflineRun) -> None:
    without = ("train/loss", "validation/top5_error", "scales/tower1/fc8/update", "memory/tower1", "kernels/conv1")
    for key in (*without, IMAGES, PREDICTIONS, "input/picture"):
        rows = [{k: v for k, v in row.items() if k != key} for row in mirrored.history]
        assert f"{key} was not logged" in find_faults(replace(mirrored, history=rows), finished)
    first = next(i for i, row in enumerate(mirrored.history) if "train/loss" in row)
    rows = [
        row | {"train/loss": row["train/loss"] + 1e-9} if i == first else row
        for i, row in enumerate(mirrored.history)
    ]
    wrong = {
        "the numbers of train are not those of metrics.jsonl": {"history": rows},
        "best_top1_error is not in the summary": {"summary": {**mirrored.summary, "best_top1_error": 0}},
        "kernels/* is not over train/step": {
            "metrics": {k: v for k, v in mirrored.metrics.items() if "kern" not in k}
        },
        "commit is not in the configuration": {"config": {k: v for k, v in mirrored.config.items() if k != "commit"}},
        "exit code None": {"exit_code": None},
    }
    del wrong["best_top1_error is not in the summary"]["summary"]["best_top1_error"]
    for fault, changed in wrong.items():
        assert find_faults(replace(mirrored, **changed), finished) == [fault]
    assert find_faults(replace(mirrored, folder=finished), finished)[0].endswith(" is not there")


def test_pictures_and_table_are_those_of_each_validation(finished: Path, mirrored: OfflineRun) -> None:
    """7 validation images of 3 classes, after each of 2 epochs; the network has 6 kernels in a tower."""
    assert [row["train/step"] for row in mirrored.history if "kernels/conv1" in row] == [3, 6]
    kernels = [Image.open(path) for path in mirrored.files("kernels/conv1")]
    assert all(one.size == ((3 * 12 + 1) * 4, (2 * 13 + 2) * 4) for one in kernels)
    assert kernels[0].tobytes() != kernels[1].tobytes()
    shown = [row[IMAGES] for row in mirrored.history if IMAGES in row]
    assert [one["count"] for one in shown] == [7, 7]
    pictures = [np.asarray(Image.open(path)) for path in mirrored.files(IMAGES)]
    assert all(one.shape == (224, 224, 3) for one in pictures)
    # The images' colours are their classes: sets are in the order blue, green, red.
    captions = [caption.partition(":")[0] for caption in shown[0]["captions"]]
    brightest = [("red", "green", "blue")[int(one.mean((0, 1)).argmax())] for one in pictures[:7]]
    assert captions == brightest
    table = json.loads(mirrored.files(PREDICTIONS)[1].read_text())
    assert table["columns"][:4] == ["image", "label", "class 1", "probability 1"]
    assert [row[1] for row in table["data"]] == captions
    for row, caption in zip(table["data"], shown[1]["captions"], strict=True):
        assert sum(row[3::2]) == pytest.approx(1)  # all three classes
        assert row[3::2] == sorted(row[3::2], reverse=True)
        assert caption.startswith(f"{row[1]}: {row[2]} {100 * row[3]:.0f} %")


def test_the_last_checkpoint_is_an_artifact_and_nothing_lies_in_the_home_folder(
    finished: Path, mirrored: OfflineRun
) -> None:
    models = {name: one for name, one in mirrored.artifacts.items() if one[0] == "model"}
    files = {"tower0.safetensors", "tower1.safetensors", "manifest.json"}
    assert models == {"trial-run": ("model", files, {"step-00000006", "latest"})}
    staged = [path.stat().st_size for path in (finished / STAGED).rglob("*") if path.is_file()]
    assert (finished / "checkpoints" / "step-00000006" / "tower0.safetensors").stat().st_size in staged
    assert not (finished.parent / "home").exists()


def descendants(pid: int) -> dict[int, str]:
    """The processes below one, and their names."""
    parents, names = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            name, fields = (entry / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
            parents[int(entry.name)], names[int(entry.name)] = int(fields.split()[1]), name
    found: dict[int, str] = {}
    while new := {one: names[one] for one, parent in parents.items() if parent in (pid, *found) and one not in found}:
        found |= new
    return found


def test_a_killed_run_loses_at_most_its_last_second(tmp_path: Path) -> None:
    """All processes at once, W&B's own too. Few numbers: whole blocks of 32 KiB are written in any case."""
    endless = ("data=synthetic", "data.num_train=1000000", "data.num_classes=10", "schedule.epochs=1")
    seldom = ("optim.batch_size=4", "logging.every_steps=5", "logging.scales_every_steps=1000000", "run_dir=run")
    process = command(*SMALL[1:], *endless, *seldom, cwd=tmp_path)
    path, seen = tmp_path / "run" / "metrics.jsonl", {}
    try:
        deadline, enough = time.monotonic() + DEADLINE, None
        while enough is None or time.monotonic() < enough:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()[0]
            now = time.monotonic()
            for line in path.read_text().splitlines(keepends=True) if path.exists() else []:
                if line.endswith("\n"):
                    seen.setdefault(line, now)
            if enough is None and len(seen) >= 3:
                enough = now + 1.5
            time.sleep(0.02)
        below = descendants(process.pid)
        ended = time.monotonic()
        for pid in (*below, process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert any(name.startswith("wandb-core") for name in below.values()), below
    (run,) = read_runs(tmp_path / "run")
    assert run.exit_code is None
    found = {row["train/step"]: row["train/loss"] for row in run.history if "train/loss" in row}
    old = [json.loads(line) for line, when in seen.items() if when < ended - 1]
    assert len(old) >= 3
    assert {event["step"]: event["loss"] for event in old}.items() <= found.items()


def test_each_start_is_a_run_of_its_own_and_says_where_it_goes_on(images: Path, tmp_path: Path) -> None:
    config = fake_config(images, OFFLINE, "logging.group=trial")
    for first_step, last_step, exit_code in ((0, 4, 1), (2, 6, 0)):
        journal = Journal(config, tmp_path, first_step, 6)
        for step in range(first_step + 1, last_step + 1):
            journal.event("train", step, loss=float(step))
        journal.close(exit_code)
    first, second = ended_runs(tmp_path, 2)
    assert [run.about.run_group for run in (first, second)] == ["trial"] * 2
    assert [run.exit_code for run in (first, second)] == [1, 0]
    assert [run.config["resumed_from_step"] for run in (first, second)] == [0, 2]
    assert [[row["train/loss"] for row in run.history] for run in (first, second)] == [[1, 2, 3, 4], [3, 4, 5, 6]]
    assert [event["loss"] for event in events(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_run_goes_on_when_wandb_is_lost(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Lost:
        def __getattr__(self, name: str) -> Any:
            raise ConnectionResetError("Connection lost")

    journal = Journal(fake_config(images, OFFLINE), tmp_path, 0, 2)
    assert journal.mirror is not None
    journal.mirror._run.finish()
    journal.mirror._run = Lost()
    for step in (1, 2):
        journal.event("train", step, loss=1.0)
        journal.mirror.kernels(step, np.zeros((2, 2, 3), np.uint8))
    journal.close(0)
    assert len(events(tmp_path)) == 2
    assert capsys.readouterr().out.count("W&B was lost (Connection lost); the run goes on without") == 1
    journal = Journal(fake_config(images, OFFLINE), tmp_path, 2, 2)
    with pytest.raises(TypeError, match="not JSON serializable"):  # our own mistakes are not hidden
        journal.event("train", 3, loss=object())
    journal.close(1)


def test_without_wandb_there_is_no_folder_of_it(images: Path, tmp_path: Path) -> None:
    config = fake_config(images, "logging=no_wandb")
    journal = Journal(config, tmp_path, 0, 1)
    journal.event("train", 1, loss=1.0)
    journal.close(0)
    assert journal.mirror is None
    assert (tmp_path / "metrics.jsonl").exists()
    assert not (tmp_path / "wandb").exists()


def test_online_without_a_key_is_one_sentence(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:9")  # whatever happens, nothing goes out
    with pytest.raises(ValueError, match=r"logging.wandb=online did not reach W&B .* log in by `wandb login`, or"):
        open_mirror(fake_config(images, "logging.wandb=online"), tmp_path, {}, 0)
    with pytest.raises(
        ValueError, match=r"logging.wandb_checkpoints=some is not known; choose one of none, last, all"
    ):
        check(fake_config(images, "logging.wandb_checkpoints=some"))


def test_an_evaluation_is_a_run_of_the_same_group(tmp_path: Path) -> None:
    """Once: what was read from stored predictions is there already."""
    data = draw_classes(tmp_path / "images", num_val=1)
    run_dir = fake_run(tmp_path / "run", data, OFFLINE, "logging.group=trial")
    settings = EvaluateConfig(run=str(run_dir), crops="ten", device="cpu", batch_size=4)
    result = evaluate_run(settings)
    (run,) = ended_runs(run_dir, 1)
    assert (run.about.run_group, run.about.job_type, run.about.display_name) == (
        "trial",
        "evaluation",
        "run-evaluation",
    )
    assert {key for key in run.summary if "/" in key} == {key for key in summary_of() if "/" in key}
    for view in ("centre", "ten"):
        assert run.summary[f"{view}/top1_error"] == result[view]["top1_error"]
        assert run.summary[f"{view}/loss"] == result[view]["loss"]
    assert (run.config["evaluated"], run.exit_code) == ({"checkpoint": "step-00000001", "split": "val"}, 0)
    assert run.config["network"]["width"] == 0.0625
    evaluate_run(settings)
    assert len(ended_runs(run_dir, 1)) == 1
    figure = tmp_path / "f.png"
    Image.new("RGB", (5, 4), "red").save(figure)
    log_figures(run_dir, read_config(run_dir), {"figure3": figure, "curves": tmp_path / "not.svg"})
    drawn = ended_runs(run_dir, 2)[-1]
    assert (drawn.about.job_type, drawn.keys, drawn.exit_code) == ("figures", {"figures/figure3"}, 0)
    assert Image.open(drawn.files("figures/figure3")[0]).size == (5, 4)


def test_a_handful_is_the_same_however_the_batches_are_cut(images: Path) -> None:
    stream = np.random.default_rng(1)
    pixels = stream.integers(0, 256, (50, 6, 6, 3)).astype(np.uint8)
    mean = stream.uniform(90, 140, (8, 8, 3)).astype(np.float32)
    centre = centre_of(mean, 6)
    assert np.array_equal(centre, mean[1:7, 1:7])
    inputs = torch.from_numpy(pixels - centre).movedim(-1, 1)
    labels = torch.from_numpy(np.arange(50) // 10)
    scores = torch.log_softmax(torch.from_numpy(stream.normal(size=(50, 5))), 1)
    found = []
    for size in (50, 7, 1):
        handful = Handful(50, list("abcde"), centre)
        for begin in range(0, 50, size):
            part = slice(begin, begin + size)
            handful.look(Batch(inputs[part], labels[part]), scores[part])
        found.append(handful.found)
    places = [round(i * 49 / (HANDFUL - 1)) for i in range(HANDFUL)]
    for one in found:
        assert len(one) == HANDFUL
        for place, prediction in zip(places, one, strict=True):
            assert np.array_equal(prediction.pixels, pixels[place])
            assert prediction.label == "abcde"[place // 10]
            best = sorted(zip(scores[place].exp().tolist(), "abcde", strict=True), reverse=True)
            assert [name for name, _ in prediction.likeliest] == [name for _, name in best]
            assert [value for _, value in prediction.likeliest] == pytest.approx([value for value, _ in best])


def test_kernels_are_drawn_on_one_scale_and_enlarged_by_whole_pixels() -> None:
    """Tower 1 is a hundredth of tower 0 and must look grey."""
    towers = [torch.randn(18, 3, 11, 11, dtype=torch.float64) * scale for scale in (1, 0.01)]
    picture = draw_kernels(towers)
    low, high = float(towers[0].min()), float(towers[0].max())
    height = 2 * 12 + 1  # two rows of kernels with lines around them
    assert picture.shape == (4 * (2 * height + 2), 4 * (16 * 12 + 1), 3)
    small = picture[::4, ::4]
    assert np.array_equal(picture, small.repeat(4, 0).repeat(4, 1))
    for tower, top in ((0, 0), (1, height + 2)):
        for number, (row, column) in ((0, (0, 0)), (17, (1, 1))):
            y, x = top + row * 12 + 1, column * 12 + 1
            wanted = (towers[tower][number].movedim(0, -1).numpy() - low) / (high - low) * 255
            assert np.abs(small[y : y + 11, x : x + 11] - wanted).max() <= 0.51
    assert np.ptp(small[height + 3 : height + 14, 1:12]) < 20 < np.ptp(small[1:12, 1:12])
    assert np.array_equal(small[:height], np.rint(255 * mosaic(towers[0], low, high)).astype(np.uint8))
    assert draw_kernels([torch.zeros(2, 3, 5, 5)] * 2).max() == 255  # all alike: no division by nothing


def test_the_reader_refuses_other_files_and_leaves_out_a_cut_record(finished: Path) -> None:
    with pytest.raises(ValueError, match="no offline file of W&B"):
        list(wandb_file.read_records(b"\x89PNG...."))
    content = next(finished.glob("wandb/offline-run-*/*.wandb")).read_bytes()
    whole: list[Any] = list(wandb_file.read_records(content))
    assert [one.num for one in whole] == list(range(1, len(whole) + 1))
    assert len(content) > wandb_file.BLOCK  # so that records across blocks are among them
    assert list(wandb_file.read_records(content[:-3])) == whole[:-1]
