"""A run that keeps its trajectory: which checkpoints stay, and that a kill changes neither them nor their bits."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from helpers.commands import events, train
from twotower.runs import checkpoint

RUN = ("network=cifar_80sec", "network.width=0.25", "optim.batch_size=4", "schedule.epochs=2", "run_dir=run")
RULE = ("checkpoint.rule=trajectory", "checkpoint.every_steps=3", "checkpoint.keep=1")


@pytest.mark.parametrize(
    ("steps_per_epoch", "kept"),
    [(1, [0, 1, 2, 3]), (6, [0, 1, 2, 4, 6, 12]), (8, [0, 1, 2, 4, 8, 16]), (9, [0, 1, 2, 4, 8, 9, 18])],
)
def test_the_rule(steps_per_epoch: int, kept: list[int]) -> None:
    found = [step for step in range(kept[-1] + 1) if checkpoint.is_of_trajectory(step, steps_per_epoch)]
    assert found == kept


def test_a_resumed_run_keeps_the_same_checkpoints_to_the_same_bits(images: Path, tmp_path: Path) -> None:
    """6 steps an epoch; one of every three steps is also written, for a kill, and does not stay."""
    status, output = train(images, tmp_path, *RUN, *RULE)
    assert status == 0, output
    whole = tmp_path / "whole"
    (tmp_path / "run").rename(whole)
    shutil.copytree(whole, tmp_path / "run")
    kept = checkpoint.checkpoint_steps(whole / "checkpoints")
    assert kept == [0, 1, 2, 4, 6, 12]

    for step in kept[2:]:  # as after a kill between steps 1 and 2
        shutil.rmtree(checkpoint.place(tmp_path / "run" / "checkpoints", step))
    (tmp_path / "run" / "summary.json").unlink()
    status, output = train(images, tmp_path, *RUN, *RULE, "resume=auto")
    assert status == 0, output
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
