"""W&B's offline file of a run holds everything that is promised, with the numbers of metrics.jsonl."""

import ast
import json
import os
import re
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from wandb.sdk import wandb_setup

from helpers import wandb_file, wandb_server
from helpers.commands import DEADLINE, SMALL, command, events, finish
from helpers.event_files import read_events_of, scalars_of
from helpers.fake_runs import draw_images as draw_classes
from helpers.fake_runs import fake_config, fake_run
from helpers.paths import ROOT
from helpers.wandb_file import OfflineRun, ended_runs, read_runs
from twotower.config import Config, EvaluateConfig, LoggingConfig, check, register_schemas
from twotower.config.frozen_config import freeze
from twotower.config.stored_config import read_config
from twotower.data.batch import Batch
from twotower.evaluation.evaluate import evaluate_run
from twotower.model.conv1_kernels import mosaic
from twotower.runs.journal import Journal
from twotower.runs.mirrors.metric_names import IMAGES, MIRRORED, PREDICTIONS, SUMMARY, list_metrics, list_summary_keys
from twotower.runs.mirrors.open_mirrors import (
    check_mirrors,
    log_evaluation,
    log_figures,
    log_figures_of_several,
    open_mirrors,
)
from twotower.runs.mirrors.training_pictures import HANDFUL, Handful, cut_centre, draw_kernels
from twotower.runs.mirrors.wandb_mirror import STAGED
from twotower.runs.mirrors.wandb_run_id import ID_FILE, find_run_id
from twotower.runs.mirrors.wandb_settings import settle
from twotower.training.ready_run import get_ready
from twotower.training.sweep import Job, Sweep

pytestmark = pytest.mark.slow  # most of them start W&B's own process

