"""The order of an image's values in memory, which both towers must have alike."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers.composing import compose
from helpers.processes import run_processes
from twotower.distributed import world as worlds
from twotower.distributed.exchange import WireExchange
from twotower.distributed.world import World
from twotower.ground import devices
from twotower.model.tower import Tower, forward


def make_world(device: str) -> World:
    world = object.__new__(World)
    world.device, world.precision = torch.device(device), "fp32"
    return world


def test_a_cpu_needs_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worlds, "find_faster_format", lambda *arguments: pytest.fail("measured"))
    assert make_world("cpu")._choose_format("auto") == torch.channels_last
    assert make_world("cpu")._choose_format("nchw") == torch.contiguous_format
    assert make_world("cuda")._choose_format("nhwc") == torch.channels_last


@pytest.mark.parametrize(("nchw", "faster"), [(2.0, torch.channels_last), (0.5, torch.contiguous_format)])
def test_on_a_gpu_the_faster_one_is_taken_by_all(
    monkeypatch: pytest.MonkeyPatch, nchw: float, faster: torch.memory_format
) -> None:
    """Rank 0 measures, and the others are told, since each might find another one."""
    times = {torch.contiguous_format: nchw, torch.channels_last: 1.0}
    monkeypatch.setattr(devices, "_time_convolutions", lambda device, precision, order: times[order])
    told: list[str] = []

    def from_first(self: World, name: str, make: Callable[[], str]) -> str:
        told.append(make())
        return told[-1]

    monkeypatch.setattr(World, "from_first", from_first)
    assert make_world("cuda")._choose_format("auto") == faster
    assert len(told) == 1


def logits_in(world: World, images: Tensor) -> Tensor:
    network = compose("network=alexnet_2012", "network.width=0.0625").network
    tower = Tower(network, 10, world.tower, 0).on(world.device, world.memory_format).eval()
    world.link.memory_format = world.memory_format = torch.contiguous_format
    exchange = WireExchange(world.link, world.tower, tower.rows[-1].kernels)
    with torch.no_grad():
        contiguous = forward([tower], images.contiguous(), exchange)
        world.link.memory_format = torch.channels_last
        last = forward([tower], images.contiguous(memory_format=torch.channels_last), exchange)
    assert float((contiguous - last).abs().max()) < 1e-5 * float(last.abs().max())
    return last


@pytest.mark.slow
def test_both_orders_cross_and_give_the_same(tmp_path: Path) -> None:
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 50
    found = run_processes(logits_in, tmp_path, images)
    assert torch.equal(found[0], found[1])
