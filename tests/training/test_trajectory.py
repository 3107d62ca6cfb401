"""A run that keeps its trajectory: which checkpoints stay, and that a kill changes neither them nor their bits."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from helpers.commands import events
from helpers.fake_runs import fake_config
from twotower.distributed.place import Place
from twotower.distributed.world import open_world
from twotower.runs import checkpoint
from twotower.training.processes import _train
from twotower.training.ready_run import get_ready

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORK = ("network=cifar_80sec", "network.width=0.25", "network.image_size=32", "data.size=32")
RUN = ("optim.batch_size=4", "optim.learning_rate=0.0001", "schedule=fixed", "schedule.epochs=2")
HERE = ("machine.threads=1", "input.loader=torch")
RULE = ("checkpoint.rule=trajectory", "checkpoint.every_steps=3", "checkpoint.keep=1")


def train(images: Path, folder: Path, *overrides: str) -> None:
    """A whole run in this process, in folder/run."""
    config = fake_config(images, *NETWORK, *RUN, *HERE, *RULE, f"run_dir={folder / 'run'}", *overrides)
    with (
        get_ready(config, 1) as ready,
        open_world(config.machine, Place(0, 1, 0, 1, 1), str(folder / f"rendezvous{len(overrides)}")) as world,
    ):
        _train(ready, world)


@pytest.mark.parametrize(
    ("steps_per_epoch", "kept"),
    [(1, [0, 1, 2, 3]), (6, [0, 1, 2, 4, 6, 12]), (8, [0, 1, 2, 4, 8, 16]), (9, [0, 1, 2, 4, 8, 9, 18])],
)
def test_the_rule(steps_per_epoch: int, kept: list[int]) -> None:
    found = [step for step in range(kept[-1] + 1) if checkpoint.is_of_trajectory(step, steps_per_epoch)]
    assert found == kept


def test_a_resumed_run_keeps_the_same_checkpoints_to_the_same_bits(images: Path, tmp_path: Path) -> None:
    """6 steps an epoch; one of every three steps is also written, for a kill, and does not stay."""
    train(images, tmp_path)
    whole = tmp_path / "whole"
    (tmp_path / "run").rename(whole)
    shutil.copytree(whole, tmp_path / "run")
    kept = checkpoint.checkpoint_steps(whole / "checkpoints")
    assert kept == [0, 1, 2, 4, 6, 12]

    for step in kept[2:]:  # as after a kill between steps 1 and 2
        shutil.rmtree(checkpoint.place(tmp_path / "run" / "checkpoints", step))
    (tmp_path / "run" / "summary.json").unlink()
    train(images, tmp_path, "resume=auto")
    assert checkpoint.checkpoint_steps(tmp_path / "run" / "checkpoints") == kept
    for step in kept:
        first, second = (
            (checkpoint.place(run / "checkpoints", step) / "tower0.safetensors").read_bytes()
            for run in (whole, tmp_path / "run")
        )
        assert first == second, f"step {step}"

    # Each has errors of its own, also where no epoch ends; the lowest errors are those of epochs.
    last = [checkpoint.read_manifest(checkpoint.place(whole / "checkpoints", step)).progress["last"] for step in kept]
    losses = [errors["loss"] for errors in last]
    assert len(set(losses)) == len(losses)
    looked = [(event["step"], event["loss"]) for event in events(tmp_path / "run") if event["event"] == "trajectory"]
    assert looked == list(zip(kept[:4], losses[:4], strict=True))
    validated = [event["top1_error"] for event in events(whole) if event["event"] == "validation"]
    assert len(validated) == 2
    assert json.loads((whole / "summary.json").read_text())["best_top1_error"] == min(validated)
    initial = load_file(checkpoint.place(whole / "checkpoints", 0) / "tower0.safetensors")
    assert not any(name.startswith("velocity/") for name in initial), "nothing has moved before the first update"