OFFLINE = "logging.wandb=offline"
ASKED = ("logging.group=trial", "logging.tags=[mine]", "logging.notes=a note", "logging.wandb_checkpoints=last")


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 2 epochs of 3 steps. Files that W&B leaves in the home folder are in home/ beside it."""
    cwd = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(cwd / "home"))
        overrides = (
            *SMALL,
            *ASKED,
            f"data.root={images}",
            "run_dir=run",
            "schedule.epochs=2",
            "logging.tensorboard=true",
        )
        status, output = finish(command(*overrides, cwd=cwd))
    assert status == 0, output
    return cwd / "run"


@pytest.fixture(scope="module")
def mirrored(finished: Path) -> OfflineRun:
    return ended_runs(finished, 1)[0]


def find_faults(run: OfflineRun, run_dir: Path) -> list[str]:
    """Lists what a finished run lacks, or has otherwise than metrics.jsonl."""
    network = read_config(run_dir).network
    faults = [f"{key} was not logged" for key in list_metrics(network) if key not in run.keys]
    faults += [
        f"{key} is not in the summary" for key in list_summary_keys() if "/" not in key and key not in run.summary
    ]
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
        key for key in list_metrics(network) if key.startswith(("kernels/", "input/")) or key in (IMAGES, PREDICTIONS)
    ):
        faults += [f"{path} of {key} is not there" for path in run.files(key) if not path.is_file()]
    faults += [
        f"{key} is not in the configuration" for key in ("versions", "commit", "network") if key not in run.config
    ]
    return faults + ([] if run.exit_code == 0 else [f"exit code {run.exit_code}"])


def numbers_in_summary(run_dir: Path) -> dict[str, float]:
    """What mirrors get of summary.json: all but the words about energy."""
    summary = json.loads((run_dir / "summary.json").read_text())
    assert isinstance(summary.pop("energy"), str)
    return summary  # type: ignore[no-any-return]


def test_a_finished_run_has_everything(finished: Path, mirrored: OfflineRun) -> None:
    assert find_faults(mirrored, finished) == []
    assert mirrored.keys == {*list_metrics(read_config(finished).network), "train/step"}
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
    summary = numbers_in_summary(finished)
    assert {key: mirrored.summary[key] for key in summary} == summary


def test_tensorboard_has_the_same_numbers_and_pictures(finished: Path) -> None:
    """These keys are logged and no others; a table is logged as a text."""
    found = read_events_of(finished)
    shown = {*found.Tags()["scalars"], *found.Tags()["images"], *found.Tags()["tensors"]}
    summary = {f"summary/{key}" for key in numbers_in_summary(finished)}
    texts = {f"{PREDICTIONS}/text_summary", "config/text_summary"}
    hparams = {f"_hparams_/{name}" for name in ("experiment", "session_start_info", "session_end_info")}
    assert shown - hparams == {*list_metrics(read_config(finished).network)} - {PREDICTIONS} | texts | summary
    scalars = scalars_of(found)
    written = [event for event in events(finished) if event["event"] in MIRRORED]
    for event in written:
        for key in event:
            if key not in ("event", "step"):
                of_step = dict(scalars[f"{event['event']}/{key}"])
                assert of_step[event["step"]] == pytest.approx(event[key], rel=1e-6)  # float32
    wanted = sum(len(event) - 2 for event in written) + len(summary)
    assert sum(len(rows) for rows in scalars.values()) == wanted


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
    """7 validation images of 3 classes are shown after each of 2 epochs; a tower has 6 kernels."""
    assert [row["train/step"] for row in mirrored.history if "kernels/conv1" in row] == [3, 6]
    kernels = [Image.open(path) for path in mirrored.files("kernels/conv1")]
    assert all(one.size == ((3 * 12 + 1) * 4, (2 * 13 + 2) * 4) for one in kernels)
    assert kernels[0].tobytes() != kernels[1].tobytes()
    shown = [row[IMAGES] for row in mirrored.history if IMAGES in row]
    assert [one["count"] for one in shown] == [7, 7]
    pictures = [np.asarray(Image.open(path)) for path in mirrored.files(IMAGES)]
    assert all(one.shape == (224, 224, 3) for one in pictures)
    # The images' colours are their classes: splits are in the order blue, green, red.
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
    """The descendants of a process, and their names."""
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
    """All processes are killed at once, also W&B's. Few numbers are logged: W&B always writes after 32 KiB."""
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


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes W&B's variables, whatever this machine has set."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


def log_steps(config: Config, run_dir: Path, first_step: int, last_step: int, exit_code: int) -> None:
    """A training in this process, for the journal's purposes."""
    journal = Journal(config, run_dir, first_step, 6)
    for step in range(first_step + 1, last_step + 1):
        journal.event("train", step, loss=float(step))
    if last_step == 6:
        journal.finish(6, dict.fromkeys(SUMMARY, 1.0) | {"steps": 6})
    journal.close(exit_code)


