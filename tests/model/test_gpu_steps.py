"""The GPU's kernels on a CPU, by Triton's interpreter: against formulas in float64, in either order of memory."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from helpers import oracle
from model.test_fused_steps import ORDERS, draw, follow, formulas_of, steps_of
from twotower.model import gpu_steps
from twotower.model.gpu_steps import GpuSteps, Group, split_steps
from twotower.model.layers import LocalResponseNorm, SpatialNorm

pytest.importorskip("triton")
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


def run(steps: GpuSteps, x: Tensor, request: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    mine = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = steps(mine)
    assert y.dtype == x.dtype
    request = draw(*y.shape, seed=9) if request is None else request
    y.backward(request.to(x.dtype))
    assert mine.grad is not None
    return y.detach(), mine.grad, request


@pytest.mark.parametrize(
    ("order", "pooling", "layout"),
    [*((order, "max", "NHWC") for order in ORDERS), *((ORDERS[n], "average", "NCHW") for n in (0, 1, 2, 4))],
)
def test_every_order_is_the_formulas(order: str, pooling: str, layout: str) -> None:
    """The sides leave a window that hangs over an edge, and one that does not."""
    x = draw(2, 10, 7, 6).contiguous(memory_format=FORMATS[layout])
    values, gradients, request = run(GpuSteps(steps_of(order, pooling)), x, None)
    true_values, true_gradients = follow(x, formulas_of(order, pooling), request)
    assert oracle.deviation(values, true_values) < 1e-6
    assert oracle.deviation(gradients, true_gradients) < 1e-6
    assert values.is_contiguous(memory_format=FORMATS[layout])


@pytest.mark.parametrize("maps", [3, 16, 48])
def test_any_number_of_maps(maps: int) -> None:
    x = torch.randn(1, maps, 7, 7, generator=torch.Generator().manual_seed(0)) * 2
    norm = LocalResponseNorm(maps, 5, 2.0, 0.3, True, 0.75)
    values, gradients, request = run(GpuSteps([nn.ReLU(), norm, nn.MaxPool2d(3, 2, ceil_mode=True)]), x, None)
    formulas = [torch.relu, lambda t: oracle.lrn(t, 0.3 / 5, 5, 2.0, 0.75), *formulas_of("pool")]
    true_values, true_gradients = follow(x, formulas, request)
    assert oracle.deviation(values, true_values) < 1e-6
    assert oracle.deviation(gradients, true_gradients) < 1e-6


@pytest.mark.parametrize(("size", "stride", "partial"), [(2, 2, True), (3, 2, False), (2, 3, True), (5, 2, True)])
def test_other_pools(size: int, stride: int, partial: bool) -> None:
    x = draw(2, 10, 11, 10)
    for kind in (nn.MaxPool2d, nn.AvgPool2d):
        pool = kind(size, stride, ceil_mode=partial)
        values, gradients, request = run(GpuSteps([nn.ReLU(), pool]), x, None)
        true_values, true_gradients = follow(x, [torch.relu, kind(size, stride, ceil_mode=partial)], request)
        assert oracle.deviation(values, true_values) < 1e-6
        assert oracle.deviation(gradients, true_gradients) < 1e-6


def test_bfloat16_is_rounded_float32() -> None:
    """The interpreter cuts bfloat16 where a GPU rounds it, so the last bit may differ here."""
    x, steps = draw(2, 10, 9, 9).bfloat16(), GpuSteps(steps_of("relu lrn pool"))
    values, gradients, request = run(steps, x, None)
    wide_values, wide_gradients, _ = run(steps, x.float(), request.bfloat16().float())
    torch.testing.assert_close(values.float(), wide_values, rtol=8e-3, atol=0)
    torch.testing.assert_close(gradients.float(), wide_gradients, rtol=8e-3, atol=1e-3)


def test_nan_is_not_hidden_and_of_equal_pixels_the_first_gets_the_gradient() -> None:
    x, steps = draw(1, 10, 9, 9), GpuSteps(steps_of("relu lrn pool"))
    x[0, 3, 4, 4] = torch.nan
    with torch.no_grad():
        assert steps(x).isnan().any()
    equal = torch.ones(1, 10, 4, 4)
    _, gradient, request = run(GpuSteps(steps_of("relu pool")), equal, torch.ones(1, 10, 2, 2))
    assert torch.equal(gradient, follow(equal, formulas_of("relu pool"), request)[1].float())


def test_steps_are_split_into_kernels() -> None:
    def kinds(order: str) -> list[str]:
        return ["spatial" if isinstance(each, SpatialNorm) else "group" for each in split_steps(steps_of(order))]

    assert kinds("relu lrn pool") == ["group"]
    assert kinds("lrn pool relu") == ["group"]
    assert kinds("relu pool lrn") == ["group", "group"]
    assert kinds("relu lrn spatial_norm pool") == ["group", "spatial", "group"]
    (group,) = split_steps(steps_of("lrn pool relu"))
    assert isinstance(group, Group)
    assert (group.first_relu, group.has_lrn, group.last_relu) == (False, True, True)


def test_kernels_that_differ_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong kernel, and one that cannot be compiled: the modules run, with a warning that says why."""
    x = draw(2, 10, 9, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert GpuSteps(steps_of("relu lrn pool")).fits(x)
    kernels, _ = gpu_steps.load_kernels()
    make_band, backward = kernels.make_band, kernels.run_backward
    monkeypatch.setattr(kernels, "make_band", lambda maps, n, scale, device: make_band(maps, 3, scale, device))
    steps = GpuSteps(steps_of("relu lrn pool"))
    with pytest.warns(UserWarning, match=r"ReLU, .*MaxPool2d run one by one on cpu, slower: .*values"):
        assert not steps.fits(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not steps.fits(x), "it is said once"
    monkeypatch.setattr(kernels, "make_band", make_band)

    def double(*arguments) -> None:
        backward(*arguments)
        arguments[4].mul_(2)

    monkeypatch.setattr(kernels, "run_backward", double)
    with pytest.warns(UserWarning, match=r"the kernels' gradients differ by 1\.0e\+00"):
        assert not GpuSteps(steps_of("relu lrn pool")).fits(x)

    def fail(*arguments) -> None:
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(kernels, "run_forward", fail)
    with pytest.warns(UserWarning, match=r"slower: out of resource: shared memory"):
        assert not GpuSteps(steps_of("relu lrn pool")).fits(x)


def test_what_the_kernels_do_not_take() -> None:
    steps = GpuSteps(steps_of("relu lrn pool"))
    assert not steps.fits(draw(1, 10, 9, 9).double())
    assert not steps.fits(draw(1, 10, 9, 9).half())
    assert not steps.fits(torch.zeros(1, 256, 3, 3))
