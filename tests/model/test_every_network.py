"""Each network of conf/network against its independent reference in `references.py`.

The two networks of the paper have tests of their own; see test_network.py. Comparisons are in float64, where what was
measured is below 1e-12; what a wrong rule gives is asserted too.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from helpers import oracle, references
from helpers.paths import ROOT
from helpers.processes import run_processes
from helpers.references import REFERENCES, Parameters
from helpers.towers import Run, load_network, run_towers
from twotower.config import NetworkConfig
from twotower.distributed.exchange import InProcessExchange, WireExchange
from twotower.ground.processes import cores
from twotower.model.layer_table import count_parameters, plan
from twotower.model.layers import Dropout
from twotower.model.tower import Tower, forward

SEED, CLASSES, BATCH = 5, 11, 6  # of two towers the first has 6 classes, the second 5
WIDTH = 0.0625
# Small images for which windows are cut at the edge: at every pooling, but for alexnet_v2 and its like, where a
# rule that rounds the other way changes every size.
SMALL = dict.fromkeys(REFERENCES, 100) | {
    "caffe_alexnet": 103,  # 24, 12, 6, 3
    "caffenet": 103,
    "alexnet_v2": 95,  # 22, 10, 4, 1; rounded up: 22, 11, 5, 2
    "half_tower": 91,  # the same
    "torchvision_alexnet": 91,
    "alexnet_cifar": 29,  # 15, 7, 3, 1
    "cifar_four_layer": 16,  # 16, 8, 4, 2
    "cifar_four_layer_2": 16,
}
TWO_TOWERS = ("six_conv", "six_conv_bottleneck", "no_exchange", "exchange_conv4", "norm_below_relu", "lrn1_only")
NORMED = ("one_tower", "caffe_alexnet", "caffenet", *TWO_TOWERS)
RESCALING = ("half_tower", "caffe_alexnet", "caffenet", "alexnet_v2", "torchvision_alexnet", "alexnet_cifar")
CIFAR = ("cifar_four_layer", "cifar_four_layer_2")
CASES = [(name, "relu") for name in REFERENCES] + [(name, act) for name in CIFAR for act in ("tanh", "sigmoid")]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tensors as small as these take longer on two, and the processes of the last test have as many each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load(name: str, **overrides: Any) -> NetworkConfig:
    if name.endswith("_2"):
        return load_network(name.removesuffix("_2"), towers=2, **overrides)
    return load_network(name, **overrides)


def small(name: str) -> dict[str, Any]:
    return {"width": 0.25 if name in CIFAR else WIDTH, "image_size": SMALL[name]}


def build(network: NetworkConfig, num_classes: int = CLASSES) -> list[Tower]:
    return [Tower(network, num_classes, tower, SEED) for tower in range(network.towers)]


def stir(towers: list[Tower]) -> None:
    """Gives each parameter a value of its own, and all layers outputs of one order of magnitude.

    With the biases alike, as they begin, one of another map would go unnoticed; with weights as small as they
    begin, the norms would have nothing to do.
    """
    generator = torch.Generator().manual_seed(SEED)
    for tower in towers:
        last = tower.rows[-1].name
        for name, p in tower.paper_named_parameters().items():
            spread = 1.0 if name.endswith("bias") else (2 / p[0].numel()) ** 0.5
            if name.startswith(last):
                spread *= 0.02  # or the softmax would be certain, and its gradient rounding
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * spread


def batch(name: str, num_classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(BATCH, 3, SMALL[name], SMALL[name], generator=generator, dtype=torch.float64)
    return images * (70 if name in NORMED else 1), torch.randint(num_classes, (BATCH,), generator=generator)


def masks_at(towers: list[Tower], step: int, num_images: int) -> dict[str, Tensor]:
    """{layer: [B, units]} of 0 and 1: what the dropout after a layer lets through at a step, tower 0 first."""
    found: dict[str, list[Tensor]] = {}
    for tower in towers:
        tower.train()
        tower.at_step(step, slice(None), num_images)
        for row in tower.rows:
            ones = torch.ones(num_images, row.kernels[tower.tower], row.size_out, row.size_out, dtype=torch.float64)
            ones = ones.flatten(1) if row.config.kind == "linear" else ones
            for module in tower.layers[row.name].modules():
                if isinstance(module, Dropout):
                    found.setdefault(row.name, []).append((module(ones) > 0).double().flatten(1))
    return {name: torch.cat(parts, dim=1) for name, parts in found.items()}


@dataclass
class Seen:
    """A small version of a network at its first step, and what the reference needs to know."""

    run: Run
    whole: Parameters
    images: Tensor
    labels: Tensor
    masks: dict[str, Tensor]


@functools.cache
def seen(name: str, activation: str = "relu") -> Seen:
    network = load(name, activation=activation, **small(name))
    towers = [tower.double() for tower in build(network)]
    stir(towers)
    images, labels = batch(name)
    masks = masks_at(towers, 0, BATCH)
    run = run_towers(towers, network, InProcessExchange(), images, labels, [0.01])
    return Seen(run, references.merge(run.before, REFERENCES[name].linked), images, labels, masks)


def off(name: str, whole: Parameters | None = None, masks: dict[str, Tensor] | None = None, **wrong: Any) -> float:
    """How far the towers' training logits are from a reference that is changed in one thing."""
    it = seen(name)
    logits = wrong.pop("logits", REFERENCES[name].logits)
    z = logits(whole or it.whole, it.images, it.masks if masks is None else masks, **wrong)
    return oracle.deviation(it.run.logits, z)


