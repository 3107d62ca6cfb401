"""Four processes: the gradients of a tower are means over its replicas, also while layers are frozen and thawed."""

import os
import signal
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from helpers import oracle
from helpers.commands import DEADLINE, NO_WANDB, SMALL, command, finish
from helpers.composing import compose
from helpers.processes import run_processes
from training.test_train import assert_same_bits
from twotower.config import Config, DataConfig
from twotower.data.feed import open_train
from twotower.data.load_data import load
from twotower.distributed.world import World
from twotower.model.volume import measure_volume
from twotower.runs import checkpoint
from twotower.training.trainer import Trainer

pytestmark = pytest.mark.slow
BATCH = 4
FROZEN = ((), ("conv1", "conv2"), ("conv2",), ())  # layers that are not trained, step by step


def settings(batch_size: int) -> Config:
    config = compose("network=alexnet_2012", "network.width=0.0625", f"optim.batch_size={batch_size}")
    data = DataConfig(kind="synthetic", num_train=64, num_val=8, num_classes=5)
    return replace(config, data=data)


def gradients_by_step(world: World, batch_size: int) -> list[dict[str, Tensor]]:
    """Of each step before its update. Each replica gets its rows of the same global batch."""
    config = settings(batch_size)
    trainer = Trainer(config, world, load(config.data), Path("."), None)
    trainer.optimiser.set_rate(0.0)
    found: list[dict[str, Tensor]] = []
    step = trainer.optimiser.step

    def note() -> None:
        named = trainer.tower.paper_named_parameters()
        found.append({name: p.grad.clone() for name, p in named.items() if p.grad is not None})
        step()

    trainer.optimiser.step = note  # type: ignore[method-assign]
    share = replace(trainer.share, batch_size=2 * BATCH, replica=0, num_replicas=1)
    with closing(open_train(trainer.dataset, trainer.input, share, seed=0, first_step=0)) as feed:
        for frozen in FROZEN:
            trainer.tower.freeze(frozen)
            trainer._replicated = None
            batch = next(feed)
            rows = slice(world.replica * batch_size, (world.replica + 1) * batch_size)
            trainer.train_step(replace(batch, images=batch.images[rows], labels=batch.labels[rows]))
            check_volume(trainer)
    return found


def check_volume(trainer: Trainer) -> None:
    """launch/volume.py counts the gradients that torch's DistributedDataParallel itself says it sends."""
    if isinstance(trainer._replicated, DistributedDataParallel):
        parameters = [p.numel() for p in trainer.tower.parameters() if p.requires_grad]
        sent = trainer._replicated._get_ddp_logging_data()["total_parameter_size_bytes"]
        never_used = 4  # the parameter that keeps torch from warning
        assert sent == 4 * sum(parameters) + never_used
        if len(parameters) == len(list(trainer.tower.parameters())):
            volume = measure_volume(trainer.config.network, 5, trainer.config.optim.batch_size, 2)
            assert volume.gradient_bytes[trainer.tower.tower] == sent - never_used


def test_each_gradient_is_the_mean_over_the_replicas(tmp_path: Path) -> None:
    """Against one replica that sees all images; frozen layers have none, and thawed ones are shared again."""
    four = run_processes(gradients_by_step, tmp_path / "four", BATCH, size=4)
    two = run_processes(gradients_by_step, tmp_path / "two", 2 * BATCH)
    for rank in range(4):
        for step, frozen in enumerate(FROZEN):
            found, true = four[rank][step], two[rank % 2][step]
            assert found.keys() == true.keys()
            assert all((name.partition(".")[0] in frozen) == (name not in found) for name in four[rank][0])
            for name, gradient in found.items():
                assert torch.equal(gradient, four[rank % 2][step][name]), "the replicas have the same bits"
                assert oracle.deviation(gradient, true[name]) < 1e-4, (step, name)
        other = oracle.deviation(four[rank][0]["conv1.weight"], two[rank % 2][-1]["conv1.weight"])
        assert other > 0.1, "gradients of other images would have been noticed"


def train(images: Path, folder: Path, *overrides: str) -> tuple[int, str]:
    arguments = (*SMALL, *NO_WANDB, f"data.root={images}", "optim.batch_size=4", "run_dir=run", *overrides)
    return finish(command(*arguments, cwd=folder, torchrun=4))


def test_an_interrupted_run_of_replicas_ends_in_the_same_bits(images: Path, tmp_path: Path) -> None:
    """Repeated, and killed in mid-epoch: the buckets of gradients are the same in each step of each."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    status, output = train(images, whole)
    assert status == 0, output
    assert "2 replicas of 2 towers" in output
    assert "arning" not in output.replace("OMP_NUM_THREADS", ""), "torch's words on its own switches"
    arguments = (*SMALL, *NO_WANDB, f"data.root={images}", "optim.batch_size=4", "run_dir=run")
    process: Any = command(*arguments, "checkpoint.every_steps=1", cwd=cut, torchrun=4)
    end = time.monotonic() + DEADLINE
    while not any(step >= 4 for step in checkpoint.checkpoint_steps(cut / "run" / "checkpoints")):
        assert time.monotonic() < end
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    status, output = train(images, cut, "checkpoint.every_steps=1", "resume=auto")
    assert status == 0, output
    assert_same_bits(cut / "run", whole / "run")
