"""The author's four CIFAR-10 networks of 2011 against their independent float64 reference in helpers/cifar_2011.py.

Logits, every gradient and five updates at the real size of the image and a quarter of the width. What was measured is
below 1e-13; what each wrong rule gives is asserted too. That the first ReLU of 80sec and 18pct follows its maximum
cannot be told from the other order, because both compute the same.
"""

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from helpers import cifar_2011, oracle, references
from helpers.cifar_2011 import NETWORKS, RIGHT, Rules
from helpers.paths import ROOT
from helpers.references import Parameters
from helpers.towers import Run, load_network, run_towers
from twotower.config import NetworkConfig
from twotower.distributed.exchange import InProcessExchange
from twotower.model import plain
from twotower.model.layer_numbers import describe
from twotower.model.layer_table import count_parameters, plan
from twotower.model.local_conv import LocalConv2d
from twotower.model.tower import Tower, forward
from twotower.weights.merged import expected_shapes

SEED, BATCH, WIDTH = 5, 6, 0.25
RATES = [0.001, 0.001, 0.001, 0.0001, 0.0001]
LOCAL = ("cifar_13pct", "cifar_11pct")
NORMED = ("cifar_18pct", "cifar_11pct")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tensors as small as these take longer on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batch(name: str) -> tuple[Tensor, Tensor]:
    """Images, where there are norms so large that these have something to do, and labels."""
    generator, size = torch.Generator().manual_seed(3), NETWORKS[name].image_size
    images = torch.randn(BATCH, 3, size, size, generator=generator, dtype=torch.float64)
    return images * (10 if name in NORMED else 1), torch.randint(10, (BATCH,), generator=generator)


def stirred(network: NetworkConfig) -> Tower:
    """A float64 tower in which every parameter has a value of its own, and all layers outputs of like size."""
    tower, generator = Tower(network, 10, 0, SEED).double(), torch.Generator().manual_seed(SEED)
    rows = {row.name: row for row in tower.rows}
    for name, p in tower.paper_named_parameters().items():
        layer = name.split(".")[0]
        spread = 1.0 if name.endswith("bias") else (2 / rows[layer].fans(0)[0]) ** 0.5
        if layer == tower.rows[-1].name:
            spread *= 0.02  # or the softmax would be certain, and its gradient rounding
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) * spread
    return tower


@functools.cache
def trained(name: str) -> Run:
    network = load_network(name, width=WIDTH)
    return run_towers([stirred(network)], network, InProcessExchange(), *batch(name), RATES)


def off(name: str, rules: Rules, parameters: Parameters | None = None) -> float:
    """How far the tower's logits are from the reference with these rules."""
    z = NETWORKS[name].logits(parameters or trained(name).before[0], batch(name)[0], rules)
    return oracle.deviation(trained(name).logits, z)


@pytest.mark.parametrize("name", NETWORKS)
def test_numbers_are_those_of_the_files(name):
    """Shapes, parameters, first weights, weight decays, rates; at full width."""
    reference, network = NETWORKS[name], load_network(name)
    assert network.layer_decays() == reference.decays
    assert (network.towers, network.image_size, network.prepared_size) == (1, reference.image_size, 32)
    assert (network.bias_rate, network.bias_decay, network.initial_bias) == (2, False, None)
    assert count_parameters(plan(network, 10)) == reference.num_parameters()
    assert sum(sum(layer.parameters) for layer in describe(network, 10, 128)) == reference.num_parameters()
    drawn = Tower(network, 10, 0, SEED).paper_named_parameters()
    assert {p.removesuffix(".weight"): tuple(w.shape) for p, w in drawn.items() if p.endswith("weight")} == (
        reference.shapes
    )
    assert {p: tuple(w.shape) for p, w in drawn.items()} == expected_shapes(network, 10)
    for parameter, w in drawn.items():
        layer = parameter.split(".")[0]
        if parameter.endswith("bias"):
            assert not w.any(), parameter
            continue
        sigmas = abs(float(w.detach().std()) / reference.stds[layer] - 1) * (2 * w.numel()) ** 0.5
        assert sigmas < 5, parameter


@pytest.mark.parametrize("name", NETWORKS)
def test_network_is_its_reference(name):
    """Logits, every gradient, and all parameters after five updates."""
    reference, run = NETWORKS[name], trained(name)
    images, labels = batch(name)
    z, gradients = references.gradients(
        lambda p, x, masks: reference.logits(p, x), run.before[0], images, labels, None
    )
    assert oracle.deviation(run.test_logits, z) < 1e-12
    assert oracle.deviation(run.logits, z) < 1e-12
    assert oracle.deviation(run.gradients[0], gradients) < 1e-11
    assert oracle.deviation(run.after[0], cifar_2011.train(reference, run.before[0], images, labels, RATES)) < 1e-11


def test_wrong_rules_are_rejected():
    """Each of them must show in the logits of each network that it concerns."""
    for name in NORMED:
        assert off(name, RIGHT) < 1e-12
        for wrong in (Rules(size_of_scale=9), Rules(size_of_scale=1 / 9), Rules(norms=False), Rules(norm_moved=True)):
            assert off(name, wrong) > 1e-6, (name, wrong)
    for name in ("cifar_80sec", "cifar_18pct"):
        assert off(name, Rules(divide_by_all=True)) > 1e-3, name
    for name in NETWORKS:
        with pytest.raises(RuntimeError, match=r"size|shape|dimension"):
            off(name, Rules(partial=False))  # other sizes, which the next weights do not fit
    for name in LOCAL:
        assert off(name, Rules(shared=True)) > 1e-2, name
        turned = {p: w.transpose(0, 1) if p.startswith("local") else w for p, w in trained(name).before[0].items()}
        assert off(name, RIGHT, turned) > 1e-2, "rows and columns of pixels are not the same"


