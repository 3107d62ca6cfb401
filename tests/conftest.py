"""What several tests need: a network from its yaml, and processes that are two towers."""

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from commands import draw_images
from twotower.config import MachineConfig, NetworkConfig, OptimConfig, leave_out_layers
from twotower.exchange import Exchange
from twotower.layers import Dropout
from twotower.network import Tower, forward
from twotower.optim import VelocitySGD
from twotower.world import Place, open_world

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 + 7 noisy images of three colours, as a folder to train on."""
    return draw_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Of torch, for a module: more of them only wait for each other on small networks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load_network(name: str, **overrides: Any) -> NetworkConfig:
    """conf/network/NAME.yaml as a `NetworkConfig`; overrides by key, e.g. `width=0.125`, `lrn={"n": 3}`."""

    def chain(name: str) -> list[Any]:
        yaml = OmegaConf.load(ROOT / "conf" / "network" / f"{name}.yaml")
        parents = [one for one in yaml.pop("defaults", []) if isinstance(one, str) and one != "_self_"]
        return [part for parent in parents for part in chain(parent)] + [yaml]

    network = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(NetworkConfig), *chain(name), overrides))
    assert isinstance(network, NetworkConfig)
    leave_out_layers(network)
    return network


@dataclass
class Run:
    """What `run_towers` saw; the lists hold one entry for each tower of this process."""

    test_logits: Tensor
    logits: Tensor  # of the first training step
    before: list[dict[str, Tensor]]  # the parameters
    gradients: list[dict[str, Tensor]]  # of the first training step
    after: list[dict[str, Tensor]]  # the parameters after one update for each rate


def run_towers(
    towers: Sequence[Tower],
    network: NetworkConfig,
    exchange: Exchange,
    images: Tensor,
    labels: Tensor,
    rates: Sequence[float],
) -> Run:
    """One test pass, then a training step for each rate, always on the same images."""
    named = [tower.paper_named_parameters() for tower in towers]
    optim = OptimConfig()
    rules = [VelocitySGD(p, optim.momentum, optim.weight_decay, network.bias_rate, network.bias_decay) for p in named]
    for tower in towers:
        tower.eval()
    with torch.no_grad():
        test_logits = forward(towers, images, exchange)
    before, logits, gradients = copies(named), torch.empty(0), []
    for step, rate in enumerate(rates):
        for tower, rule in zip(towers, rules, strict=True):
            tower.train()
            tower.at_step(step, slice(None), len(images))
            rule.set_rate(rate)
        z = forward(towers, images, exchange)
        F.cross_entropy(z, labels).backward()
        if step == 0:
            logits = z.detach()
            gradients = [{name: p.grad.clone() for name, p in p_of.items()} for p_of in named]
        for rule in rules:
            rule.step()
    return Run(test_logits, logits, before, gradients, after=copies(named))


def copies(named: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The values as they are now."""
    return [{name: p.detach().clone() for name, p in p_of.items()} for p_of in named]


def masks_at(towers: Sequence[Tower], step: int, images: Tensor) -> dict[str, Tensor]:
    """The masks [B, units] of both towers that the dropout of fc6 and fc7 lets through at a step."""
    masks: dict[str, list[Tensor]] = {"fc6": [], "fc7": []}
    for tower in towers:
        tower.train()
        tower.at_step(step, slice(None), len(images))
        for row in tower.rows:
            for module in tower.layers[row.name].modules():
                if isinstance(module, Dropout):
                    masks[row.name].append(module(images.new_ones(len(images), row.kernels[tower.tower])))
    whole = {name: torch.cat(both, dim=1) for name, both in masks.items()}
    assert all(mask.unique().tolist() == [0, 1] for mask in whole.values()), "kept or not, and nothing rescaled"
    return whole


def _process(
    rank: int, size: int, timeout: float, device: str, folder: Path, body: Callable[..., Any], args: tuple
) -> None:
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        machine = MachineConfig(device=device, timeout_seconds=timeout)
        with open_world(machine, Place(rank, size, rank, size), rendezvous=str(folder / "rendezvous")) as world:
            result = body(world, *args)
        torch.save(result, folder / f"{rank}.saving")
        (folder / f"{rank}.saving").rename(folder / f"{rank}.pt")
    except BaseException:
        (folder / f"{rank}.txt").write_text(traceback.format_exc())
        raise


def run_processes(
    body: Callable[..., Any],
    folder: Path,
    *args: Any,
    size: int = 2,
    timeout: float = 30.0,
    deadline: float = 90.0,
    device: str = "cpu",
    may_be_lost: tuple[int, ...] = (),
) -> dict[int, Any]:
    """Runs body(world, *args) in `size` processes over gloo and returns what each rank returned.

    The processes give up after `timeout` seconds without an answer, and are killed after `deadline` seconds.

    Args:
        body: a function at the top level of a module.
        folder: an empty one, for the rendezvous and the results.
        may_be_lost: ranks that need not return anything; they are killed when all others have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = mp.get_context("spawn")
    arguments = [(rank, size, timeout, device, folder, body, args) for rank in range(size)]
    processes = [context.Process(target=_process, args=a, daemon=True) for a in arguments]
    awaited = [rank for rank in range(size) if rank not in may_be_lost]
    end = time.monotonic() + deadline
    try:
        for process in processes:
            process.start()
        for rank in awaited:
            processes[rank].join(max(0.0, end - time.monotonic()))
        failures = [f"rank {rank}:\n{(folder / f'{rank}.txt').read_text()}" for rank in _that_failed(folder, size)]
        assert not failures, "\n".join(failures)
        for rank in awaited:
            assert processes[rank].exitcode is not None, f"rank {rank} still runs after {deadline:g} s"
            assert processes[rank].exitcode == 0, f"rank {rank} ended with exit code {processes[rank].exitcode}"
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            if process.pid is not None:
                process.join()
    results = {rank: torch.load(folder / f"{rank}.pt", weights_only=False) for rank in awaited}
    for rank in awaited:
        (folder / f"{rank}.pt").unlink()  # a full tower is 120 MB, and pytest keeps its folders
    return results


def _that_failed(folder: Path, size: int) -> list[int]:
    return [rank for rank in range(size) if (folder / f"{rank}.txt").exists()]
