"""Two processes over gloo against both towers in one process, and against the oracle.

Losses alone say little here: with the gradient of the exchange halved or dropped every loss of the first step is
right. So each comparison is of gradients, and the wrong rules are run too and must be far off.
"""

import gc
import itertools
import os
import time
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import oracle
from helpers.processes import run_processes
from helpers.towers import Run, load_network, masks_at, run_towers
from twotower.config import NetworkConfig
from twotower.distributed.exchange import Flight, InProcessExchange, WireExchange
from twotower.distributed.transport import Swap, TowerLostError
from twotower.ground.processes import cores
from twotower.model.layer_table import plan
from twotower.model.tower import Tower, forward

SEED, CLASSES, BATCH = 11, 11, 4  # tower 0 has 6 classes, tower 1 has 5
SMALL = {"width": 0.125, "image_size": 100}
RATES = [0.01, 0.01, 0.001, 0.001, 0.001]


def batch(num: int = BATCH, size: int = 100, num_classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(num, 3, size, size, generator=generator) * 70
    return images, torch.randint(num_classes, (num,), generator=generator)


class SlicingExchange(WireExchange):
    """Wrong: what the other tower asks of this half is dropped, as in an all-gather whose backward slices."""

    def start(self, halves):
        (x,) = halves
        return Flight([x], forward=self.link.swap(x))

    def finish(self, flight):
        return [flight.forward.wait()]


class _SummingCollect(torch.autograd.Function):
    @staticmethod
    def forward(ctx, own, exchange):
        ctx.exchange = exchange
        return WireExchange.collect(exchange, [own])

    @staticmethod
    def backward(ctx, grad):
        exchange = ctx.exchange
        first, second = grad.split(exchange.logits_halves, dim=1)
        own, other = (first, second) if exchange.tower == 0 else (second, first)
        return own + exchange.link.swap(other, own.shape).wait(), None


class SummingExchange(WireExchange):
    """Wrong: both towers compute the whole loss, and the logits' gradients of both are added."""

    def collect(self, halves):
        (own,) = halves
        return _SummingCollect.apply(own, self)


EXCHANGES = {"right": WireExchange, "slicing": SlicingExchange, "summing": SummingExchange}


def wire(world, kind: str, network: NetworkConfig, num_classes: int) -> WireExchange:
    return EXCHANGES[kind](world.link, world.tower, plan(network, num_classes)[-1].kernels)


def train_tower(world, name, overrides, num_classes, images, labels, rates, contiguous=False, kind="right") -> Run:
    """What one process does: its tower of the network, in the dtype of the images."""
    if contiguous:
        world.memory_format = world.link.memory_format = torch.contiguous_format
    network = load_network(name, **overrides)
    tower = Tower(network, num_classes, world.tower, SEED).to(images.dtype)
    tower = tower.to(memory_format=world.memory_format)
    images = images.to(memory_format=world.memory_format)
    return run_towers([tower], network, wire(world, kind, network, num_classes), images, labels, rates)


@dataclass
class Seen:
    """The same training by two processes, by both towers in this one, and by the oracle."""

    wire: list[Run]
    pair: Run
    before: dict[str, Tensor]  # the whole network's parameters
    test_logits: Tensor
    logits: Tensor
    gradients: dict[str, Tensor]
    after: dict[str, Tensor]


CASES = {"alexnet": ("alexnet", False), "2012": ("alexnet_2012", False), "contiguous": ("alexnet_2012", True)}


@pytest.fixture(scope="module", params=CASES)
def seen(request, tmp_path_factory) -> Seen:
    runs = run_processes(train_case, tmp_path_factory.mktemp("pair"), *CASES[request.param])
    return see([runs[0], runs[1]], CASES[request.param][0])


def train_case(world, name: str, contiguous: bool = False) -> Run:
    """What one process of a case does, in float64."""
    images, labels = batch()
    return train_tower(world, name, SMALL, CLASSES, images.double(), labels, RATES, contiguous)


def see(wire: list[Run], name: str) -> Seen:
    """What both processes have seen, beside the pair in one process and the oracle. course/catch.py calls it, too."""
    images, labels = batch()
    images = images.double()
    network, preset = load_network(name, **SMALL), oracle.PRESETS[name]
    towers = [Tower(network, CLASSES, tower, SEED).double() for tower in (0, 1)]
    masks = [masks_at(towers, step, images) for step in range(len(RATES))]
    pair = run_towers(towers, network, InProcessExchange(), images, labels, RATES)
    before = oracle.merge(*pair.before)
    logits, gradients = oracle.gradients(before, images, labels, preset, masks[0])
    return Seen(
        wire=wire,
        pair=pair,
        before=before,
        test_logits=oracle.logits(before, images, preset, masks=None),
        logits=logits,
        gradients=gradients,
        after=oracle.train(before, preset, images, labels, masks, RATES),
    )


def test_logits_of_two_processes(seen):
    """Both towers must see the same whole logits in a training step; exposes halves that are swapped or mixed up."""
    for run in (*seen.wire, seen.pair):
        assert oracle.deviation(run.logits, seen.logits) < 1e-10
    assert torch.equal(seen.wire[0].logits, seen.wire[1].logits)


def test_logits_of_a_test_pass(seen):
    """And at test, where dropout scales instead."""
    for run in (*seen.wire, seen.pair):
        assert oracle.deviation(run.test_logits, seen.test_logits) < 1e-10
    assert torch.equal(seen.wire[0].test_logits, seen.wire[1].test_logits)
    assert oracle.deviation(seen.test_logits, seen.logits) > 1e-3  # dropout is on in one of them only


def test_gradients_of_two_processes(seen):
    """Each gradient of each layer; exposes a request of the other tower that is lost, doubled or mixed up."""
    found = oracle.merge(*(run.gradients[0] for run in seen.wire))
    assert oracle.deviation(found, oracle.merge(*seen.pair.gradients)) < 1e-10
    assert oracle.deviation(found, seen.gradients) < 1e-10


def test_updates_of_two_processes(seen):
    """Where five steps with a drop of the rate lead; exposes towers that drift apart after the first step."""
    for runs in ([run.after[0] for run in seen.wire], seen.pair.after):
        moved = {name: w - seen.before[name] for name, w in oracle.merge(*runs).items()}
        assert oracle.deviation(moved, {name: w - seen.before[name] for name, w in seen.after.items()}) < 1e-10


def run_wrong_exchanges(world, images, labels) -> dict[str, Run]:
    return {
        kind: train_tower(world, "alexnet", SMALL, CLASSES, images, labels, RATES[:1], kind=kind)
        for kind in EXCHANGES
    }


def test_wrong_gradients_are_rejected(tmp_path):
    """The two rules that one could mistake for the right one: the loss is the same, the gradients are far off."""
    images, labels = batch()
    runs = run_processes(run_wrong_exchanges, tmp_path, images.double(), labels)
    right, slicing, summing = (
        oracle.merge(runs[0][kind].gradients[0], runs[1][kind].gradients[0]) for kind in EXCHANGES
    )
    for kind in ("slicing", "summing"):
        for tower in (0, 1):
            assert oracle.deviation(runs[tower][kind].logits, runs[tower]["right"].logits) < 1e-12
    for name in right:
        off = oracle.deviation(slicing[name], right[name])
        assert off < 1e-12 if name.startswith("fc8") else off > 0.05, name  # no exchange comes after fc8
        assert oracle.deviation(summing[name], 2 * right[name]) < 1e-12, name


def train_full_width(world, images, labels) -> tuple[Tensor, dict[str, Tensor]]:
    run = train_tower(world, "alexnet_2012", {}, 1000, images, labels, [0.01])
    return run.logits, run.gradients[0]


def test_full_width_in_float32(tmp_path):
    """The real network as it trains, 60,965,224 parameters in float32 over the wire; measured in brackets.

    Against the pair in one process, which does the same sums in the same order: 1e-5 (0). That pair in float64
    against the oracle: 1e-10 (4e-14). The wire against the oracle, logits: 1e-5 (6e-7); gradients: 0.1 of each one's
    norm (3e-2), as some of the million ReLUs and pooling windows choose otherwise where float32 rounds across a
    tie, in the oracle as in the towers. A sliced exchange is off by 0.7 and more.
    """
    images, labels = batch(num=2, size=224, num_classes=1000)
    wires = run_processes(train_full_width, tmp_path, images, labels, deadline=150)
    found = oracle.merge(wires[0][1], wires[1][1])
    network, preset = load_network("alexnet_2012"), oracle.PRESETS["alexnet_2012"]
    towers = [Tower(network, 1000, tower, SEED).to(memory_format=torch.channels_last) for tower in (0, 1)]
    masks = {name: mask.double() for name, mask in masks_at(towers, 0, images).items()}
    last = images.to(memory_format=torch.channels_last)
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, cores() // 2))  # as many as each process has
    try:
        pair = run_towers(towers, network, InProcessExchange(), last, labels, [0.0])
    finally:
        torch.set_num_threads(threads)
    for tower in (0, 1):
        assert oracle.deviation(wires[tower][0], pair.logits) < 1e-5
        assert oracle.deviation(wires[tower][1], pair.gradients[tower]) < 1e-5

    towers = [tower.double() for tower in towers]  # the rate of 0 has left the weights as they were
    pair = run_towers(towers, network, InProcessExchange(), last.double(), labels, [0.0])
    whole = oracle.merge(*pair.before)
    assert sum(p.numel() for p in whole.values()) == oracle.TOTAL_PARAMETERS
    logits, gradients = oracle.gradients(whole, images.double(), labels, preset, masks)
    assert oracle.deviation(pair.logits, logits) < 1e-10
    assert oracle.deviation(oracle.merge(*pair.gradients), gradients) < 1e-10
    for tower in (0, 1):
        assert oracle.deviation(wires[tower][0], logits) < 1e-5
    for name, g in gradients.items():
        assert (found[name] - g).norm() < 0.1 * g.norm(), name


def count_bytes(world, images, labels) -> tuple[int, int]:
    network = load_network("alexnet", **SMALL)
    tower = Tower(network, CLASSES, world.tower, SEED)
    exchange = wire(world, "right", network, CLASSES)
    tower.at_step(0, slice(None), len(images))
    began = world.link.bytes_sent
    F.cross_entropy(forward([tower], images, exchange), labels).backward()
    training = world.link.bytes_sent - began
    with torch.no_grad():
        forward([tower.eval()], images, exchange)
    return training, world.link.bytes_sent - began - training


def test_bytes_on_the_wire(tmp_path):
    """Only pool2, pool5, fc6 and fc7 cross, once in each direction; exposes anything sent twice or without need."""
    runs = run_processes(count_bytes, tmp_path, *batch())
    # 100 pixels: conv1 24, pooled 12; conv2 12, pooled 6; conv5 6, pooled 3. Width 0.125 of 128, 128, 2048, 2048.
    values = BATCH * (16 * 6 * 6 + 16 * 3 * 3 + 256 + 256)
    for tower, own_classes in ((0, 6), (1, 5)):
        assert runs[tower] == (4 * (2 * values + BATCH * own_classes), 4 * (values + BATCH * own_classes))


@pytest.mark.parametrize("name", oracle.PRESETS)
def test_bytes_of_the_real_network(name):
    """31.1 MB in each direction for a step with 128 images: 11.1 + 2.36 + 1.05 + 1.05 forward, as much backward."""
    rows = plan(load_network(name), 1000)
    crossing = [before for before, row in itertools.pairwise(rows) if row.reads_both]
    halves = [4 * 128 * row.kernels[0] * row.size_out**2 for row in crossing]
    assert halves == [11_075_584, 2_359_296, 1_048_576, 1_048_576]
    assert 2 * sum(halves) == 31_064_064


def swap_and_wait(world) -> dict[str, float]:
    def waited(delay: float) -> float:
        world.barrier()
        time.sleep(delay if world.tower == 1 else 0)
        world.link.swap(torch.ones(10)).wait()
        return world.link.read_waited_ms()

    world.link.read_waited_ms()
    return {"at once": waited(0), "late": waited(1.5), "read again": world.link.read_waited_ms()}


def test_waiting_is_reported(tmp_path):
    """If tower 1 is late, tower 0 waits for it and tower 1 does not; reading starts anew."""
    runs = run_processes(swap_and_wait, tmp_path)
    for tower in (0, 1):
        assert runs[tower]["at once"] >= 0
        assert runs[tower]["read again"] == 0
    assert runs[0]["late"] > 750
    assert runs[0]["late"] > runs[0]["at once"]
    assert runs[0]["late"] > runs[1]["late"]


def swap_layouts(world) -> int:
    """Numbers that name tower and place, in all layouts that a half can have. Returns how many were compared."""
    compared = 0
    for layout in (torch.channels_last, torch.contiguous_format):
        world.link.memory_format = layout
        for shape in ((3, 4, 5, 6), (2, 1, 5, 6), (2, 7, 1, 1), (1, 4, 3, 3), (3, 8)):
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                base = torch.arange(torch.Size(shape).numel()).reshape(shape)
                mine, theirs = (base + 100 * tower for tower in (world.tower, 1 - world.tower))
                mine, theirs = mine.to(dtype), theirs.to(dtype)
                views = [mine, torch.cat([mine, mine], dim=1)[:, shape[1] :]]  # whole, and a half of a whole
                if len(shape) == 4:
                    views.append(mine.contiguous(memory_format=torch.channels_last))
                for view in views:
                    came = world.link.swap(view).wait()
                    assert torch.equal(came, theirs)
                    assert came.dtype == dtype
                    if came.dim() == 4:
                        assert came.is_contiguous(memory_format=layout)
                    compared += 1
    logits = torch.zeros(2, 6), torch.ones(2, 5)  # halves of unequal width, as those of 11 classes
    mine, theirs = logits[world.tower], logits[1 - world.tower]
    assert torch.equal(world.link.swap(mine, theirs.shape).wait(), theirs)
    flights = [world.link.swap(torch.full((n,), float(n + world.tower))) for n in (3, 4, 3)]  # several under way
    for n, flight in zip((3, 4, 3), flights, strict=True):
        assert torch.equal(flight.wait(), torch.full((n,), float(n + 1 - world.tower)))
    return compared


def test_layouts_over_the_wire(tmp_path):
    """A tensor that is sent in another order than it is read arrives complete and shuffled."""
    assert run_processes(swap_layouts, tmp_path) == {0: 84, 1: 84}


def swap_once_more(world, how: str) -> tuple[str, float]:
    world.link.swap(torch.ones(4)).wait()
    if world.tower == 1:
        if how == "dies":
            os._exit(3)
        time.sleep(300)
    began = time.perf_counter()
    try:
        world.link.swap(torch.ones(1000, 1000)).wait()
    except TowerLostError as error:
        return str(error), time.perf_counter() - began
    raise AssertionError("the swap with a lost tower returned")


def test_dead_tower_is_named(tmp_path):
    """A tower whose partner has ended must say so at once, not after the time-out of a minute."""
    message, seconds = run_processes(swap_once_more, tmp_path, "dies", timeout=60.0, may_be_lost=(1,))[0]
    assert "lost tower 1: its process has ended" in message
    assert "resume=auto" in message
    assert seconds < 30


def test_silent_tower_is_named(tmp_path):
    """A tower whose partner hangs must give up after machine.timeout_seconds and say which setting that is."""
    message, seconds = run_processes(swap_once_more, tmp_path, "hangs", timeout=3.0, may_be_lost=(1,))[0]
    assert "lost tower 1: nothing came from it for 3 s" in message
    assert "machine.timeout_seconds" in message
    assert 2.5 < seconds < 30


def compare_numbers(world) -> list[str]:
    messages = []
    for step, labels, pixels in ((4, 10, 20), (5, 10, 21 + world.tower), (6 + world.tower, 10, 20)):
        try:
            world.check_alike(step, labels=labels, pixels=pixels)
            messages.append("alike")
        except RuntimeError as error:
            messages.append(str(error))
    return messages


def test_towers_that_see_different_images_stop(tmp_path):
    """Both towers must stop, and say at which step and in what they differ."""
    runs = run_processes(compare_numbers, tmp_path)
    assert runs[0][0] == runs[1][0] == "alike"
    assert "differ at step 5: pixels is 21 in tower 0 and 22 in tower 1" in runs[0][1]
    assert "differ at step 5: pixels is 22 in tower 1 and 21 in tower 0" in runs[1][1]
    assert "step is 6 in tower 0 and 7 in tower 1" in runs[0][2]
    assert "step is 7 in tower 1 and 6 in tower 0" in runs[1][2]


def swap_in_orders(world) -> list[str]:
    """Two swaps in one order in both towers, then in another one in tower 1. Tags let gloo tell them apart."""
    world.link._post = lambda mine, theirs: world.link._gloo(mine, theirs, 2 + mine.numel())
    messages = []
    for step, is_reversed in enumerate((False, world.tower == 1)):
        sizes = (5, 3) if is_reversed else (3, 5)
        flights = {size: world.link.swap(torch.full((size,), float(world.tower))) for size in sizes}
        for size, flight in flights.items():
            assert torch.equal(flight.wait(), torch.full((size,), 1.0 - world.tower))
        try:
            world.check_alike(step, swaps=world.link.swaps_checksum)
            messages.append("alike")
        except RuntimeError as error:
            messages.append(str(error))
    return messages


def test_towers_that_swap_in_different_orders_stop(tmp_path):
    """All arrives all the same, over gloo; over NCCL, which has no tags, both may wait for ever."""
    runs = run_processes(swap_in_orders, tmp_path)
    for tower in (0, 1):
        assert runs[tower][0] == "alike"
        assert "differ at step 1: swaps is" in runs[tower][1]
        assert "the same tensors in the same order" in runs[tower][1]


def sum_gradients(world) -> tuple[Tensor, Tensor]:
    mine = torch.full((3,), 10.0 * world.tower + world.replica)
    mixed = [mine.clone(), torch.full((2, 2), float(world.rank))]
    world.sum_over_replicas(mixed)
    return mixed[0], mixed[1]


def test_replicas_add_up_within_a_tower(tmp_path):
    """Two replicas in four processes: gradients of the same tower are added, those of the other are not."""
    runs = run_processes(sum_gradients, tmp_path, size=4)
    for rank in range(4):
        tower = rank % 2
        assert torch.equal(runs[rank][0], torch.full((3,), 20.0 * tower + 1))
        assert torch.equal(runs[rank][1], torch.full((2, 2), 2.0 + 2 * tower))


def flights_left(world, images, labels) -> int:
    """How many swaps are still in memory when three steps are over."""
    network = load_network("alexnet", width=0.0625, image_size=100)
    tower = Tower(network, CLASSES, world.tower, 0)
    exchange = WireExchange(world.link, world.tower, tower.rows[-1].kernels)
    for step in range(3):
        tower.at_step(step, slice(None), len(images))
        F.cross_entropy(forward([tower], images.float(), exchange), labels).backward()
        tower.zero_grad()
    gc.collect()
    return sum(type(thing) in (Flight, Swap) for thing in gc.get_objects())


def test_nothing_of_a_step_stays_in_memory(tmp_path):
    """A swap that refers to the graph that refers to the swap is never freed: some 30 MB a step at full width."""
    assert run_processes(flights_left, tmp_path, *batch()) == {0: 0, 1: 0}