@pytest.mark.parametrize("name", NETWORKS)
def test_wrong_updates_are_rejected(name):
    """Weight decay on biases, one decay for all layers, biases that learn as slowly as weights."""
    reference, run = NETWORKS[name], trained(name)
    wrong: dict[str, dict[str, Any]] = {
        "decay on biases": {"bias_decays": True},
        "biases at the weights' rate": {"bias_rate": 1.0},
        "no decay of the last layer": {"decays": reference.decays | {list(reference.decays)[-1]: 0.0}},
        "one decay for all": {"decays": dict.fromkeys(reference.decays, 0.0005)},
    }
    for what, how in wrong.items():
        after = cifar_2011.train(reference, run.before[0], *batch(name), RATES, **how)
        assert oracle.deviation(run.after[0], after) > 1e-8, what


def test_no_lrn_takes_the_norms_of_11pct_and_nothing_else():
    yaml = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "ablation" / "no_lrn.yaml"))
    network = load_network("cifar_11pct", **yaml["network"], width=WIDTH)
    before = load_network("cifar_11pct", width=WIDTH)
    assert replace(network, lrn=before.lrn) == before
    tower, images = stirred(network).eval(), batch("cifar_11pct")[0]
    with torch.no_grad():
        z = forward([tower], images, InProcessExchange())
    parameters = {name: p.detach() for name, p in tower.paper_named_parameters().items()}
    assert oracle.deviation(z, cifar_2011.net_11pct(parameters, images, Rules(norms=False))) < 1e-12
    assert oracle.deviation(z, cifar_2011.net_11pct(parameters, images)) > 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_fused_and_plain_are_the_towers(name):
    """float32 as it trains, with the steps in one pass, bfloat16, and plain.py, all from the same weights."""
    network = load_network(name, width=WIDTH)
    tower, (images, labels) = stirred(network), batch(name)
    true = forward([tower.eval()], images, InProcessExchange()).detach()
    tensors = {p: w.detach().clone() for p, w in tower.paper_named_parameters().items()}
    size = network.image_size
    table = OmegaConf.to_container(OmegaConf.structured(network))
    network_of_file = plain.Network(table, tensors | {"mean_image": torch.zeros(3, size, size)}).eval()
    assert oracle.deviation(network_of_file(images), true) < 1e-12

    tower = tower.float().on(torch.device("cpu"), torch.channels_last)
    images = images.float().contiguous(memory_format=torch.channels_last)
    gradients = {}
    for precision, bound in (("fp32", 1e-5), ("bf16", 0.1)):
        tower.precision = precision
        z = forward([tower.train()], images, InProcessExchange())
        assert z.dtype == torch.float32
        assert oracle.deviation(z, true) < bound, precision
        F.cross_entropy(z, labels).backward()
        gradients[precision] = {p: w.grad.clone() for p, w in tower.paper_named_parameters().items()}
        tower.zero_grad()
    assert oracle.deviation(gradients["fp32"], trained_gradients(name)) < 1e-4
    for p, grad in gradients["bf16"].items():
        direction = F.cosine_similarity(grad.double().flatten(), trained_gradients(name)[p].flatten(), dim=0)
        assert direction > 0.98, p


def trained_gradients(name: str) -> Parameters:
    return trained(name).gradients[0]


# The layer itself


@pytest.mark.parametrize(("size", "stride", "pad"), [(3, 1, 1), (3, 2, 0), (2, 2, 1), (1, 1, 0), (5, 3, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_each_pixel_is_a_convolution_of_its_own(size, stride, pad, layout):
    """Pixel (i, j) is that pixel of torch's convolution with its kernels; values and all gradients."""
    generator = torch.Generator().manual_seed(0)
    side = (7 + 2 * pad - size) // stride + 1
    layer = LocalConv2d(3, 4, size, stride, pad, side).double()
    for p in layer.parameters():
        p.data.normal_(generator=generator)
    x = torch.randn(2, 3, 7, 7, generator=generator, dtype=torch.float64).contiguous(memory_format=layout)
    wanted = torch.randn(2, 4, side, side, generator=generator, dtype=torch.float64)
    leaves = [x.requires_grad_(), layer.weight, layer.bias]
    found = torch.autograd.grad(layer(x), leaves, wanted)
    true_y = torch.stack(
        [
            torch.stack(
                [F.conv2d(x, layer.weight[i, j], layer.bias[i, j], stride, pad)[:, :, i, j] for j in range(side)],
                dim=2,
            )
            for i in range(side)
        ],
        dim=2,
    )
    true = torch.autograd.grad(true_y, leaves, wanted)
    assert oracle.deviation(layer(x), true_y) < 1e-13
    assert all(oracle.deviation(mine, theirs) < 1e-13 for mine, theirs in zip(found, true, strict=True))


def test_an_image_of_another_size_is_refused():
    layer = LocalConv2d(3, 4, 3, 1, 1, 6)
    with pytest.raises(ValueError, match="6 x 6 pixels, and an image of 7 x 7 gives 49"):
        layer(torch.zeros(1, 3, 7, 7))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"towers": 2, "layers": {"fc5": {"reads": "both"}}}, r"network\.towers=2 is not possible with a local"),
        ({"layers": {"local3": {"groups": 2}}}, r"local3\.groups=2 is not possible .* give 1"),
        ({"layers": {"local3": {"reads": "image"}}}, r"local3\.reads=image is not possible"),
    ],
)
def test_local_layers_that_there_are_not_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plan(load_network("cifar_13pct", **changes), 10)
