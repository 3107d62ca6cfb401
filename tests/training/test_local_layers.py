"""A network with local layers from its images to its exported file, by the launcher, as any other network."""

import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from helpers import oracle
from helpers.commands import train
from helpers.composing import compose
from twotower.config import EvaluateConfig, ExportConfig
from twotower.evaluation.evaluate import evaluate_run
from twotower.model import plain
from twotower.model.tower import Tower
from twotower.runs import checkpoint
from twotower.weights.export import export_run
from twotower.weights.read_weights import read_checkpoint

NETWORK = ("network=cifar_11pct", "network.width=0.25", "checkpoint.every_steps=1", "checkpoint.keep=9")
STEPS, RATE = 4, 0.01


def tensors(run_dir: Path, step: int) -> dict[str, Tensor]:
    return load_file(checkpoint.place(run_dir / "checkpoints", step) / "tower0.safetensors")


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("whole")
    status, output = train(images, cwd, *NETWORK, f"schedule.max_steps={STEPS}", "run_dir=run")
    assert status == 0, output
    assert "1 tower in 1 process, cpu, fp32, no exchange" in output
    return cwd / "run"


def test_it_resumes_to_the_same_bits(images: Path, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    for step in (STEPS - 1, STEPS):
        shutil.rmtree(checkpoint.place(tmp_path / "run" / "checkpoints", step))
    status, output = train(images, tmp_path, *NETWORK, f"schedule.max_steps={STEPS}", "run_dir=run", "resume=auto")
    assert status == 0, output
    assert "step 2" in output
    first, second = tensors(run, STEPS), tensors(tmp_path / "run", STEPS)
    assert {"local3.weight", "local3.bias", "velocity/local3.weight"} <= first.keys()
    assert first["local3.weight"].dim() == 6
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_rows_weight_decay_reaches_its_weights_alone(images: Path, run: Path, tmp_path: Path) -> None:
    """One step with a decay of 1 in local3, of 0.004 in the other run: rate * (1 - 0.004) * weights between them."""
    other = ("network.layers.local3.weight_decay=1", "schedule.max_steps=1")
    status, output = train(images, tmp_path, *NETWORK, "run_dir=run", *other)
    assert status == 0, output
    ours, theirs = tensors(run, 1), tensors(tmp_path / "run", 1)
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert changed == {"local3.weight", "velocity/local3.weight"}
    network = compose("data=synthetic", *NETWORK).network
    drawn = Tower(network, 3, 0, seed=0).paper_named_parameters()["local3.weight"].detach().double()
    difference = ours["local3.weight"].double() - theirs["local3.weight"].double()
    assert oracle.deviation(difference, RATE * (1 - 0.004) * drawn) < 1e-4


def test_it_is_evaluated_and_exported(run: Path, tmp_path: Path) -> None:
    """Ten crops, and a file that plain.py reads and that computes the same."""
    found = evaluate_run(EvaluateConfig(run=str(run), crops="ten", device="cpu", batch_size=4))
    assert found["num_images"] == found["centre"]["num_images"] == 7
    assert found["ten"]["loss"] != found["centre"]["loss"]
    files = export_run(ExportConfig(run=str(run), output=str(tmp_path), force=True))
    exported = plain.load(next(path for path in files if path.suffix == ".safetensors"))
    imported = read_checkpoint(run)
    assert imported.network is not None
    assert asdict(imported.network) == exported.table
    tower = Tower(imported.network, 3, 0, seed=1)
    for name, parameter in tower.paper_named_parameters().items():
        parameter.data.copy_(imported.tensors[name])
    images = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 60
    with torch.no_grad():
        assert oracle.deviation(exported(images), tower.eval()(images)) < 1e-5