@pytest.mark.parametrize("name", REFERENCES)
def test_parameters(name):
    """The published number, the plan's, and the sum over the layers written by hand must be one."""
    reference = REFERENCES[name]
    rows = plan(load(name), reference.classes)
    assert count_parameters(rows) == reference.num_parameters
    assert [row.name for row in rows] == list(reference.table)
    by_layer = {row.name: sum(row.num_parameters(tower) for tower in range(len(row.kernels))) for row in rows}
    assert by_layer == {name: reference.count(name, reference.classes) for name in reference.table}
    assert sum(by_layer.values()) == reference.num_parameters
    assert tuple(row.name for row in rows if row.reads_both) == (reference.linked or ())


@pytest.mark.parametrize("name", REFERENCES)
def test_sizes(name):
    """What the yaml's comments say about pixels: in the plan, and in what flows through the layers."""
    reference = REFERENCES[name]
    rows = plan(load(name), reference.classes)
    assert rows[0].size_in == reference.image_size
    convolutions = [row for row in rows if row.config.kind == "conv"]
    assert tuple((row.size_conv, row.size_out) for row in convolutions) == reference.sizes

    network = load(name, width=small(name)["width"])
    towers = build(network, reference.classes if reference.classes == 10 else CLASSES)
    flown: dict[str, tuple[int, int]] = {}
    for row in convolutions:
        layer = towers[-1].layers[row.name]
        # The sum of a layer that reads both is not called as a module, what follows it always is.
        layer.after.register_forward_hook(
            lambda _, x, y, name=row.name: flown.update({name: (x[0].shape[-1], y.shape[-1])})
        )
    with torch.no_grad():
        image = torch.randn(1, 3, reference.image_size, reference.image_size)
        forward([tower.eval() for tower in towers], image, InProcessExchange())
    assert tuple(flown.values()) == reference.sizes


@pytest.mark.parametrize(("name", "activation"), CASES)
def test_network_is_its_reference(name, activation):
    """Logits of test and training, and every gradient, to 1e-10; exposes any step, link or window that is wrong."""
    reference, it = REFERENCES[name], seen(name, activation)
    pooled = plan(load(name, **small(name)), CLASSES)[len(reference.sizes) - 1].size_out
    shapes = reference.shapes(small(name)["width"], CLASSES, pooled)
    assert {layer: tuple(it.whole[f"{layer}.weight"].shape) for layer in shapes} == shapes
    assert {name.split(".")[0] for name in it.whole} == shapes.keys()

    logits = reference.logits
    if name in CIFAR:
        logits = functools.partial(logits, activation=activation)
    z, gradients = references.gradients(logits, it.whole, it.images, it.labels, it.masks)
    found = references.merge(it.run.gradients, reference.linked)
    measured = {
        "test": oracle.deviation(it.run.test_logits, logits(it.whole, it.images, None)),
        "training": oracle.deviation(it.run.logits, z),
        "gradients": oracle.deviation(found, gradients),
    }
    for what, value in measured.items():
        assert value < 1e-10, what
    if it.masks:
        assert oracle.deviation(it.run.test_logits, it.run.logits) > 1e-3  # dropout is on in one of them only
        assert off(name, masks={layer: mask.flip(0) for layer, mask in it.masks.items()}) > 1e-3