@pytest.mark.usefixtures("no_variables")
def test_a_training_is_one_run_with_one_history_however_often_it_is_resumed(images: Path, tmp_path: Path) -> None:
    """A run is killed after step 4, resumed from step 2, evaluated and drawn; then W&B's own command sends it.

    (What a real server does beyond that is not known here.)
    """
    config, run_dir = fake_config(images, OFFLINE, "logging.group=trial", "logging.entity=me"), tmp_path / "run"
    run_dir.mkdir()
    log_steps(config, run_dir, 0, 4, exit_code=1)
    log_steps(config, run_dir, 2, 6, exit_code=0)
    figure = tmp_path / "f.png"
    Image.new("RGB", (5, 4), "red").save(figure)
    view = dict.fromkeys(("top1_error", "top5_error", "loss", "num_images", "images_per_second"), 2.0)
    result = {"split": "val", "checkpoint": "step-00000006", "centre": view, "ten": None}
    (run_dir / "evaluation.json").write_text(json.dumps(result))
    log_evaluation(run_dir, config, {"commit": "later"}, result)
    log_figures(run_dir, config, {"figure3": figure})
    parts = ended_runs(run_dir, 4)
    assert {part.about.run_id for part in parts} == {json.loads((run_dir / ID_FILE).read_text())["id"]}
    assert all(part.about.resume for part in parts), "what has `wandb sync` append them"
    assert {(part.about.display_name, part.about.job_type, part.about.run_group) for part in parts} == {
        ("run", "training", "trial")
    }
    assert [part.exit_code for part in parts] == [1, 0, 0, 0]
    assert [part.config.get("resumed_from_step") for part in parts] == [0, 2, None, None]
    assert parts[2].config["evaluation"]["versions"] == {"commit": "later"}
    assert parts[2].config["commit"] == parts[0].config["commit"] != "later"
    losses = [[row["train/loss"] for row in part.history if "train/loss" in row] for part in parts]
    assert losses == [[1, 2, 3, 4], [3, 4, 5, 6], [], []]
    assert [event["loss"] for event in events(run_dir) if event["event"] == "train"] == [1, 2, 3, 4, 5, 6]
    for part in parts[2:]:  # a server may take the last summary for the whole one
        assert {"train/loss": 6.0, "best_top1_error": 1.0, "centre/top1_error": 2.0}.items() <= part.summary.items()

    with wandb_server.serve() as server:
        server.sync([part.folder for part in reversed(parts)], tmp_path)
    (sent,) = server.runs.values()
    assert [row["_step"] for row in sent.history] == list(range(9))
    steps = [row.get("train/step") for row in sent.history]
    assert steps == [1, 2, 3, 4, 3, 4, 5, 6, None], "steps 3 and 4 twice, as they were computed twice; none is lost"
    assert (sent.exit_code, sent.about["displayName"], sent.about["jobType"]) == (0, "run", "training")
    assert {"best_top1_error": 1.0, "centre/top1_error": 2.0}.items() <= sent.summary.items()
    assert sent.config["evaluation"]["value"]["checkpoint"] == "step-00000006"


@pytest.mark.usefixtures("no_variables")
def test_an_id_belongs_to_a_training_and_its_folder(tmp_path: Path) -> None:
    run, copy, moved = tmp_path / "run", tmp_path / "copy", tmp_path / "moved"
    run.mkdir()
    first = find_run_id(run, is_new=True)
    assert re.fullmatch(r"[a-z0-9]{8}", first)
    assert find_run_id(run) == find_run_id(run) == first
    shutil.copytree(run, copy)
    second = find_run_id(copy)
    assert second != first
    assert (find_run_id(copy), find_run_id(run)) == (second, first)
    run.rename(moved)
    assert find_run_id(moved) == first
    again = find_run_id(moved, is_new=True)
    assert again != first, "a training that begins anew in the same folder"
    assert find_run_id(moved, is_new=True, environment={"WANDB_RUN_ID": "agent"}) == "agent"
    assert find_run_id(moved, environment={"WANDB_RUN_ID": "other"}) == "agent"
    for damaged in ("", "[]", '{"id": "a"'):
        (moved / ID_FILE).write_text(damaged)
        assert re.fullmatch(r"[a-z0-9]{8}", find_run_id(moved))
    (moved / ID_FILE).unlink()  # a run from before there were ids
    assert find_run_id(moved) == find_run_id(moved)


def settled(logging: LoggingConfig, environment: dict[str, str], run_dir: Path = Path("nowhere")) -> LoggingConfig:
    return settle(freeze(replace(logging)), run_dir, environment)


KEYS = ("wandb", "project", "entity", "group", "name", "tags", "notes")
VARIABLES = {
    "WANDB_MODE": "online",
    "WANDB_PROJECT": "p",
    "WANDB_ENTITY": "e",
    "WANDB_RUN_GROUP": "g",
    "WANDB_NAME": "n",
    "WANDB_TAGS": "a, b",
    "WANDB_NOTES": "o",
}
FROM_VARIABLES = ["online", "p", "e", "g", "n", ["a", "b"], "o"]


