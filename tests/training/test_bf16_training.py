"""Trainings in bf16: half the bytes cross, an interrupted one ends in the same bits, and nothing mixes precisions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from helpers.commands import NO_WANDB, SMALL, command, draw_images, events, finish
from twotower.ground import precision

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not precision._cpu_has_bf16(), reason="this processor multiplies no bfloat16"),
]
# Wide enough for the steps of conv1 and conv2 in one pass.
ARGUMENTS = (*SMALL, *NO_WANDB, "network.width=0.25", "run_dir=run")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("images"))


def train(images: Path, folder: Path, *overrides: str) -> tuple[int, str]:
    return finish(command(*ARGUMENTS, f"data.root={images}", *overrides, cwd=folder))


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of nine steps in each precision."""
    runs = {}
    for name in ("bf16", "fp32"):
        folder = tmp_path_factory.mktemp(name)
        status, output = train(images, folder, f"machine.precision={name}")
        assert status == 0, output
        assert f"cpu, {name}, exchange over gloo" in output
        runs[name] = folder / "run"
    return runs


def last_tensors(run: Path) -> dict[str, torch.Tensor]:
    folder = sorted((run / "checkpoints").glob("step-*"))[-1]
    return {
        f"{file.stem}.{name}": tensor
        for file in sorted(folder.glob("tower*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def evaluate(run: Path, *arguments: str) -> dict[str, Any]:
    status, output = finish(command(f"run={run}", "device=cpu", *arguments, cwd=run, script="evaluate.py"))
    assert status == 0, output
    found: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    return found


def test_half_the_bytes_cross_and_the_rest_stays_float32(trained: dict[str, Path]) -> None:
    half, whole = (events(trained[name])[0]["exchange_bytes"] for name in ("bf16", "fp32"))
    assert half * 2 == whole
    assert all(tensor.dtype == torch.float32 for tensor in last_tensors(trained["bf16"]).values())
    losses = {name: [e["loss"] for e in events(run) if e["event"] == "train"] for name, run in trained.items()}
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"][0] == pytest.approx(losses["fp32"][0], rel=0.02)
    assert json.loads((trained["bf16"] / "versions.json").read_text())["precision"] == "bf16"


def test_an_interrupted_run_ends_in_the_same_bits(images: Path, trained: dict[str, Path], tmp_path: Path) -> None:
    status, output = train(
        images, tmp_path, "machine.precision=bf16", "checkpoint.every_steps=1", "schedule.max_steps=4"
    )
    assert status == 0, output
    status, output = train(images, tmp_path, "machine.precision=fp32", "resume=run")
    assert status != 0
    assert "precision was bf16 and is fp32 now; use the run's own settings." in output
    status, output = train(images, tmp_path, "machine.precision=bf16", "checkpoint.every_steps=1", "resume=auto")
    assert status == 0, output
    assert "from step 4" in output
    ours, theirs = last_tensors(tmp_path / "run"), last_tensors(trained["bf16"])
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_evaluation_is_in_the_precision_of_the_training(trained: dict[str, Path]) -> None:
    run = trained["bf16"]
    summary = json.loads((run / "summary.json").read_text())
    own = evaluate(run)
    assert own["top1_error"] == summary["top1_error"]
    assert own["loss"] == pytest.approx(summary["loss"], rel=2e-3)
    assert own["identity"]["precision"] == "bf16"
    strict = evaluate(run, "precision=fp32")
    assert "precision" not in strict["identity"]
    assert not strict["centre"]["stored"], "predictions in bfloat16 are not taken for others"
    assert strict["loss"] != own["loss"]
    assert strict["loss"] == pytest.approx(own["loss"], rel=0.05)


def test_a_precision_that_is_not_there_is_refused_before_any_work(images: Path, tmp_path: Path) -> None:
    status, output = train(images, tmp_path, "machine.precision=tf32")
    assert status != 0
    assert "error: machine.precision=tf32 is for GPUs, and this computes on the CPU" in output
    assert not (tmp_path / "run").exists()