@pytest.mark.parametrize("name", REFERENCES)
def test_dropout_masks(name):
    """Where each network drops, and with which factor: the rule of the other family doubles or halves."""
    it = seen(name)
    before_fc6 = name in ("half_tower", "torchvision_alexnet", "alexnet_cifar")
    expected = () if name in CIFAR else ("conv5", "fc6") if before_fc6 else ("fc6", "fc7")
    assert tuple(it.masks) == expected
    for mask in it.masks.values():
        assert mask.unique().tolist() == [0, 1]
        assert abs(float(mask.mean()) - 0.5) < 3 / mask.numel() ** 0.5
    if it.masks:
        factor = 0.5 if name in RESCALING else 2.0
        assert off(name, masks={layer: mask * factor for layer, mask in it.masks.items()}) > 1e-2


@pytest.mark.parametrize("name", [name for name in NORMED if name != "one_tower"])
def test_lrn_across_the_wrong_maps_is_rejected(name):
    """Two towers normalise each half for itself, networks of one piece across all maps, groups or not."""
    assert off(name, parts=1 if REFERENCES[name].linked else 2) > 1e-6


def test_wrong_steps_are_rejected():
    """Networks that differ in nothing but an order of steps must not pass for each other."""
    assert off("caffe_alexnet", logits=references.caffenet) > 1e-3  # pooling before the norm
    assert off("caffenet", logits=references.caffe_alexnet) > 1e-3
    assert off("norm_below_relu", logits=references.lrn1_only) > 1e-3
    code_2012 = functools.partial(oracle.logits, preset=oracle.PRESETS["alexnet_2012"])

    def config_145(p: Parameters, images: Tensor, masks: dict[str, Tensor]) -> Tensor:
        return code_2012(p, images, masks=masks)

    assert off("norm_below_relu", logits=config_145) > 1e-3
    assert off("lrn1_only", logits=config_145) > 1e-3
    assert off("alexnet_v2", logits=references.alexnet_v2) < 1e-10
    for wrong in ("divide_by_all", "average"):
        for name in CIFAR:
            assert off(name, **{wrong: wrong == "divide_by_all"}) > 1e-3


def test_rounding_up_is_rejected():
    """Poolings of alexnet_v2 that round up leave more pixels than fc6 reads."""
    with pytest.raises(RuntimeError, match="size"):
        off("alexnet_v2", partial=True)
    rows = plan(load("alexnet_v2", pool={"partial": True}), 1000)
    assert [(row.size_conv, row.size_out) for row in rows[:5]] == [(54, 27), (27, 13), (13, 13), (13, 13), (13, 6)]


# Without a layer: the reference, weights at full width, and the convolution that reads both towers.
SHALLOWER = {
    "no_conv3": (references.no_conv3, 60_965_224 - 885_120 - 384 * 192 * 9 + 384 * 256 * 9, "conv4"),
    "no_conv4": (references.no_conv4, 60_965_224 - 663_936, "conv3"),
    "no_conv5": (references.no_conv5, 60_965_224 - 442_624 + 4096 * 128 * 36, "conv3"),
}


