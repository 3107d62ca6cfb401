"""The exchange in half precision (run 170-quant of 2012) against its rule written out, in one process and in two.

Only what crosses is rounded to float16: the half that the other tower reads, and what it asks of it, as the sum over
the batch and not as the mean. All else is float64 here, so that nothing but this rounding can differ.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import oracle, references
from helpers.processes import run_processes
from helpers.towers import Run, load_network, run_towers
from twotower.config import NetworkConfig
from twotower.distributed.exchange import InProcessExchange, WireExchange
from twotower.ground.processes import cores
from twotower.model.layer_table import plan
from twotower.model.layers import Dropout
from twotower.model.tower import Tower, forward

SEED, CLASSES, BATCH = 13, 11, 6  # 6 is no power of two: sums and means are then rounded to different values
SMALL = {"width": 0.0625, "image_size": 100}
LINKED = ("conv3", "fc6", "fc7", "fc8")


@pytest.fixture(autouse=True, scope="module")
def _as_many_threads_as_a_process():
    """Or sums would be cut differently, and the comparison bit by bit could not be made."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, cores() // 2))
    yield
    torch.set_num_threads(threads)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(BATCH, 3, 100, 100, generator=generator, dtype=torch.float64) * 70
    return images, torch.randint(CLASSES, (BATCH,), generator=generator)


def network_of(precision: str) -> NetworkConfig:
    return load_network("alexnet_2012", exchange_precision=precision, **SMALL)


def towers_of(network: NetworkConfig, memory_format: torch.memory_format) -> list[Tower]:
    towers = [Tower(network, CLASSES, tower, SEED).double() for tower in (0, 1)]
    return [tower.to(memory_format=memory_format) for tower in towers]


class Crossing(torch.autograd.Function):
    """What the other tower gets of a half, and what comes back; `images` is what requests are multiplied by."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, images: int) -> Tensor:
        ctx.images = images
        return x.half().double()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return (grads[0] * ctx.images).half().double() / ctx.images, None


def logits(
    towers: Sequence[dict[str, Tensor]],
    images: Tensor,
    masks: dict[str, Tensor] | None,
    multiplier: int | None = BATCH,
    own_too: bool = False,
) -> Tensor:
    """Config 145 of 2012 as two towers.

    Args:
        multiplier: None: nothing is rounded; 1: requests are rounded as means, which is wrong.
        own_too: whether a tower reads its own half rounded as well, which is wrong.
    """

    def own(name: str, halves: list[Tensor], pad: int = 0) -> list[Tensor]:
        return [references.conv(p, name, x, pad=pad) for p, x in zip(towers, halves, strict=True)]

    def both(name: str, halves: list[Tensor], pad: int = 0) -> list[Tensor]:
        sent = halves if multiplier is None else [Crossing.apply(x, multiplier) for x in halves]
        sums = []
        for p, x, peer in zip(towers, sent if own_too else halves, reversed(sent), strict=True):
            weights = p[f"{name}.weight_own"], p[f"{name}.weight_other"]
            if x.dim() == 4:
                one, two = (F.conv2d(a, w, None, 1, pad) for a, w in zip((x, peer), weights, strict=True))
                sums.append(one + two + p[f"{name}.bias"][:, None, None])
            else:
                sums.append(x @ weights[0].T + peer @ weights[1].T + p[f"{name}.bias"])
        return sums

    def relu(halves: list[Tensor]) -> list[Tensor]:
        return [references.relu(x) for x in halves]

    def drop(name: str, halves: list[Tensor]) -> list[Tensor]:
        if masks is None:
            return [0.5 * x for x in halves]
        return [x * mask for x, mask in zip(halves, masks[name].chunk(2, dim=1), strict=True)]

    padded = F.pad(images, (0, 3, 0, 3))
    halves = [references.conv(p, "conv1", padded, stride=4) for p in towers]
    halves = relu([references.pool(references.lrn(x, 1, k=2.0)) for x in halves])
    halves = relu(own("conv2", halves, pad=2))
    halves = [references.pool(oracle.spatial_norm(references.lrn(x, 1, k=2.0))) for x in halves]
    halves = relu(both("conv3", halves, pad=1))
    halves = relu(own("conv4", halves, pad=1))
    halves = relu([references.pool(x) for x in own("conv5", halves, pad=1)])
    halves = drop("fc6", relu(both("fc6", [x.flatten(1) for x in halves])))
    halves = drop("fc7", relu(both("fc7", halves)))
    return torch.cat(both("fc8", halves), dim=1)


def gradients(
    towers: Sequence[dict[str, Tensor]], masks: dict[str, Tensor], **rule: Any
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Training logits, and dL/dw for each parameter of each tower."""
    images, labels = batch()
    leaves = [{name: p.detach().clone().requires_grad_() for name, p in tower.items()} for tower in towers]
    z = logits(leaves, images, masks, **rule)
    found = iter(torch.autograd.grad(oracle.loss(z, labels), [p for tower in leaves for p in tower.values()]))
    return z.detach(), [{name: next(found) for name in tower} for tower in leaves]


