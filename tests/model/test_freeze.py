"""Layers that do not learn: their gradients are not computed, and those of the others stay what they were."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import oracle
from helpers.processes import run_processes
from helpers.towers import load_network
from twotower.distributed.exchange import InProcessExchange, WireExchange
from twotower.distributed.world import World
from twotower.model.tower import Tower, forward

SMALL = {"width": 0.0625, "image_size": 100}


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 100, 100, generator=generator, dtype=torch.float64) * 60
    return images, torch.randint(12, (4,), generator=generator)


def build(tower: int, frozen: tuple[str, ...]) -> Tower:
    built = Tower(load_network("alexnet_2012", **SMALL), 12, tower, seed=3).double().train()
    built.at_step(0, slice(None), 4)
    built.freeze(frozen)
    return built


def gradients(tower: Tower) -> dict[str, Tensor]:
    return {name: p.grad for name, p in tower.paper_named_parameters().items() if p.grad is not None}


def in_process(frozen: tuple[str, ...]) -> tuple[list[dict[str, Tensor]], list[bool]]:
    """Gradients of both towers, and whether the output of each layer of tower 0 belongs to the graph."""
    towers = [build(tower, frozen) for tower in (0, 1)]
    in_graph: list[bool] = []
    for layer in towers[0].table():
        layer.after.register_forward_hook(lambda module, x, y: in_graph.append(y.requires_grad))
    images, labels = batch()
    F.cross_entropy(forward(towers, images, InProcessExchange()), labels).backward()
    return [gradients(tower) for tower in towers], in_graph


def test_the_backward_pass_stops_above_frozen_layers():
    whole, _ = in_process(())
    for frozen, first in (("conv1",), 1), (("conv1", "conv2", "conv3"), 3):
        part, in_graph = in_process(frozen)
        assert in_graph == [False] * first + [True] * (8 - first)
        for all_of, some in zip(whole, part, strict=True):
            assert set(all_of) - set(some) == {name for name in all_of if name.split(".")[0] in frozen}
            assert all(torch.equal(some[name], all_of[name]) for name in some)


def test_a_frozen_layer_in_the_middle_lets_gradients_through():
    whole, _ = in_process(())
    part, in_graph = in_process(("conv4",))
    assert all(in_graph)
    for all_of, some in zip(whole, part, strict=True):
        assert len(some) == len(all_of) - 2
        assert all(torch.equal(some[name], all_of[name]) for name in some)


def wired(world: World, frozen: tuple[str, ...]) -> tuple[dict[str, Tensor], int]:
    tower = build(world.tower, frozen)
    images, labels = batch()
    exchange = WireExchange(world.link, world.tower, tower.rows[-1].kernels)
    logits = forward([tower], images, exchange)
    before = world.link.bytes_sent
    F.cross_entropy(logits, labels).backward()
    return gradients(tower), world.link.bytes_sent - before


@pytest.mark.parametrize("frozen", [("conv1",), ("conv1", "conv2")])
def test_over_the_wire_too(frozen: tuple[str, ...], tmp_path: Path):
    """What is frozen in both towers asks for no gradient: from conv2 on that saves the swap at conv3."""
    expected, _ = in_process(frozen)
    results = run_processes(wired, tmp_path / "towers", frozen)
    rows = {row.name: row for row in build(0, ()).rows}
    requests = {"conv3": 4 * 8 * rows["conv3"].maps_in[0] * rows["conv3"].size_in ** 2}
    requests |= {name: 4 * 8 * rows[name].maps_in[0] for name in ("fc6", "fc7", "fc8")}
    crossing = sum(size for name, size in requests.items() if name != "conv3" or "conv2" not in frozen)
    for tower in (0, 1):
        found, sent = results[tower]
        assert oracle.deviation(found, expected[tower]) < 1e-12
        assert sent == crossing