@pytest.mark.parametrize("ablation", SHALLOWER)
def test_a_network_without_a_layer_is_its_reference(ablation):
    """The layer after it reads what it read: after conv3, the exchange. Logits and every gradient, to 1e-10."""
    reference, num_parameters, exchange = SHALLOWER[ablation]
    yaml = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "ablation" / f"{ablation}.yaml"))
    whole = load("alexnet_2012", **yaml["network"])
    rows = plan(whole, 1000)
    assert count_parameters(rows) == num_parameters
    assert [row.name for row in rows if row.reads_both] == [exchange, "fc6", "fc7", "fc8"]
    assert [row.size_out for row in rows if row.config.kind == "conv"] == [27, 13, 13, 6]

    network = load("alexnet_2012", **yaml["network"], width=WIDTH, image_size=100)
    towers = [tower.double() for tower in build(network)]
    stir(towers)
    images, labels = batch("one_tower")
    masks = masks_at(towers, 0, BATCH)
    run = run_towers(towers, network, InProcessExchange(), images, labels, [0.01])
    linked = (exchange, "fc6", "fc7", "fc8")
    merged = references.merge(run.before, linked)
    z, gradients = references.gradients(reference, merged, images, labels, masks)
    assert oracle.deviation(run.logits, z) < 1e-10
    assert oracle.deviation(references.merge(run.gradients, linked), gradients) < 1e-10
    wrong = merged | {f"{exchange}.weight": own_only(merged[f"{exchange}.weight"])}
    assert oracle.deviation(run.logits, reference(wrong, images, masks)) > 1e-3, "without the exchange"


@pytest.mark.parametrize("ablation", SHALLOWER)
def test_layers_that_stay_begin_as_they_did(ablation):
    """Each layer draws from a stream of its own, so that one seed gives the others the same weights."""
    yaml = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "ablation" / f"{ablation}.yaml"))
    small_one = {"width": WIDTH, "image_size": 100}
    before, after = (
        build(load("alexnet_2012", **small_one, **changes))[1].paper_named_parameters()
        for changes in ({}, yaml["network"])
    )
    alike = {name for name in before.keys() & after.keys() if torch.equal(before[name], after[name])}
    assert {"conv1.weight", "conv2.weight", "fc7.weight_own", "fc8.weight_other"} <= alike


def test_average_pooling():
    """In place of each maximum; of windows that are cut at the edge, over what is left of them."""
    yaml = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "ablation" / "average_pooling.yaml"))
    network = load("alexnet_2012", **yaml["network"], width=WIDTH, image_size=100)
    towers = [tower.double() for tower in build(network)]
    stir(towers)
    images, labels = batch("one_tower")
    masks = masks_at(towers, 0, BATCH)
    run = run_towers(towers, network, InProcessExchange(), images, labels, [0.01])
    merged = references.merge(run.before, ("conv3", "fc6", "fc7", "fc8"))
    z, gradients = references.gradients(references.average_pooling, merged, images, labels, masks)
    assert oracle.deviation(run.logits, z) < 1e-10
    assert oracle.deviation(references.merge(run.gradients, ("conv3", "fc6", "fc7", "fc8")), gradients) < 1e-10
    maxima = oracle.logits(merged, images, oracle.PRESETS["alexnet_2012"], masks)
    assert oracle.deviation(run.logits, maxima) > 1e-3


def own_only(weight: Tensor) -> Tensor:
    """A weight whose towers do not see each other."""
    rows, columns = weight.shape[0] // 2, weight.shape[1] // 2
    weight = weight.clone()
    weight[:rows, columns:] = 0
    weight[rows:, :columns] = 0
    return weight


@pytest.mark.parametrize(
    ("name", "layer"), [("six_conv", "conv6"), ("six_conv_bottleneck", "fc7b"), ("exchange_conv4", "conv4")]
)
def test_layer_that_reads_its_own_tower_only_is_rejected(name, layer):
    whole = dict(seen(name).whole)
    whole[f"{layer}.weight"] = own_only(whole[f"{layer}.weight"])
    assert off(name, whole=whole) > 1e-3


def test_exchange_at_conv3_is_rejected():
    """The right network has no weights for conv3 to read the other tower, and conv4 has them."""
    right, wrong = (
        build(load("exchange_conv4", **small("exchange_conv4"), **more))[0].paper_named_parameters()
        for more in ({}, {"layers": {"conv3": {"reads": "both"}, "conv4": {"reads": "own"}}})
    )
    assert {"conv3.weight", "conv4.weight_other"} <= right.keys()
    assert {"conv3.weight_other", "conv4.weight"} <= wrong.keys()
    with pytest.raises(KeyError, match=r"conv3\.weight"):
        references.merge([wrong, wrong], REFERENCES["exchange_conv4"].linked)