def masks_at(towers: Sequence[Tower], step: int) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {"fc6": [], "fc7": []}
    for tower in towers:
        tower.train()
        tower.at_step(step, slice(None), BATCH)
        for name, parts in found.items():
            (dropout,) = (m for m in tower.layers[name].modules() if isinstance(m, Dropout))
            parts.append(dropout(torch.ones(BATCH, len(tower.paper_named_parameters()[f"{name}.bias"])).double()))
    return {name: torch.cat(parts, dim=1) for name, parts in found.items()}


def worst(found: Sequence[dict[str, Tensor]], true: Sequence[dict[str, Tensor]]) -> float:
    return max(oracle.deviation(a, b) for a, b in zip(found, true, strict=True))


def tower_over_the_wire(world) -> tuple[dict[str, tuple[Run, int]], dict[str, int]]:
    """The runs in float64 with their bytes; the bytes of a training step in float32."""
    runs, bytes_in_float32 = {}, {}
    for precision in ("single", "half"):
        network = network_of(precision)
        images, labels = batch()
        tower = towers_of(network, world.memory_format)[world.tower]
        exchange = WireExchange(world.link, world.tower, tower.rows[-1].kernels, precision)
        images = images.to(memory_format=world.memory_format)
        began = world.link.bytes_sent
        run = run_towers([tower], network, exchange, images, labels, [0.01])
        runs[precision] = run, world.link.bytes_sent - began

        tower = Tower(network, CLASSES, world.tower, SEED).to(memory_format=world.memory_format)
        tower.at_step(0, slice(None), BATCH)
        began = world.link.bytes_sent
        F.cross_entropy(forward([tower], images.float(), exchange), labels).backward()
        bytes_in_float32[precision] = world.link.bytes_sent - began
        assert all(p.grad is not None and p.grad.isfinite().all() for p in tower.parameters())
    return runs, bytes_in_float32


@pytest.fixture(scope="module")
def wire(tmp_path_factory) -> dict[int, tuple[dict[str, tuple[Run, int]], dict[str, int]]]:
    return run_processes(tower_over_the_wire, tmp_path_factory.mktemp("half"))


@pytest.fixture(scope="module")
def pair() -> tuple[Run, dict[str, Tensor]]:
    network = network_of("half")
    towers = towers_of(network, torch.channels_last)
    images, labels = batch()
    images = images.to(memory_format=torch.channels_last)
    masks = masks_at(towers, 0)
    return run_towers(towers, network, InProcessExchange("half"), images, labels, [0.01]), masks


def test_pair_is_the_rule(pair):
    """Logits and each gradient to 1e-10; a rule that rounds more, less, or elsewhere is off by far more."""
    run, masks = pair
    images = batch()[0]
    assert oracle.deviation(run.test_logits, logits(run.before, images, None)) < 1e-10
    z, right = gradients(run.before, masks)
    assert oracle.deviation(run.logits, z) < 1e-10
    assert worst(run.gradients, right) < 1e-10

    exact, without = gradients(run.before, masks, multiplier=None)
    assert 1e-6 < oracle.deviation(run.logits, exact) < 1e-2
    assert 1e-6 < worst(run.gradients, without) < 0.3  # where a rounded half moves a ReLU or a maximum, it is larger
    rounded, own_too = gradients(run.before, masks, own_too=True)
    assert oracle.deviation(run.logits, rounded) > 1e-6
    assert worst(run.gradients, own_too) > 1e-6
    same, means = gradients(run.before, masks, multiplier=1)
    assert oracle.deviation(run.logits, same) < 1e-10  # a wrong request shows in the gradients only
    assert worst(run.gradients, means) > 1e-6


