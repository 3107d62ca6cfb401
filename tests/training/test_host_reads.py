"""A training step never reads a number from the device: on a GPU each such read would wait for all that is queued."""

import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.composing import compose
from helpers.processes import run_processes
from twotower.data.load_data import load
from twotower.training import trainer as trainer_file
from twotower.training.trainer import Trainer

# What waits for a GPU: a value becomes a number of Python, or the size of a result depends on values.
READING_METHODS = {
    Tensor.item,
    Tensor.tolist,
    Tensor.numpy,
    Tensor.cpu,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.__array__,
    Tensor.nonzero,
    torch.nonzero,
    torch.equal,
}
READING_KERNELS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim"}


def where() -> str:
    frames = [frame for frame in traceback.extract_stack() if "twotower" in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "?"


class Methods(TorchFunctionMode):
    """Notes the methods that read, also those that copy to the host by name."""

    def __init__(self, reads: list[str]) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_copy = function is Tensor.to and any(str(arg) == "cpu" for arg in (*args[1:], *kwargs.values()))
        if function in READING_METHODS or is_copy:
            self.reads.append(f"{getattr(function, '__name__', function)} in {where()}")
        return function(*args, **kwargs)


class Kernels(TorchDispatchMode):
    """Notes the kernels that read, from Python or from within torch, forward and backward."""

    def __init__(self, reads: list[str]) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ in READING_KERNELS:
            self.reads.append(f"{function.overloadpacket.__name__} in {where()}")
        return function(*args, **(kwargs or {}))


def watch_steps(world: Any, overrides: tuple[str, ...], mistake: str) -> list[str]:
    """The reads in three steps, of which the first compares the pixels and the next sends what it found."""
    config = compose("data=synthetic", "data.num_classes=10", "optim.batch_size=4", *overrides)
    trainer = Trainer(config, world, load(config.data), Path("."), None)
    trainer.optimiser.set_rate(1e-4)
    make_mistake(mistake, trainer)
    feed = trainer_file.open_train(trainer.dataset, trainer.input, trainer.share, seed=0, first_step=0)
    batches = [next(feed) for _ in range(3)]
    reads: list[str] = []
    with Methods(reads), Kernels(reads):
        for batch in batches:
            trainer.train_step(batch)
    assert trainer.step == 3
    return reads


def make_mistake(mistake: str, trainer: Trainer) -> None:
    """As somebody could write it one day."""
    count, start = trainer_file.count, trainer.exchange.start
    if mistake == "after the forward pass":
        trainer_file.count = lambda scores, labels: count(scores, labels) * float(scores.mean())
    elif mistake == "in the exchange":
        trainer.exchange.start = lambda halves: start([half + half.max().item() for half in halves])  # type: ignore[method-assign]
    elif mistake == "in the backward pass":
        parameter = next(iter(trainer.tower.parameters()))
        parameter.register_hook(lambda grad: grad * bool(grad.abs().max() > 0))
    elif mistake == "to the host":
        trainer_file.count = lambda scores, labels: count(scores.cpu(), labels)
    else:
        assert not mistake


@pytest.mark.parametrize("network", ["alexnet_2012", "alexnet"])
def test_no_step_reads_from_the_device(tmp_path: Path, network: str) -> None:
    overrides = (f"network={network}", "network.width=0.0625")
    assert run_processes(watch_steps, tmp_path, overrides, "") == {0: [], 1: []}


@pytest.mark.parametrize(
    "mistake", ["after the forward pass", "in the exchange", "in the backward pass", "to the host"]
)
def test_a_step_that_reads_is_noticed(tmp_path: Path, mistake: str) -> None:
    overrides = ("network=alexnet_2012", "network.width=0.0625")
    reads = run_processes(watch_steps, tmp_path, overrides, mistake)
    assert all(reads[tower] for tower in (0, 1))