def values_of(logging: LoggingConfig) -> list[Any]:
    return [getattr(logging, key) for key in KEYS]


def test_variables_of_wandb_count_where_a_key_was_not_given() -> None:
    register_schemas()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        choices = ("wandb", "wandb_offline", "no_wandb", "tensorboard")
        given = {one: OmegaConf.to_object(compose("config", [f"logging={one}"]).logging) for one in choices}
        default = OmegaConf.to_object(compose("config").logging)
    assert default == given["wandb"]
    assert values_of(settled(default, {})) == ["offline", "twotower", None, None, None, [], None]
    found = settled(default, VARIABLES)
    assert values_of(found) == FROM_VARIABLES
    assert settled(found, {}) == found, "what is settled stays so, in all processes"
    modes = {one: settled(logging, VARIABLES).wandb for one, logging in given.items()}
    assert modes == {"wandb": "online", "wandb_offline": "offline", "no_wandb": "disabled", "tensorboard": "disabled"}
    asked = LoggingConfig(wandb="offline", project="P", entity="E", group="G", name="N", tags=[], notes="O")
    assert settled(asked, VARIABLES) == asked


def test_modes_of_wandb() -> None:
    plain = LoggingConfig()
    for value, mode in (("dryrun", "offline"), ("run", "online"), ("disabled", "disabled"), ("", "offline")):
        assert settled(plain, {"WANDB_MODE": value}).wandb == mode
    for value, mode in (("true", "disabled"), ("1", "disabled"), ("false", "online"), ("", "online")):
        assert settled(plain, {"WANDB_MODE": "online", "WANDB_DISABLED": value}).wandb == mode
    with pytest.raises(ValueError, match=r"WANDB_MODE=shared is not known here; set it to one of offline, online"):
        settled(plain, {"WANDB_MODE": "shared"})


def test_a_run_that_goes_on_stays_the_same_run_in_wandb(tmp_path: Path) -> None:
    """A run goes on in the same W&B run wherever it is started from; only the mode may change."""
    stored = Config(logging=settled(LoggingConfig(), VARIABLES))
    OmegaConf.save(OmegaConf.structured(stored), tmp_path / "config.yaml")
    others = {"WANDB_PROJECT": "q", "WANDB_TAGS": "c", "WANDB_MODE": "disabled"}
    resumed = settled(LoggingConfig(), others, tmp_path)
    assert values_of(resumed) == ["disabled", *FROM_VARIABLES[1:]]
    assert settled(LoggingConfig(), {}, tmp_path).wandb == "offline", "a folder's word sends nothing"
    assert settled(LoggingConfig(wandb="online"), {}, tmp_path).wandb == "online"
    assert settled(LoggingConfig(project="mine"), {}, tmp_path).project == "mine"
    for damaged in ("", "logging: {", "- a", "logging: 3"):
        (tmp_path / "config.yaml").write_text(damaged)
        assert settled(LoggingConfig(), {}, tmp_path).project == "twotower"