@pytest.mark.slow
def test_two_processes_are_the_pair(pair, wire):
    """Bit for bit: both round the same numbers to the same ones."""
    run = pair[0]
    for tower in (0, 1):
        over = wire[tower][0]["half"][0]
        assert torch.equal(over.test_logits, run.test_logits)
        assert torch.equal(over.logits, run.logits)
        for found, true in ((over.gradients[0], run.gradients[tower]), (over.after[0], run.after[tower])):
            assert found.keys() == true.keys()
            assert all(torch.equal(found[name], true[name]) for name in true)


@pytest.mark.slow
def test_two_processes_are_the_rule(pair, wire):
    run, masks = pair
    z, right = gradients(run.before, masks)
    for tower in (0, 1):
        over = wire[tower][0]["half"][0]
        assert oracle.deviation(over.logits, z) < 1e-10
        assert worst(over.gradients, [right[tower]]) < 1e-10
        assert oracle.deviation(wire[tower][0]["single"][0].logits, z) > 1e-6


@pytest.mark.slow
def test_bytes_over_the_wire(wire):
    """Two bytes a value for what crosses between the layers, forward and back; the logits stay as they are."""
    values = BATCH * (8 * 6 * 6 + 8 * 3 * 3 + 128 + 128)
    for tower, own_classes in ((0, 6), (1, 5)):
        logits_bytes = 2 * 8 * BATCH * own_classes  # of the test and of the training pass, in float64
        assert wire[tower][0]["half"][1] == 3 * 2 * values + logits_bytes
        assert wire[tower][0]["single"][1] == 3 * 8 * values + logits_bytes


@pytest.mark.slow
def test_bytes_of_a_step_are_half_as_many(wire):
    """In float32, as it trains: half of what crosses, and all of the logits."""
    for tower, own_classes in ((0, 6), (1, 5)):
        single, half = (wire[tower][1][precision] - 4 * BATCH * own_classes for precision in ("single", "half"))
        assert single == 2 * half == 2 * 4 * BATCH * (8 * 6 * 6 + 8 * 3 * 3 + 128 + 128)


def swap(halves: list[Tensor], requests: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """What each tower gets of the other one, and the gradients of the halves for requests to what it got."""
    leaves = [x.clone().requires_grad_() for x in halves]
    exchange = InProcessExchange("half")
    peers = exchange.finish(exchange.start(leaves))
    return [peer.detach() for peer in peers], list(torch.autograd.grad(peers, leaves, requests))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(128, 7), (128, 3, 5, 4)])
def test_rounding_of_one_swap(shape, dtype):
    """Each value and each request by its formula, from 1e-3 down to where means vanish in float16 and sums do not."""
    generator = torch.Generator().manual_seed(1)
    halves = [torch.randn(shape, generator=generator, dtype=dtype) * 50 for _ in range(2)]
    for scale in (1e-3, 1e-6, 3e-9):
        requests = [torch.randn(shape, generator=generator, dtype=dtype) * scale for _ in range(2)]
        peers, grads = swap(halves, requests)
        for tower in (0, 1):
            assert torch.equal(peers[tower], halves[1 - tower].half().to(dtype))
            request = requests[1 - tower]
            assert torch.equal(grads[tower], (request * 128).half().to(dtype) / 128)
            assert oracle.deviation(grads[tower], request) < 0.1
    assert not request.half().any(), "the mean would have vanished"
    assert not torch.equal(peers[0], halves[1])


def test_own_halves_stay_full():
    """`start` hands a tower its own half as it is; only the copy for the other one is rounded."""
    halves = [torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    exchange = InProcessExchange("half")
    flight = exchange.start(halves)
    assert all(torch.equal(own, half) for own, half in zip(flight.own, halves, strict=True))
    assert torch.equal(exchange.collect(halves), torch.cat(halves, dim=1))
    for peer, half in zip(exchange.finish(flight), reversed(halves), strict=True):
        assert peer.dtype == half.dtype
        assert not torch.equal(peer, half)


def test_network_says_which_precision():
    assert load_network("alexnet_2012").exchange_precision == "single"
    with pytest.raises(ValueError, match="exchange_precision=quarter"):
        plan(load_network("alexnet_2012", exchange_precision="quarter"), CLASSES)
    assert tuple(row.name for row in plan(network_of("half"), CLASSES) if row.reads_both) == LINKED
