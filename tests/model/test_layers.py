"""The layers one by one, against formulas written out in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import oracle
from twotower.model.layers import Dropout, LocalResponseNorm, ReadBothConv2d, ReadBothLinear, SpatialNorm

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def tensor(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def compare(module: nn.Module, formula, x: torch.Tensor) -> tuple[float, float]:
    """Deviations of values and of gradients, for a gradient that is different at each pixel."""
    mine = x.clone().requires_grad_()
    true = x.double().clone(memory_format=torch.contiguous_format).requires_grad_()
    request = tensor(*x.shape, seed=9)
    y, y_true = module(mine), formula(true)
    assert y.dtype == x.dtype
    y.backward(request.to(x.dtype).contiguous(memory_format=torch.channels_last))  # not the layout of y, at times
    y_true.backward(request)
    return oracle.deviation(y.detach(), y_true.detach()), oracle.deviation(mine.grad, true.grad)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(
    ("maps", "n", "k", "alpha", "over_n", "beta"),
    [
        (48, 5, 2.0, 1e-4, False, 0.75),  # conv1
        (12, 5, 2.0, 1e-4, True, 0.75),
        (12, 5, 1.0, 0.3, True, 0.75),  # so strong that each neighbour counts
        (12, 3, 1.0, 0.3, False, 0.5),
        (7, 5, 2.0, 0.3, False, 1.25),
        (3, 5, 2.0, 0.3, False, 0.75),  # fewer maps than the window
        (1, 5, 2.0, 0.3, True, 0.75),
    ],
)
def test_lrn_is_the_formula(maps, n, k, alpha, over_n, beta, layout):
    """Exposes alpha divided by n where it is not (or by fewer at the edge), a shifted window, a wrong power."""
    x = tensor(4, maps, 5, 6, scale=20.0 if alpha < 0.1 else 1.0).contiguous(memory_format=FORMATS[layout])
    module = LocalResponseNorm(maps, n, k, alpha, over_n, beta)
    effective = alpha / n if over_n else alpha
    values, gradients = compare(module, lambda t: oracle.lrn(t, effective, n, k, beta), x)
    assert values < 1e-13
    assert gradients < 1e-12
    wrong = oracle.lrn(x, alpha if over_n else alpha / n, n, k, beta)
    assert oracle.deviation(module(x), wrong) > 1e-3


def test_lrn_over_n_is_that_of_torch():
    """torch divides alpha by n as the 2012 code does; the paper does not, and must differ from torch."""
    x = tensor(2, 12, 4, 4, scale=30.0)
    theirs = F.local_response_norm(x, size=5, alpha=1e-4, beta=0.75, k=2.0)
    assert oracle.deviation(LocalResponseNorm(12, 5, 2.0, 1e-4, True, 0.75)(x), theirs) < 1e-14
    assert oracle.deviation(LocalResponseNorm(12, 5, 2.0, 1e-4, False, 0.75)(x), theirs) > 1e-2


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("norm", ["lrn", "lrn_few_maps", "lrn_other_beta", "spatial", "spatial_small_image"])
def test_gradients_of_the_norms_are_their_differences(norm, layout):
    """Exposes a backward pass that does not belong to its forward pass."""
    modules = {
        "lrn": (LocalResponseNorm(6, 5, 2.0, 0.5, True, 0.75), (2, 6, 2, 3)),
        "lrn_few_maps": (LocalResponseNorm(2, 5, 1.0, 0.5, False, 0.75), (2, 2, 2, 3)),
        "lrn_other_beta": (LocalResponseNorm(6, 3, 1.0, 0.5, False, 0.6), (2, 6, 2, 3)),
        "spatial": (SpatialNorm(5, 3.0, 0.75), (2, 2, 6, 7)),
        "spatial_small_image": (SpatialNorm(5, 3.0, 0.75), (2, 2, 3, 2)),
    }
    module, shape = modules[norm]
    x = tensor(*shape).contiguous(memory_format=FORMATS[layout]).requires_grad_()
    assert torch.autograd.gradcheck(module, x)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (3, 4, 3, 2), (2, 1, 1, 1)])
def test_spatial_norm_is_the_formula(shape, layout):
    """Exposes a divisor that follows the clipped window (torch's count_include_pad=False) instead of n^2."""
    x = tensor(*shape, scale=30.0).contiguous(memory_format=FORMATS[layout])
    values, gradients = compare(SpatialNorm(5, 1e-3, 0.75), oracle.spatial_norm, x)
    assert values < 1e-13
    assert gradients < 1e-12
    wrong = x * (1 + 1e-3 * F.avg_pool2d(x * x, 5, 1, 2, count_include_pad=False)).pow(-0.75)
    assert oracle.deviation(SpatialNorm(5, 1e-3, 0.75)(x), wrong) > 1e-2


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", ["lrn", "spatial"])
def test_norms_in_lower_precision(norm, dtype, layout):
    """Squares of 300 are beyond float16, and sums in bfloat16 lose their small terms: both must be computed wider.

    Tolerance: one rounding of the result (2^-8 in bfloat16, 2^-11 in float16), some of the steps in float32.
    """
    x = tensor(3, 8, 6, 7, scale=300.0).to(dtype).contiguous(memory_format=FORMATS[layout])
    module = LocalResponseNorm(8, 5, 2.0, 1e-4, False, 0.75) if norm == "lrn" else SpatialNorm(5, 1e-3, 0.75)
    formula = (lambda t: oracle.lrn(t, 1e-4)) if norm == "lrn" else oracle.spatial_norm
    values, gradients = compare(module, formula, x)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    assert values < tolerance
    assert gradients < 2 * tolerance  # the request is rounded too


@pytest.mark.parametrize("layout", FORMATS)
def test_norms_of_many_images(layout):
    """Large batches are cut into chunks; a chunk that is lost, doubled or shifted would show."""
    for x in (tensor(3, 48, 55, 55), tensor(7, 32, 64, 64)):
        x = x.contiguous(memory_format=FORMATS[layout])
        for module, formula in (
            (LocalResponseNorm(x.shape[1], 5, 2.0, 1e-2, True, 0.75), lambda t: oracle.lrn(t, 2e-3)),
            (SpatialNorm(5, 1e-3, 0.75), oracle.spatial_norm),
        ):
            values, gradients = compare(module, formula, x)
            assert values < 1e-12
            assert gradients < 1e-12


@pytest.mark.parametrize("layout", FORMATS)
def test_norms_of_a_view(layout):
    """A half cut out of a whole has strides of neither layout; a sum's gradient has none at all."""
    whole = tensor(3, 12, 5, 4, scale=3.0).contiguous(memory_format=FORMATS[layout])
    for module, formula in (
        (LocalResponseNorm(6, 5, 2.0, 0.1, False, 0.75), lambda t: oracle.lrn(t, 0.1)),
        (SpatialNorm(5, 0.1, 0.75), lambda t: oracle.spatial_norm(t, 0.1)),
    ):
        grads = []
        for f in (module, formula):
            leaf = whole.clone(memory_format=FORMATS[layout]).requires_grad_()
            half = leaf[:, 6:]
            f(half).sum().backward()
            grads.append(leaf.grad)
        assert oracle.deviation(*grads) < 1e-12
        assert oracle.deviation(module(whole[:, 6:]), formula(whole[:, 6:])) < 1e-13


def test_lrn_does_not_cross_the_towers():
    """Each tower's windows end at its own last map: a norm over the whole gives other values next to the cut."""
    x = tensor(2, 12, 4, 4, scale=2.0)
    norm = LocalResponseNorm(6, 5, 2.0, 0.1, False, 0.75)
    halves = torch.cat([norm(half) for half in oracle.halves(x)], dim=1)
    wrong = oracle.lrn(x, 0.1)
    beside, away = [4, 5, 6, 7], [0, 1, 2, 3, 8, 9, 10, 11]
    assert oracle.deviation(halves[:, away], wrong[:, away]) < 1e-13
    for i in beside:
        assert oracle.deviation(halves[:, i], wrong[:, i]) > 1e-2


def mask(keep=0.5, seed=3, tower=0, layer="fc6", step=5, rows=slice(None), batch=64, units=50) -> torch.Tensor:
    dropout = Dropout(keep, seed, tower, layer).train()
    dropout.at_step(step, rows, batch)
    return dropout(torch.ones(len(range(batch)[rows]), units))


def test_dropout_never_rescales_in_training():
    """torch's own dropout multiplies what remains by two; that of 2012 halves at test instead."""
    x = tensor(64, 50).requires_grad_()
    dropout = Dropout(0.5, 3, 0, "fc6").train()
    dropout.at_step(5, slice(None), 64)
    y = dropout(x)
    kept = mask().double()
    assert torch.equal(y, x * kept)
    assert set(kept.unique().tolist()) == {0.0, 1.0}
    request = tensor(64, 50, seed=1)
    y.backward(request)
    assert torch.equal(x.grad, request * kept)


def test_dropout_scales_at_test():
    """Every unit times `keep`, in the values and in the gradients."""
    x = tensor(4, 5).requires_grad_()
    y = Dropout(0.25, 3, 0, "fc6").eval()(x)
    y.sum().backward()
    assert torch.equal(y, 0.25 * x)
    assert torch.equal(x.grad, torch.full_like(x, 0.25))


@pytest.mark.parametrize("keep", [0.25, 0.5, 0.8])
def test_dropout_keeps_the_right_share(keep):
    """`keep` is the probability to stay, not to go; each unit of each image has its own draw."""
    kept = mask(keep=keep, batch=200, units=200)
    six_sigma = 6 * (keep * (1 - keep) / 200) ** 0.5
    assert abs(float(kept.mean()) - keep) < six_sigma / 200**0.5
    assert float((kept.mean(0) - keep).abs().max()) < six_sigma
    assert float((kept.mean(1) - keep).abs().max()) < six_sigma


def test_dropout_masks_come_from_their_streams():
    """The same keys give the same mask whatever was drawn before; any other key gives another one."""
    first = mask()
    torch.manual_seed(1)
    torch.rand(17)
    assert torch.equal(mask(), first)
    masks = [first, mask(seed=4), mask(tower=1), mask(layer="fc7"), mask(step=6), mask(step=4)]
    for one, two in itertools.combinations(masks, 2):
        # Independent masks agree in half of 3200 places, give or take 28.
        assert 1600 - 6 * 28 < int((one == two).sum()) < 1600 + 6 * 28


def test_dropout_of_replicas_is_cut_from_one_mask():
    """Replicas must not repeat each other's masks, and R of them must equal one with R times the batch."""
    whole = mask(batch=12)
    rows = [slice(0, 4), slice(4, 8), slice(8, 12)]
    parts = [mask(batch=12, rows=r) for r in rows]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(parts[0], parts[1])


@pytest.mark.parametrize("tower", [0, 1])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_layers_that_read_both_are_one_layer_over_the_whole(kind, tower):
    """y, and the gradients of both halves, both weights and the bias, against one convolution or product."""
    module: ReadBothConv2d | ReadBothLinear
    if kind == "conv":
        module, shape = ReadBothConv2d(4, 6, size=3, stride=2, pad=1).double(), (3, 4, 7, 5)
    else:
        module, shape = ReadBothLinear(4, 6).double(), (3, 4)
    for i, p in enumerate(module.parameters()):
        nn.init.normal_(p, generator=torch.Generator().manual_seed(i))
    x, peer = tensor(*shape, seed=1).requires_grad_(), tensor(*shape, seed=2).requires_grad_()
    own_and_other = (lambda a, b: torch.cat([a, b], dim=1)) if tower == 0 else (lambda a, b: torch.cat([b, a], dim=1))
    inputs, weight = own_and_other(x, peer), own_and_other(module.weight_own, module.weight_other)
    if kind == "conv":
        true = F.conv2d(inputs, weight, module.bias, stride=2, padding=1)
    else:
        true = inputs @ weight.T + module.bias
    y = module.other(peer, module.own(x))
    request = tensor(*true.shape, seed=3)
    leaves = [x, peer, module.weight_own, module.weight_other, module.bias]
    grads = [torch.autograd.grad(t, leaves, request) for t in (y, true)]
    assert oracle.deviation(y.detach(), true.detach()) < 1e-13
    for found, g in zip(*grads, strict=True):
        assert oracle.deviation(found, g) < 1e-13
    swapped = module.other(x, module.own(peer))
    assert oracle.deviation(swapped.detach(), true.detach()) > 0.1