def test_a_job_of_a_sweep_takes_the_group_of_the_variable(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[str | None] = []
    job = Job("seed=0", Path("nowhere"))
    for environment, given in (({}, ()), ({"WANDB_RUN_GROUP": "g"}, ()), ({"WANDB_RUN_GROUP": "g"}, ("group=mine",))):
        monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        config = fake_config(images, *(f"logging.{one}" for one in given))
        Sweep("the-sweep", [job]).run_job(
            0, lambda config=config: config, lambda c: groups.append(c.logging.group) or {}
        )
    assert groups == ["the-sweep", "g", "mine"]


def test_a_run_goes_on_when_wandb_is_lost(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Lost:
        def __getattr__(self, name: str) -> Any:
            raise ConnectionResetError("Connection lost")

    journal = Journal(fake_config(images, OFFLINE), tmp_path, 0, 2)
    (mirror,) = journal.mirrors.open
    mirror._run.finish()
    mirror._run = Lost()
    for step in (1, 2):
        journal.event("train", step, loss=1.0)
        journal.mirrors.kernels(step, np.zeros((2, 2, 3), np.uint8))
    journal.close(0)
    assert len(events(tmp_path)) == 2
    assert capsys.readouterr().out.count("W&B was lost (Connection lost); the run goes on without") == 1
    journal = Journal(fake_config(images, OFFLINE), tmp_path, 2, 2)
    with pytest.raises(TypeError, match="not JSON serializable"):  # a mistake of this project is not hidden
        journal.event("train", 3, loss=object())
    journal.close(1)


def test_without_wandb_there_is_no_folder_of_it(images: Path, tmp_path: Path) -> None:
    config = fake_config(images, "logging=no_wandb")
    journal = Journal(config, tmp_path, 0, 1)
    journal.event("train", 1, loss=1.0)
    journal.close(0)
    assert not journal.mirrors.open
    assert (tmp_path / "metrics.jsonl").exists()
    assert not (tmp_path / "wandb").exists()


@pytest.fixture
def no_key(no_variables: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:9")  # whatever happens, nothing is sent


NO_KEY = r"logging.wandb=online \(or WANDB_MODE=online\) needs a key for .* log in by `wandb login`, or take"


@pytest.mark.usefixtures("no_key")
def test_online_without_a_key_is_one_sentence_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = draw_classes(tmp_path / "images", num_val=1)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(ValueError, match=NO_KEY),
        get_ready(fake_config(data, "logging.wandb=online", "run_dir=run"), 1),
    ):
        pass
    monkeypatch.setenv("WANDB_MODE", "online")
    with (
        pytest.raises(ValueError, match=NO_KEY),
        get_ready(fake_config(data, "logging.wandb=null", "run_dir=run"), 1),
    ):
        pass
    with (
        initialize_config_dir(str(ROOT / "conf"), version_base="1.3"),
        pytest.raises(ValueError, match=NO_KEY),
    ):
        Sweep.plan(["seed=0,1"])
    assert sorted(tmp_path.rglob("*")) == before, "no data prepared, no folder made"
    monkeypatch.setenv("WANDB_API_KEY", "too short")
    with pytest.raises(ValueError, match=r"cannot use the key that it found \(.*\); log in by `wandb login`"):
        check_mirrors(LoggingConfig(wandb="online"))
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    check_mirrors(LoggingConfig(wandb="online"))
    monkeypatch.delenv("WANDB_API_KEY")
    host = urlsplit(wandb_setup.singleton().settings.base_url).netloc
    (tmp_path / "netrc").write_text(f"machine {host} login user password {'k' * 40}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    check_mirrors(LoggingConfig(wandb="online"))


@pytest.mark.usefixtures("no_key")
def test_wandb_that_cannot_be_reached_is_one_sentence(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    def fail(**_: Any) -> None:
        raise wandb.errors.CommError("timed out")

    config, figure = fake_config(images, "logging.wandb=online"), tmp_path / "f.png"
    with pytest.raises(ValueError, match=NO_KEY):  # there is no question at a terminal
        open_mirrors(config, tmp_path, {}, 0)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setattr(wandb, "init", fail)
    with pytest.raises(ValueError, match=r"did not reach W&B \(timed out\); log in by `wandb login`, or take"):
        open_mirrors(config, tmp_path, {}, 0)
    log_figures(tmp_path, config, {"figure3": figure})  # the drawing or result is not lost
    assert "not mirrored: logging.wandb=online did not reach W&B (timed out)" in capsys.readouterr().out
    with pytest.raises(
        ValueError, match=r"logging.wandb_checkpoints=some is not known; choose one of none, last, all"
    ):
        check(fake_config(images, "logging.wandb_checkpoints=some"))


def test_wandb_that_does_not_start_is_one_sentence(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline as well, since it starts a process of its own."""
    import wandb

    def fail(**_: Any) -> None:
        raise wandb.errors.Error("no answer after 30 seconds")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.raises(ValueError, match=r"W&B did not start \(no answer after 30 seconds\); .*logging=no_wandb"):
        open_mirrors(fake_config(images, "logging.wandb=offline"), tmp_path, {}, 0)


@pytest.mark.usefixtures("no_variables")
def test_an_evaluation_is_sent_once(tmp_path: Path) -> None:
    """Results read from stored predictions were sent before. The run is from before there were ids."""
    data = draw_classes(tmp_path / "images", num_val=1)
    run_dir = fake_run(tmp_path / "run", data, OFFLINE, "logging.group=trial")
    settings = EvaluateConfig(run=str(run_dir), crops="ten", device="cpu", batch_size=4)
    result = evaluate_run(settings)
    (run,) = ended_runs(run_dir, 1)
    assert (run.about.run_group, run.about.display_name, run.about.run_id) == ("trial", "run", find_run_id(run_dir))
    assert {key for key in run.summary if "/" in key} == {key for key in list_summary_keys() if "/" in key}
    for view in ("centre", "ten"):
        assert run.summary[f"{view}/top1_error"] == result[view]["top1_error"]
        assert run.summary[f"{view}/loss"] == result[view]["loss"]
    about = run.config["evaluation"]
    assert (about["checkpoint"], about["split"], run.config["network"]["width"]) == ("step-00000001", "val", 0.0625)
    assert run.exit_code == 1, "the training has not finished"
    evaluate_run(settings)
    assert len(ended_runs(run_dir, 1)) == 1


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of wandb.init; nothing is opened."""
    import wandb

    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(wandb, "init", lambda **asked: calls.append(asked) or MagicMock())
    return calls


@pytest.mark.usefixtures("no_variables")
def test_what_comes_after_a_training_goes_where_it_should(
    opened: list[dict[str, Any]], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each case: mode in config.yaml, WANDB_MODE, trained here, finished -> mode and name of the W&B run.

    A run's folder may be somebody else's, who can write into it whatever a training here would have left. So a stored
    `online` sends nothing.
    """
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    figure, told, config = tmp_path / "f.png", list[str](), fake_config(images)
    Image.new("RGB", (5, 4), "red").save(figure)
    for number, (stored, given, here, finished, mode, name) in enumerate(
        (
            ("offline", None, True, True, "offline", "run"),
            ("offline", None, True, False, "offline", "run"),
            ("offline", "online", True, True, "online", "run"),
            ("offline", "disabled", True, True, None, None),
            ("disabled", "online", True, True, None, None),
            ("online", None, True, True, "offline", "run"),
            ("online", None, False, True, "offline", "run"),
            ("online", "online", True, False, "online", "run-figure3"),  # the training may still write to its own
            ("online", "online", False, True, "online", "run"),
        )
    ):
        run_dir = tmp_path / str(number) / "run"
        run_dir.mkdir(parents=True)
        if here:
            find_run_id(run_dir)  # a training does the same
        if finished:
            (run_dir / "summary.json").write_text("{}")
        monkeypatch.delenv("WANDB_MODE", raising=False)
        if given is not None:
            monkeypatch.setenv("WANDB_MODE", given)
        config = replace(config, logging=replace(config.logging, wandb=stored))
        log_figures(run_dir, config, {"figure3": figure}, told.append)
        asked = opened.pop() if mode is not None else {"mode": None, "name": None}
        assert (asked["mode"], asked["name"], opened) == (mode, name, [])
        if mode is not None:
            suffix = "" if name == "run" else "-figure3"
            assert (asked["id"], asked["resume"]) == (find_run_id(run_dir) + suffix, "allow")
    assert len(told) == 2
    assert told[0].endswith("was online; now W&B is offline, and WANDB_MODE=online sends to W&B.")
    log_figures(run_dir, config, {"curves": tmp_path / "not.svg"})
    assert opened == [], "W&B shows no SVG"


@pytest.mark.usefixtures("no_variables")
def test_drawings_of_several_runs_are_a_run_named_after_them(
    opened: list[dict[str, Any]], images: Path, tmp_path: Path
) -> None:
    figure, config = tmp_path / "f.png", fake_config(images, OFFLINE)
    Image.new("RGB", (5, 4), "red").save(figure)
    for folder, name in ((tmp_path / "a", None), (tmp_path / "a", None), (tmp_path / "report", "report")):
        log_figures_of_several(tmp_path / "a", config, folder, {"figure1": figure}, name=name)
    assert [asked["name"] for asked in opened] == ["figure1", "figure1", "report"]
    assert [(asked["group"], asked["job_type"]) for asked in opened] == [("a", "figures")] * 3
    ids = [asked["id"] for asked in opened]
    assert ids[0] == ids[1] != ids[2], "drawn again, it takes the place of the first"
    assert not (tmp_path / "a" / ID_FILE).exists()


@pytest.mark.usefixtures("no_variables")
def test_a_training_has_what_was_asked_for_and_watches_a_gpu(
    opened: list[dict[str, Any]], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*overrides: str) -> dict[str, Any]:
        open_mirrors(fake_config(images, OFFLINE, *overrides), tmp_path, {}, 0)
        return opened.pop()

    asked = ask("logging.entity=team", "logging.name=mine", "logging.tags=[a]")
    assert (asked["entity"], asked["name"], asked["dir"]) == ("team", "mine", tmp_path)
    assert asked["tags"] == ["a", "alexnet_2012", "ablation:none"]
    for has_gpu, overrides, watches in (
        (False, (), False),
        (False, ("logging.system=yes",), True),
        (True, ("machine.device=auto",), True),
        (True, ("machine.device=auto", "logging.system=no"), False),
        (True, ("machine.device=cpu",), False),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        assert ask(*overrides)["settings"].x_disable_stats is not watches
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    assert ask()["dir"] is None, "then W&B takes its variable"


def test_wandb_and_tensorboard_are_imported_by_their_mirrors_alone_and_late() -> None:
    late: dict[str, set[str]] = {"wandb": set(), "tensorboard": set()}
    for path in (ROOT / "src" / "twotower").rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for package in late:
                if any(package in name.split(".") for name in names):
                    assert node not in tree.body, f"{path.name} imports {package} at once"
                    late[package].add(path.stem)
    assert late == {
        "wandb": {"wandb_key", "wandb_mirror", "wandb_runs", "dashboard"},
        "tensorboard": {"tensorboard_mirror"},
    }


def test_a_handful_is_the_same_however_the_batches_are_cut(images: Path) -> None:
    stream = np.random.default_rng(1)
    pixels = stream.integers(0, 256, (50, 6, 6, 3)).astype(np.uint8)
    mean = stream.uniform(90, 140, (8, 8, 3)).astype(np.float32)
    centre = cut_centre(mean, 6)
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
        found.append(handful.predictions)
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
    """Tower 1 has a hundredth of tower 0's weights, and must look grey."""
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
    assert (
        draw_kernels([torch.zeros(2, 3, 5, 5)] * 2).max() == 255
    )  # all weights are alike, and nothing is divided by zero


def test_the_reader_refuses_other_files_and_leaves_out_a_cut_record(finished: Path) -> None:
    with pytest.raises(ValueError, match="no offline file of W&B"):
        list(wandb_file.read_records(b"\x89PNG...."))
    content = next(finished.glob("wandb/offline-run-*/*.wandb")).read_bytes()
    whole: list[Any] = list(wandb_file.read_records(content))
    assert [one.num for one in whole] == list(range(1, len(whole) + 1))
    assert len(content) > wandb_file.BLOCK  # makes some records cross blocks
    assert list(wandb_file.read_records(content[:-3])) == whole[:-1]
