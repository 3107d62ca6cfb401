"""The table of layers against the paper's numbers, and both towers in one process against the oracle.

Measured deviations of the comparisons in float64 are below 1e-12; what a wrong rule gives is asserted next to them.
"""

import math

import pytest
import torch
from torch import nn

from helpers import oracle
from helpers.towers import load_network, masks_at, run_towers
from twotower.distributed.exchange import InProcessExchange
from twotower.model.layer_table import plan
from twotower.model.tower import Tower, forward

PRESETS = tuple(oracle.PRESETS)
SEED, CLASSES, BATCH = 7, 11, 6
SMALL = {"width": 0.0625, "image_size": 100}  # 100 pixels: every pooling ends with a window that is cut
RATES = (0.01, 0.01, 0.001, 0.001, 0.001)


def pair(name: str, num_classes: int = CLASSES, seed: int = SEED, **overrides) -> list[Tower]:
    return [Tower(load_network(name, **overrides), num_classes, tower, seed) for tower in (0, 1)]


def batch(size: int = 100, num: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in the range of pixels, so that the response norms have something to do."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(num, 3, size, size, generator=generator, dtype=torch.float64) * 70
    return images, torch.randint(CLASSES, (num,), generator=generator)


@pytest.mark.parametrize("name", PRESETS)
def test_sizes_and_widths_of_figure_2(name):
    """Wrong padding or a lost overhang would give 54 or 56 pixels after conv1; a wrong pooling 28, 14 or 7."""
    rows = plan(load_network(name), 1000)
    assert [row.name for row in rows] == list(oracle.LAYERS)
    assert [row.size_conv for row in rows] == [55, 27, 13, 13, 13, 1, 1, 1]
    assert [row.size_out for row in rows] == [27, 13, 13, 13, 6, 1, 1, 1]
    assert [row.kernels for row in rows] == [(n, n) for n in (48, 128, 192, 192, 128, 2048, 2048, 500)]
    assert [row.name for row in rows if row.reads_both] == list(oracle.WHOLE)
    units = [sum(row.kernels) * row.size_conv**2 for row in rows]
    assert units == [290_400, 186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000]


@pytest.mark.parametrize("name", PRESETS)
def test_real_towers_have_the_papers_parameters_and_sizes(name):
    """What `plan` says must be what the towers have and what really flows, or the table would be mere decoration.

    Also: the initial weights are normal with the preset's std, each bias is the constant of section 5.
    """
    towers = pair(name, num_classes=1000)
    rows = plan(load_network(name), 1000)
    for row in rows:
        counts = [sum(p.numel() for p in tower.layers[row.name].parameters()) for tower in towers]
        assert counts == [row.num_parameters(0), row.num_parameters(1)]
        assert sum(counts) == oracle.PARAMETERS[row.name]
    assert sum(p.numel() for tower in towers for p in tower.parameters()) == oracle.TOTAL_PARAMETERS
    assert sum(row.num_parameters(tower) for row in rows for tower in (0, 1)) == oracle.TOTAL_PARAMETERS

    sizes: dict[str, list[tuple[int, ...]]] = {}
    for layer, module in towers[1].layers.items():
        kinds = (nn.Conv2d, nn.MaxPool2d)
        for part in [m for m in module.modules() if isinstance(m, kinds)] + [module.after]:
            part.register_forward_hook(lambda _, __, y, layer=layer: sizes.setdefault(layer, []).append(y.shape[1:]))
        module.eval()
    with torch.no_grad():
        z = forward([tower.eval() for tower in towers], torch.randn(1, 3, 224, 224), InProcessExchange())
    assert z.shape == (1, 1000)
    assert sizes["conv1"] == [(48, 55, 55), (48, 27, 27), (48, 27, 27)]
    assert sizes["conv2"] == [(128, 27, 27), (128, 13, 13), (128, 13, 13)]
    assert sizes["conv3"] == [(192, 13, 13)]
    assert sizes["conv4"] == [(192, 13, 13), (192, 13, 13)]
    assert sizes["conv5"] == [(128, 13, 13), (128, 6, 6), (128, 6, 6)]
    assert sizes["fc6"] == sizes["fc7"] == [(2048,)]

    preset = oracle.PRESETS[name]
    for tower in towers:
        for parameter_name, p in tower.paper_named_parameters().items():
            layer = parameter_name.split(".")[0]
            if parameter_name.endswith("bias"):
                assert (p == oracle.INITIAL_BIASES[layer]).all(), parameter_name
                continue
            std, six_sigma = preset.initial_stds[layer], 6 / math.sqrt(p.numel())
            assert abs(float(p.detach().std()) / std - 1) < six_sigma / math.sqrt(2), parameter_name
            assert abs(float(p.detach().mean())) / std < six_sigma, parameter_name
            kurtosis = float((p.detach() / std).pow(4).mean())  # 3 if normal, 1.8 if uniform
            assert abs(kurtosis - 3) < six_sigma * math.sqrt(96), parameter_name


@pytest.mark.parametrize("name", PRESETS)
def test_presets_carry_the_numbers_of_their_source(name):
    """A slip in a yaml that the small networks below would not show."""
    network, preset = load_network(name), oracle.PRESETS[name]
    assert network.image_size == 224
    assert network.width == 1
    assert network.dropout_keep == 0.5
    assert (network.pool.size, network.pool.stride) == (3, 2)
    assert network.lrn is not None
    assert (network.lrn.n, network.lrn.k, network.lrn.alpha, network.lrn.beta) == (5, 2, 1e-4, 0.75)
    assert network.lrn.alpha_over_n == (preset.lrn_alpha < 1e-4)
    assert (network.bias_rate, network.bias_decay) == (preset.bias_rate, preset.bias_decays)
    assert network.activation == "relu"
    then = {
        layer: tuple(s.replace("activation", "relu") for s in config.then) for layer, config in network.layers.items()
    }
    assert then == {
        "conv1": preset.conv1_steps,
        "conv2": preset.conv2_steps,
        "conv3": ("relu",),
        "conv4": ("relu",),
        "conv5": preset.conv5_steps,
        "fc6": ("relu", "dropout"),
        "fc7": ("relu", "dropout"),
        "fc8": (),
    }


def test_sizes_without_overlap():
    """Pooling 2/2 keeps the sizes only if it rounds up and conv2, conv5 are padded less (55-28-26-13-13-13-11-6)."""
    no_overlap = {"pool": {"size": 2, "stride": 2}, "layers": {"conv2": {"pad": 1}, "conv5": {"pad": 0}}}
    rows = plan(load_network("alexnet", **no_overlap), 1000)[:5]
    assert [row.size_conv for row in rows] == [55, 26, 13, 13, 11]
    assert [row.size_out for row in rows] == [28, 13, 13, 13, 6]
    towers = pair("alexnet", width=0.0625, **no_overlap)
    with torch.no_grad():
        z = forward([tower.eval() for tower in towers], torch.randn(2, 3, 224, 224), InProcessExchange())
    assert z.shape == (2, CLASSES)  # fc6 would not take another size


@pytest.mark.parametrize("size", range(67, 135))
def test_planned_sizes_are_those_of_the_2012_rules(size):
    """A plan that rounds otherwise than the layers would build an fc6 that does not fit; each remainder occurs."""
    expected = []
    s = 1 + math.ceil((size - 11) / 4)
    for pooled in (True, True, False, False, True):
        expected.append(s)
        s = math.ceil((s - 3) / 2) + 1 if pooled else s
    rows = plan(load_network("alexnet", width=0.0625, image_size=size), CLASSES)
    assert [row.size_conv for row in rows[:5]] == expected
    assert rows[4].size_out == s
    if size % 8 < 2:
        towers = pair("alexnet", width=0.0625, image_size=size)
        with torch.no_grad():
            z = forward([tower.eval() for tower in towers], torch.randn(2, 3, size, size), InProcessExchange())
        assert z.shape == (2, CLASSES)


@pytest.mark.parametrize(("width", "layer"), [(0.1, "conv1"), (1 / 96, "conv1"), (1 / 3, "conv2")])
def test_width_that_cannot_be_cut_is_refused(width, layer):
    """Rounding silently would give towers of unequal halves."""
    with pytest.raises(ValueError, match=rf"network\.width={width:g} gives {layer} "):
        plan(load_network("alexnet", width=width), 1000)


@pytest.mark.parametrize(
    ("layer", "change", "match"),
    [
        ("conv3", {"then": ["activation", "batch_norm"]}, r"conv3\.then.*batch_norm"),
        ("conv4", {"reads": "peer"}, r"conv4\.reads=peer"),
        ("fc6", {"kind": "dense"}, r"fc6\.kind=dense"),
        ("conv5", {"size": 16}, r"conv5"),
        ("conv3", {"groups": 2}, r"conv3\.groups=2"),
        ("fc6", {"groups": 2}, r"fc6\.groups=2"),
        ("conv2", {"groups": 5}, r"conv2\.groups=5"),
        ("conv2", {"initial": "he"}, r"conv2\.initial=he"),
    ],
)
def test_what_cannot_be_built_is_named(layer, change, match):
    """A step that is silently left out, or an image that vanishes, must not become a network."""
    with pytest.raises(ValueError, match=match):
        plan(load_network("alexnet", layers={layer: change}), 1000)


def test_number_of_classes():
    """One class more in tower 0 if their number is odd; one class is none."""
    assert plan(load_network("alexnet"), 11)[-1].kernels == (6, 5)
    assert plan(load_network("alexnet"), 2)[-1].kernels == (1, 1)
    with pytest.raises(ValueError, match="1 class"):
        plan(load_network("alexnet"), 1)


def test_initial_weights_come_from_their_streams():
    """The same seed must give the same tower again; the towers must not be copies of each other."""
    first, again, other = pair("alexnet", **SMALL), pair("alexnet", **SMALL), pair("alexnet", seed=SEED + 1, **SMALL)
    torch.manual_seed(99)  # nothing may come from torch's own generator
    later = pair("alexnet", **SMALL)
    weights = [name for name in first[0].paper_named_parameters() if "weight" in name]
    assert len(weights) == 12
    for name in weights:
        one, two = (tower.paper_named_parameters()[name] for tower in first)
        for tower, same in zip(first, zip(again, later, strict=True), strict=True):
            for copy in same:
                assert torch.equal(tower.paper_named_parameters()[name], copy.paper_named_parameters()[name])
        if one.shape == two.shape:
            assert not torch.equal(one, two)
        assert not torch.equal(one, other[0].paper_named_parameters()[name])
    conv3 = first[0].layers["conv3"].sum
    assert not torch.equal(conv3.weight_own, conv3.weight_other)


@pytest.mark.parametrize("name", PRESETS)
def test_pair_is_the_oracle(name):
    """Logits, every gradient and five updates of both towers against one network, to 1e-10 in float64.

    Exposes a half that goes to the wrong tower, a norm across the towers, a wrong order of steps, a rescaled
    dropout, and an update that keeps the rate outside the velocity (the rate drops after the second step).
    """
    network, preset = load_network(name, **SMALL), oracle.PRESETS[name]
    towers = [tower.double() for tower in pair(name, **SMALL)]
    images, labels = batch()
    masks = [masks_at(towers, step, images) for step in range(len(RATES))]
    run = run_towers(towers, network, InProcessExchange(), images, labels, RATES)

    before = oracle.merge(*run.before)
    assert oracle.deviation(run.test_logits, oracle.logits(before, images, preset, masks=None)) < 1e-10
    z, gradients = oracle.gradients(before, images, labels, preset, masks[0])
    assert oracle.deviation(run.logits, z) < 1e-10
    assert oracle.deviation(oracle.merge(*run.gradients), gradients) < 1e-10

    after = oracle.train(before, preset, images, labels, masks, list(RATES))
    moved, should = ({n: w[n] - before[n] for n in w} for w in (oracle.merge(*run.after), after))
    assert oracle.deviation(moved, should) < 1e-10

    # What the tolerance must reject.
    crossing = oracle.logits(before, images, preset, masks[0], split_norm=False)
    assert oracle.deviation(run.logits, crossing) > 1e-6
    other = oracle.PRESETS[PRESETS[1 - PRESETS.index(name)]]
    assert oracle.deviation(run.logits, oracle.logits(before, images, other, masks[0])) > 1e-6
    assert oracle.deviation(run.logits, oracle.logits(before, images, preset, masks[1])) > 1e-3
    other_rule = oracle.train(before, other, images, labels, masks, list(RATES))
    assert oracle.deviation(moved, {n: w - before[n] for n, w in other_rule.items()}) > 1e-3


def test_memory_format_changes_nothing():
    """A layer that mixes up the axes of channels_last tensors would show here."""
    images, labels = batch()
    network = load_network("alexnet_2012", **SMALL)
    towers = [t.double() for t in pair("alexnet_2012", **SMALL)]
    plain = run_towers(towers, network, InProcessExchange(), images, labels, RATES[:1])
    towers = [t.double().to(memory_format=torch.channels_last) for t in pair("alexnet_2012", **SMALL)]
    images = images.to(memory_format=torch.channels_last)
    last = run_towers(towers, network, InProcessExchange(), images, labels, RATES[:1])
    assert oracle.deviation(last.logits, plain.logits) < 1e-12
    for tower in (0, 1):
        assert oracle.deviation(last.gradients[tower], plain.gradients[tower]) < 1e-10


def test_replicas_see_the_rows_of_one_large_batch():
    """Two replicas with three images each must add up to one with six, dropout included."""
    network = load_network("alexnet", **SMALL)
    images, labels = batch()
    towers = [tower.double() for tower in pair("alexnet", **SMALL)]
    whole = run_towers(towers, network, InProcessExchange(), images, labels, RATES[:1])
    for rows in (slice(0, 3), slice(3, 6)):
        towers = [tower.double().train() for tower in pair("alexnet", **SMALL)]
        for tower in towers:
            tower.at_step(0, rows, BATCH)
        z = forward(towers, images[rows], InProcessExchange())
        assert oracle.deviation(z.detach(), whole.logits[rows]) < 1e-10


def test_dropout_can_be_switched_off():
    """With keep = 1 training and test are the same function; a remaining 0.5 would halve the logits."""
    towers = pair("alexnet", dropout_keep=1.0, **SMALL)
    images = batch()[0].float()
    with torch.no_grad():
        training = forward([tower.train() for tower in towers], images, InProcessExchange())
        testing = forward([tower.eval() for tower in towers], images, InProcessExchange())
    assert torch.equal(training, testing)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lrn": {"n": 4}}, r"network\.lrn\.n=4 is not possible; give an odd number"),
        ({"lrn": {"n": 0}}, r"network\.lrn\.n=0 is"),
        ({"lrn": {"n": -5}}, r"network\.lrn\.n=-5 is"),
        ({"spatial_norm": {"n": 2}}, r"network\.spatial_norm\.n=2 is not possible; give an odd number"),
        ({"spatial_norm": {"n": -1}}, r"network\.spatial_norm\.n=-1 is"),
        ({"lrn": {"k": 0}}, r"network\.lrn\.k=0 is not possible; give more than 0"),
        ({"lrn": {"alpha": -1}}, r"network\.lrn\.alpha=-1 is not possible; give at least 0"),
        ({"spatial_norm": {"beta": -0.5}}, r"network\.spatial_norm\.beta=-0\.5 is"),
        ({"width": 0}, r"network\.width=0 is not possible; give more than 0"),
        ({"pool": {"size": 0}}, r"network\.pool\.size=0 is not possible; give at least 1"),
        ({"pool": {"stride": 0}}, r"network\.pool\.stride=0 is not possible; give at least 1"),
        (
            {"layers": {"fc7": {"kind": "conv"}}},
            r"network\.layers\.fc7\.kind=conv cannot follow fc6, which is",
        ),
        (
            {"layers": {"fc6": {"kind": "conv"}, "fc7": {"kind": "conv"}, "fc8": {"kind": "conv"}}},
            r"give the classes",
        ),
        ({"layers": {"fc8": {"then": ["activation", "lrn"]}}}, r"network\.layers\.fc8\.then has lrn, which is for"),
        ({"layers": {"a-b": {"kind": "linear", "kernels": 2}}}, r"network\.layers\.a-b cannot be called so; give"),
    ],
)
def test_windows_that_cannot_be_are_refused(changes, sentence):
    """An even LRN window would be a map wider here than it says; Caffe refuses it too."""
    with pytest.raises(ValueError, match=sentence):
        plan(load_network("alexnet_2012", **changes), 10)
    for allowed in ({"lrn": {"n": 1}}, {"lrn": {"n": 7}}, {"spatial_norm": {"n": 3}}, {"lrn": None}):
        assert len(plan(load_network("alexnet_2012", **allowed), 10)) == 8
