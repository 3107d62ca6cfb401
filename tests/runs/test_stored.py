"""What a run stores, read elsewhere: where its images are, and what a stranger may have written into it."""

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

from helpers.contents import contents
from helpers.fake_runs import NUM_CLASSES, draw_images, fake_config, fake_run, save_checkpoint
from helpers.paths import ROOT
from twotower.config import Config, DataConfig, EvaluateConfig, ExportConfig, register_schemas, resolve
from twotower.config.presets import network_of
from twotower.config.stored_config import read_config
from twotower.data.load_data import load
from twotower.data.prepared_set import read_dataset_json
from twotower.data.preparing.first_use import prepare
from twotower.data.shapes import draw_shapes
from twotower.evaluation.evaluate import evaluate_run
from twotower.evaluation.subject import open_subject
from twotower.ground.files import write_whole
from twotower.reports.collect import find_runs
from twotower.reports.pictures import draw_of_run
from twotower.runs.journal import Journal
from twotower.runs.rundir import find_home, hold_home
from twotower.weights.export import export_run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("images"), num_val=1)


@pytest.fixture
def here(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with images in d/mine."""
    shutil.copytree(drawn, tmp_path / "here" / "d" / "mine")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def evaluated(run: Path, **changes: Any) -> dict[str, Any]:
    return evaluate_run(EvaluateConfig(run=str(run), device="cpu", batch_size=8, **changes))


def change_config(run: Path, old: str, new: str) -> None:
    text = (run / "config.yaml").read_text()
    assert old in text
    (run / "config.yaml").write_text(text.replace(old, new))


# Where a run and its images lie


def compose(*overrides: str) -> Config:
    register_schemas()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(hydra.compose("config", list(overrides)))


def test_every_path_of_a_configuration_is_absolute(here: Path) -> None:
    overrides = ("data=folder", "data.root=d/mine", "data.cache=c", "run_dir=runs/a", "resume=runs/b")
    config = compose(*overrides, "initial_weights.path=w.safetensors", "sweep_dir=./s")
    found = [config.data.root, config.data.cache, config.run_dir, config.resume, config.initial_weights.path]
    wanted = [here / name for name in ("d/mine", "c", "runs/a", "runs/b", "w.safetensors", "s")]
    assert [*found, config.sweep_dir] == [str(path) for path in wanted]
    shapes = compose("resume=auto")
    assert (shapes.data.root, shapes.resume) == (str(here / "datasets" / "shapes"), "auto")
    assert (shapes.data.cache, shapes.run_dir, shapes.initial_weights.path, shapes.sweep_dir) == (None,) * 4
    assert compose("data=synthetic").data.root is None


@pytest.mark.parametrize("stored", ["d/mine", "absolute"])
def test_an_interrupted_run_is_found_by_its_command(here: Path, stored: str) -> None:
    """Also a run of earlier versions, which noted the path as it was typed."""
    run = fake_run(here / "runs" / "a", Path("d/mine"))
    change_config(run, f"root: {here}/d/mine", f"root: {here / 'd/mine' if stored == 'absolute' else stored}")
    config = fake_config(Path("d/mine"), "resume=auto")
    with hold_home(config) as home:
        assert home.run_dir == Path("runs/a")
        assert home.resume_from == Path("runs/a/checkpoints/step-00000001")
    assert find_home(fake_config(Path("d/other"), "resume=auto")).resume_from is None
    broken = here / "runs" / "b"
    shutil.copytree(run, broken)
    (broken / "config.yaml").write_text("{[")
    assert find_home(config).run_dir == Path("runs/a"), "what cannot be read is passed over"


@pytest.mark.parametrize("noted", ["absolute", "relative"])
def test_a_run_finds_its_images_from_any_folder(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noted: str
) -> None:
    run = fake_run(here / "run", Path("d/mine"))
    if noted == "relative":  # as runs of earlier versions have it
        change_config(run, f"root: {here}/d/mine", "root: d/mine")
    first = evaluated(Path("run"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    if noted == "absolute":
        again = evaluated(run)
        assert again["centre"]["stored"], "these are the same images, so the same predictions"
        assert {**again, "report": "", "centre": 0} == {**first, "report": "", "centre": 0}
    else:
        with pytest.raises(ValueError, match=r"elsewhere/d/mine \(the run says only d/mine\).*data_root=DIR"):
            evaluated(run)
        assert evaluated(run, data_root="../here/d/mine")["loss"] == first["loss"]
    assert list(Path().iterdir()) == []


def test_images_that_are_gone_are_asked_for_by_the_key_of_the_command(here: Path) -> None:
    run = fake_run(here / "run", Path("d/mine"))
    Path("d").rename("moved")
    before = contents(here)
    sentence = r"^run was trained on the images in .*here/d/mine, which is not there; say .* data_root=DIR: a fo"
    for command in (
        lambda: evaluated(Path("run")),
        lambda: evaluated(Path("run"), fresh=True),
        lambda: draw_of_run(find_runs(["run"])[0]),
    ):
        with pytest.raises(ValueError, match=sentence):
            command()
    with pytest.raises(ValueError, match=r"^data_root=nowhere does not exist or is no folder; it should hold train/"):
        evaluated(run, data_root="nowhere")
    with pytest.raises(ValueError, match=r"^data_root=moved has no folder train; it should hold train/<class>"):
        evaluated(run, data_root="moved")
    assert contents(here) == before
    assert evaluated(run, data_root="moved/mine")["num_images"] == NUM_CLASSES


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes") / "shapes"
    draw_shapes(root, 12, 12)
    return root


def run_on_shapes(folder: Path, *overrides: str) -> Path:
    """Made in the current folder, where the set would be drawn into datasets/shapes."""
    small = ("data=shapes", "data.num_train=12", "data.num_val=12", "network.width=0.0625", "network.image_size=64")
    config = compose(*small, "logging.wandb=disabled", "machine.device=cpu", "optim.batch_size=4", *overrides)
    save_checkpoint(folder, config, seed=0, num_classes=12)
    manifest = folder / "checkpoints" / "step-00000001" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["classes"] = sorted(f"{colour}_{form}" for colour in COLOURS for form in FORMS)
    manifest.write_text(json.dumps(content))
    write_whole(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)).encode())
    return folder


COLOURS, FORMS = ("red", "green", "blue"), ("circle", "square", "star", "triangle")


def test_evaluation_never_draws(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first user's second data set in /datasets/shapes."""
    home = tmp_path / "home"
    shutil.copytree(shapes, home / "datasets" / "shapes")
    monkeypatch.chdir(home)
    run = run_on_shapes(home / "run")
    first = evaluated(run)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluated(run)["centre"]["stored"]
    (home / "datasets").rename(tmp_path / "moved")
    asked = r"images in .*home/datasets/shapes, which is not there; .* data_root=DIR: the 12 \+ 12 images"
    with pytest.raises(ValueError, match=asked):
        evaluated(run)
    change_config(run, f"root: {home}/datasets/shapes", "root: null")  # as runs of earlier versions have it
    with pytest.raises(ValueError, match=r"elsewhere/datasets/shapes \(the run says only datasets/shapes\)"):
        evaluated(run)
    with pytest.raises(ValueError, match=r"^data_root=nowhere does not exist"):
        evaluated(run, data_root="nowhere")
    assert list(Path().iterdir()) == []
    assert "drawing" not in capsys.readouterr().out
    assert evaluated(run, data_root=str(tmp_path / "moved" / "shapes"))["loss"] == first["loss"]
    (tmp_path / "moved" / "shapes" / "shapes.json").write_text('{"drawing": 2, "num_train": 24, "num_val": 12}')
    with pytest.raises(ValueError, match=r"12 \+ 12 images that .*, and .* does not hold these; .*data_root=DIR"):
        evaluated(run, data_root=str(tmp_path / "moved" / "shapes"))


# What a stranger may have put there


def test_evaluation_writes_into_no_folder_that_a_run_names(here: Path) -> None:
    victim = here / "victim"
    victim.mkdir()
    (victim / "index.json").write_text('{"my": "site"}')
    (victim / "mean_image.npy").write_bytes(b"mine")
    before = contents(victim)
    run = fake_run(here / "run", Path("d/mine"), f"data.cache={victim}")
    plain = evaluated(fake_run(here / "plain", Path("d/mine")))
    assert evaluated(run)["loss"] == plain["loss"]
    draw_of_run_is_possible = open_subject(str(run), EvaluateConfig(run=str(run)))
    assert draw_of_run_is_possible.config.data.cache is None
    assert contents(victim) == before


def test_an_index_elsewhere_serves_evaluation_as_long_as_it_is_of_these_images(here: Path) -> None:
    """Data sets are often read-only, and their index lies in data.cache."""
    run = fake_run(here / "run", Path("d/mine"), "data.cache=cache")
    prepare(read_config(run).data, progress=False)
    assert not Path("d/mine/.twotower").exists()
    before = contents(here / "cache")
    evaluated(run)
    assert not Path("d/mine/.twotower").exists()
    shutil.copy("d/mine/val/c0/0.png", "d/mine/val/c0/1.png")
    assert evaluated(run)["num_images"] == NUM_CLASSES + 1
    assert Path("d/mine/.twotower/index.json").exists()
    assert contents(here / "cache") == before


@pytest.mark.parametrize("name", ["index.json", "mean_image.npy", "picture.png"])
def test_preparation_replaces_nothing_that_is_not_its_own(here: Path, name: str) -> None:
    (here / "home").mkdir()
    (here / "home" / name).write_text('{"format": 3}')
    with pytest.raises(ValueError, match=rf"has a {name} that is not of this project, .* data\.cache=DIR"):
        prepare(DataConfig(kind="folder", root="d/mine", cache="home"), progress=False)
    assert contents(here / "home") == {name: b'{"format": 3}'}


def test_a_preparation_that_was_killed_may_go_on_in_its_cache(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the mean image, before the index."""
    data, written = DataConfig(kind="folder", root="d/mine", cache="cache"), os.replace

    def killed(source: Any, target: Any) -> None:
        written(source, target)
        if Path(target).name == "mean_image.npy":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(data, progress=False)
    with pytest.raises(ValueError, match="has not been prepared"):
        load(data)
    assert len(prepare(data, progress=False).train) == NUM_CLASSES


def test_nothing_that_a_run_stored_is_resolved(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret-7")
    run = fake_run(here / "runs" / "a", Path("d/mine"))
    change_config(run, "command: null", "command: python launch/two_gpu.py 'name=${oc.env:MY_TOKEN}'")
    assert read_config(run).command == "python launch/two_gpu.py 'name=${oc.env:MY_TOKEN}'", "as it was typed"
    for old, new in (
        ("name: fake", "name: ${oc.env:MY_TOKEN}"),
        ("tags: null", "tags: ['a ${oc.env:MY_TOKEN}']"),
        ("seed: 0", "seed: ${network.towers}"),
    ):
        kept = (run / "config.yaml").read_text()
        change_config(run, old, new)
        for read in (
            lambda: read_config(run),
            lambda: evaluated(run),
            lambda: export_run(ExportConfig(run=str(run), force=True)),
        ):
            with pytest.raises(ValueError, match=r"runs/a/config\.yaml has '.*\$\{.*', which stands for") as told:
                read()
            assert "secret-7" not in str(told.value)
        (found,) = find_runs([str(run)])
        assert "which stands for a value from elsewhere" in found.remark
        assert find_home(fake_config(Path("d/mine"), "resume=auto")).resume_from is None
        (run / "config.yaml").write_text(kept)
    table = asdict(read_config(run).network) | {"name": "${oc.env:MY_TOKEN}"}
    with pytest.raises(ValueError, match=r"^a\.safetensors has '\$\{oc\.env:MY_TOKEN\}'"):
        network_of(table, "a.safetensors")


def test_a_command_with_an_interpolation_is_stored_as_it_was_typed(here: Path) -> None:
    command = "python launch/two_gpu.py 'logging.notes=${data.kind}'"
    config = replace(fake_config(Path("d/mine")), command=command)
    (here / "run").mkdir()
    Journal(config, here / "run", 0, 3).close(0)
    assert read_config(here / "run") == config


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index["files"]["val"]["c0"].append("../../../../private/mine.png"),
        lambda index: index["files"]["val"]["c0"].append("/private/mine.png"),
        lambda index: index["files"]["train"]["c0"].append(".."),
        lambda index: index["classes"].__setitem__(0, "../../private"),
        lambda index: index["files"]["val"].__setitem__("../../private", ["mine.png"]),
        lambda index: index["files"].__setitem__("../private", {"c0": ["mine.png"]}),
    ],
)
def test_an_index_names_nothing_outside_of_its_data_set(here: Path, change: Any) -> None:
    data = DataConfig(kind="folder", root="d/mine")
    prepare(data, progress=False)
    path = here / "d" / "mine" / ".twotower" / "index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    for read in (lambda: prepare(data, progress=False), lambda: load(data)):
        with pytest.raises(ValueError, match=r"index\.json names .*, which is no file in a class's folder"):
            read()


def test_an_index_of_other_files_with_the_right_fingerprint_is_made_anew(here: Path) -> None:
    data = DataConfig(kind="folder", root="d/mine")
    first = prepare(data, progress=False)
    path = here / "d" / "mine" / ".twotower" / "index.json"
    index = json.loads(path.read_text())
    index["files"]["val"]["c0"], index["files"]["val"]["c1"] = ["0.png", "0.png"], []
    path.write_text(json.dumps(index))
    assert prepare(data, progress=False).val.labels.tolist() == first.val.labels.tolist()


@pytest.mark.parametrize(
    "splits",
    [
        {"train": {"shards": [{"file": "../../private/00000.tar"}]}},
        {"train": {"shards": [{"file": "00000.tar"}]}, "../private": {"shards": []}},
        {"val": {"shards": [{"file": "00000.tar"}, {"file": "/private/00001.tar"}]}},
    ],
)
def test_a_prepared_set_names_nothing_outside_of_itself(tmp_path: Path, splits: dict[str, Any]) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"format": 1, "splits": splits}))
    with pytest.raises(ValueError, match=r"dataset\.json names other files than the shards of train, val and test"):
        read_dataset_json(tmp_path)