REACHED = {
    "six_conv": {"conv3", "conv4", "conv5", "conv6", "fc6", "fc7", "fc8"},
    "six_conv_bottleneck": {"conv3", "conv4", "conv5", "conv6", "fc6", "fc7", "fc7b", "fc8"},
    "no_exchange": {"fc8"},
    "exchange_conv4": {"conv4", "conv5", "fc6", "fc7", "fc8"},
    "norm_below_relu": {"conv3", "conv4", "conv5", "fc6", "fc7", "fc8"},
    "lrn1_only": {"conv3", "conv4", "conv5", "fc6", "fc7", "fc8"},
    "cifar_four_layer_2": {"conv3", "fc4"},
}


@pytest.mark.parametrize("name", REACHED)
def test_what_of_a_tower_sees_the_other_one(name):
    """A change in conv1 of tower 1 reaches tower 0 at the first link and nowhere below it."""
    towers = [tower.double() for tower in build(load(name, **small(name)))]
    stir(towers)
    values: dict[str, Tensor] = {}
    for row in towers[0].rows:
        towers[0].layers[row.name].after.register_forward_hook(
            lambda _, __, y, layer=row.name: values.update({layer: y})
        )
    images = batch(name)[0]
    with torch.no_grad():
        forward([tower.eval() for tower in towers], images, InProcessExchange())
        first = dict(values)
        towers[1].paper_named_parameters()["conv1.weight"].mul_(-1)
        forward(towers, images, InProcessExchange())
    assert {layer for layer, y in values.items() if not torch.equal(y, first[layer])} == REACHED[name]


def moments(values: Tensor) -> tuple[float, float, float]:
    """Mean and standard deviation; the fourth moment, which tells distributions apart (3 normal, 1.8 uniform)."""
    std = float(values.std())
    return float(values.mean()), std, float((values / std).pow(4).mean())


@pytest.mark.parametrize("width", [1.0, 0.25])
@pytest.mark.parametrize("name", REFERENCES)
def test_initial_weights(name, width):
    """Distribution, spread and biases of each layer as its source has them.

    Narrow networks widen fixed spreads, but not those of conv1, which always reads three maps. The fully-connected
    layers have 64 units here, or drawing them would take most of the time; none of these spreads depends on that.
    """
    reference = REFERENCES[name]
    dense = [layer for layer, (kernels, _, _) in reference.table.items() if layer.startswith("fc") and kernels]
    units = 64 / width
    network = load(name, width=width, layers={layer: {"kernels": int(units)} for layer in dense})
    rows = plan(network, reference.classes if name in CIFAR else 100)
    for tower in build(network, reference.classes if name in CIFAR else 100):
        for parameter, p in tower.paper_named_parameters().items():
            layer = parameter.split(".")[0]
            kind, std, bias = reference.initial[layer]
            kernels, maps, side = reference.table[layer]
            row = next(row for row in rows if row.name == layer)
            reads = (3 if layer == "conv1" else maps * width) * side**2  # what one output reads
            if layer.startswith("fc"):
                reads = row.inputs(tower.tower)
            values = p.detach().double()
            if parameter.endswith("bias"):
                if kind != "torch":
                    assert (p == torch.tensor(bias)).all(), parameter
                    continue
                assert values.abs().max() <= reads**-0.5, parameter
                assert values.abs().max() > 0.8 * reads**-0.5, parameter
                continue
            if kind in ("normal", "truncated"):
                std = std if layer == "conv1" else std * width**-0.5
            elif kind == "kaiming":
                std = math.sqrt(2 / (kernels * width * side**2))
            elif kind == "xavier":
                std = math.sqrt(6 / (reads + kernels * width * side**2)) / math.sqrt(3)
            else:
                std = reads**-0.5 / math.sqrt(3)
            # Cut at two standard deviations, a normal distribution has 0.7737 of its variance, and 2.37 for 3.
            expected = {"truncated": (0.8796 * std, 2.368), "xavier": (std, 1.8), "torch": (std, 1.8)}
            spread, fourth = expected.get(kind, (std, 3.0))
            largest = {"truncated": 2 * std, "xavier": math.sqrt(3) * std, "torch": math.sqrt(3) * std}.get(kind)
            six_sigma = 6 / math.sqrt(values.numel())
            mean, found_spread, found_fourth = moments(values)
            assert abs(mean) < six_sigma * spread, parameter
            assert abs(found_spread / spread - 1) < six_sigma / math.sqrt(2), parameter
            assert abs(found_fourth - fourth) < six_sigma * math.sqrt(96), parameter
            if largest is not None:
                assert values.abs().max() <= largest * (1 + 1e-6), parameter
                assert values.abs().max() > 0.98 * largest, parameter


