"""A zoo from two lines: a sweep over seeds that keeps trajectories, and one export of all of them."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import twotower
from helpers.commands import NO_WANDB, SMALL, command, finish
from helpers.refusals import refused
from twotower.config import ExportConfig
from twotower.config.stored_config import read_config
from twotower.evaluation.measured import Measurer
from twotower.runs.failure import note_failure
from twotower.weights.export import export_run

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = ("network=cifar_four_layer", "network.towers=2", "network.width=0.25", "network.image_size=32", "data.size=32")
EPOCH = ("schedule.epochs=1", "schedule.drop_epochs=[]", "optim.batch_size=4", "optim.learning_rate=0.005")
STEPS = [0, 1, 2, 4, 8, 16, 30]
FILES = [f"cifar_four_layer-step-{step:08d}.safetensors" for step in STEPS]
FOLDERS = [f"step-{step:08d}" for step in STEPS]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep: two seeds of two towers in two processes, an epoch of 30 steps on three colours."""
    root, stream = tmp_path_factory.mktemp("sweep"), np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 10)):
        for label, name in enumerate(("blue", "green", "red")):
            folder = root / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = stream.integers(0, 130, (32, 32, 3))
                pixels[..., 2 - label] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    words = ("-m", "sweep=zoo", "seed=0,1", *SMALL, *TINY, *EPOCH, *NO_WANDB, f"data.root={root / 'images'}")
    status, output = finish(command(*words, "input.loader=torch", "sweep_dir=zoo", cwd=root))
    assert status == 0, output
    return root / "zoo"


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "trajectory.csv").open() as file:
        return list(csv.DictReader(file))


def test_all_trajectories_are_exported_by_one_command(zoo: Path) -> None:
    """Beside each run, under the names that its own export gives; nothing is at chance in the end."""
    assert [read_config(zoo / f"seed{seed}").checkpoint.rule for seed in (0, 1)] == ["trajectory"] * 2
    status, output = finish(command("zoo", "checkpoint=all", cwd=zoo.parent, script="export.py"))
    assert status == 0, output
    assert [line for line in output.splitlines() if line.startswith("run ")] == [
        "run 1 of 2: seed0",
        "run 2 of 2: seed1",
    ]
    weights = []
    for seed in (0, 1):
        folder = zoo / f"seed{seed}" / "export"
        assert sorted(path.name for path in folder.iterdir()) == [*FILES, "plain.py", "trajectory.csv"]
        assert [(row["step"], row["file"]) for row in read_table(folder)] == [
            (str(step), file) for step, file in zip(STEPS, FILES, strict=True)
        ]
        assert "is at chance" in refused(folder / FILES[0])
        network = twotower.load_network(folder / FILES[-1], device="cpu")
        weights.append(network.towers[0].layers["conv1"].sum.weight)
        assert float(read_table(folder)[-1]["top1_error_high"]) < 100 * 2 / 3
    assert not torch.equal(*weights)
    settings = ExportConfig(run=str(zoo / "seed1"), checkpoint="all", output=str(zoo.parent / "single"))
    assert export_run(settings, Measurer(settings))[-1].read_bytes() == (folder / "trajectory.csv").read_bytes()


def test_a_damaged_run_leaves_the_others_theirs(zoo: Path) -> None:
    """As folders for the hub, in one of each run's name; a job that never began is named, and is no error."""
    sweep, output = zoo.parent / "damaged", zoo.parent / "hub"
    shutil.copytree(zoo, sweep, ignore=shutil.ignore_patterns("export"))
    (sweep / "seed0" / "checkpoints" / "step-00000008" / "manifest.json").write_text("{")
    note_failure(sweep / "seed2", "It had no luck.")
    words = (str(sweep), "checkpoint=all", "to=huggingface", "dtype=float16", f"output={output}")
    status, said = finish(command(*words, cwd=zoo.parent, script="export.py"))
    assert status == 1
    assert "manifest.json" in next(line for line in said.splitlines() if line.startswith("error: "))
    assert "left out: seed2, where no training has begun" in said
    assert said.splitlines()[-1] == "error: 1 of 3 runs could not be exported: seed0"
    assert "Traceback" not in said
    assert not (output / "seed0" / "trajectory.csv").exists()
    assert sorted(path.name for path in (output / "seed1").iterdir()) == [*FOLDERS, "trajectory.csv"]
    assert [row["file"] for row in read_table(output / "seed1")] == [f"{name}/model.safetensors" for name in FOLDERS]
    twotower.load_network(output / "seed1" / FOLDERS[-1], device="cpu")
    assert json.loads((output / "seed1" / FOLDERS[-1] / "config.json").read_text())["seed"] == 1