@pytest.mark.parametrize("name", REFERENCES)
def test_what_no_small_network_shows(name):
    """Biases learn twice as fast in 2012 and in Caffe, and decay where no source says otherwise; and the defaults."""
    network = load(name)
    of_torch = name in ("half_tower", "torchvision_alexnet", "alexnet_cifar")
    assert network.bias_rate == (1 if of_torch or name == "alexnet_v2" else 2)
    assert network.bias_decay == of_torch
    assert network.activation == "relu"
    assert network.exchange_precision == "single"
    assert network.dropout_keep == 0.5
    assert network.width == 1


WIRED = ("no_exchange", "six_conv", "exchange_conv4")


def step_of(name: str, tower: int | None, exchange: Any, memory_format: torch.memory_format) -> Run:
    """A test pass and a training step of one tower, or of both."""
    network = load(name, **small(name))
    towers = [tower.double() for tower in build(network)]
    stir(towers)
    towers = [t.to(memory_format=memory_format) for t in towers]
    images, labels = batch(name)
    images = images.to(memory_format=memory_format)
    return run_towers(towers if tower is None else [towers[tower]], network, exchange, images, labels, [0.01])


def step_over_the_wire(world) -> dict[str, tuple[Run, int]]:
    found = {}
    for name in WIRED:
        began = world.link.bytes_sent
        exchange = WireExchange(world.link, world.tower, plan(load(name, **small(name)), CLASSES)[-1].kernels)
        run = step_of(name, world.tower, exchange, world.memory_format)
        found[name] = run, world.link.bytes_sent - began
    return found


def test_two_processes(tmp_path):
    """One step over gloo against the pair in one process and the reference; and what goes over the wire.

    Only halves that the other tower reads cross: once each in the test pass, twice in training, and the logits.
    """
    runs = run_processes(step_over_the_wire, tmp_path)
    # Of one image and tower at 100 pixels and a width of 1/16: pool2 and conv3 have 6 x 6, pool5 and conv6 3 x 3.
    crossing = {
        "no_exchange": 128,
        "six_conv": 8 * 6 * 6 + 8 * 3 * 3 + 8 * 3 * 3 + 128 + 128,
        "exchange_conv4": 12 * 6 * 6 + 8 * 3 * 3 + 128 + 128,
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, cores() // 2))  # as many as each process has
    try:
        pairs = {name: step_of(name, None, InProcessExchange(), torch.channels_last) for name in WIRED}
    finally:
        torch.set_num_threads(threads)
    for name, pair in pairs.items():
        worst = 0.0
        for tower, own_classes in ((0, 6), (1, 5)):
            run, sent = runs[tower][name]
            assert sent == 8 * BATCH * (3 * crossing[name] + 2 * own_classes), name
            for found, true in (
                (run.test_logits, pair.test_logits),
                (run.logits, pair.logits),
                (run.gradients[0], pair.gradients[tower]),
                (run.after[0], pair.after[tower]),
            ):
                worst = max(worst, oracle.deviation(found, true))
        assert worst < 1e-12, name
        linked = REFERENCES[name].linked
        whole = references.merge([runs[tower][name][0].before[0] for tower in (0, 1)], linked)
        gradients = references.merge([runs[tower][name][0].gradients[0] for tower in (0, 1)], linked)
        it = seen(name)
        _, true = references.gradients(REFERENCES[name].logits, whole, it.images, it.labels, it.masks)
        assert oracle.deviation(gradients, true) < 1e-10


def test_network_of_one_tower_needs_no_wire():
    """Without a second tower `both` is the own one, so that a table with links can be run in one piece."""
    network = load("cifar_four_layer", **small("cifar_four_layer"))
    assert not any(row.reads_both for row in plan(network, CLASSES))
    with torch.no_grad():
        images = batch("cifar_four_layer")[0].float()
        z = forward([tower.eval() for tower in build(network)], images, InProcessExchange())
    assert z.shape == (BATCH, CLASSES)
    assert F.softmax(z, dim=1).isfinite().all()
