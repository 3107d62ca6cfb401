"""ReLU, norms and pooling in one pass on a CPU: against formulas in float64, step by step, and never a wrong sum."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import oracle
from helpers.composing import compose
from twotower.model import fused_steps
from twotower.model.fused_steps import FusedSteps, choose_fused, fuse, notice_steps
from twotower.model.layers import LocalResponseNorm, SpatialNorm
from twotower.model.tower import Layer, Tower

pytest.importorskip("numba")

MAPS = 10
ALPHA, SPATIAL_ALPHA = 0.3, 0.5  # so strong that each neighbour counts
Formula = Callable[[Tensor], Tensor]

# Every order that a preset of conf/network asks for, and what an ablation leaves of it.
ORDERS = (
    "relu lrn pool",
    "lrn pool relu",
    "relu lrn spatial_norm pool",
    "lrn spatial_norm pool relu",
    "relu pool lrn",
    "relu pool",
    "pool relu",
    "relu lrn",
    "relu spatial_norm",
    "relu pool lrn spatial_norm",
)


@pytest.fixture(autouse=True)
def _small_maps_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_steps, "LEAST_VALUES", 1)


def steps_of(order: str, pooling: str = "max", n: int = 5, size: int = 3, partial: bool = True) -> list[nn.Module]:
    pool = (nn.MaxPool2d if pooling == "max" else nn.AvgPool2d)(size, 2, ceil_mode=partial)
    modules = {
        "relu": nn.ReLU(),
        "lrn": LocalResponseNorm(MAPS, n, 2.0, ALPHA, False, 0.75),
        "spatial_norm": SpatialNorm(n, SPATIAL_ALPHA, 0.75),
        "pool": pool,
    }
    return [modules[step] for step in order.split()]


def formulas_of(order: str, pooling: str = "max", n: int = 5, size: int = 3, partial: bool = True) -> list[Formula]:
    """The same in float64, from the oracle and torch alone."""
    pool = F.max_pool2d if pooling == "max" else F.avg_pool2d
    formulas: dict[str, Formula] = {
        "relu": torch.relu,
        "lrn": lambda x: oracle.lrn(x, ALPHA, n, 2.0, 0.75),
        "spatial_norm": lambda x: oracle.spatial_norm(x, SPATIAL_ALPHA, n, 0.75),
        "pool": lambda x: pool(x, size, 2, ceil_mode=partial),
    }
    return [formulas[step] for step in order.split()]


def draw(*shape: int, seed: int = 0) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2
    return x.contiguous(memory_format=torch.channels_last)


def follow(x: Tensor, formulas: list[Formula], request: Tensor) -> tuple[Tensor, Tensor]:
    """Values and gradients of the formulas in float64."""
    true = x.detach().double().contiguous().requires_grad_()
    y = true
    for formula in formulas:
        y = formula(y)
    y.backward(request.double())
    assert true.grad is not None
    return y.detach(), true.grad


def run(fused: FusedSteps, x: Tensor, request: Tensor) -> tuple[Tensor, Tensor]:
    mine = x.detach().requires_grad_()
    assert fused.fits(mine)
    y = fused(mine)
    assert y.dtype == x.dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.backward(request.to(x.dtype))
    assert mine.grad is not None
    return y.detach(), mine.grad


def deviations(order: str, x: Tensor, **options) -> tuple[float, float]:
    """Of values and of gradients from the formulas, for a gradient that is different at each pixel."""
    fused, formulas = fuse(steps_of(order, **options)), formulas_of(order, **options)
    assert fused is not None
    assert len(fused.modules) == len(order.split())
    with torch.no_grad():
        shape = fused(x).shape
    request = draw(*shape, seed=9).to(x.dtype)
    values, gradients = run(fused, x, request)
    true_values, true_gradients = follow(x, formulas, request)
    return oracle.deviation(values, true_values), oracle.deviation(gradients, true_gradients)


@pytest.mark.parametrize("pooling", ["max", "average"])
@pytest.mark.parametrize("order", ORDERS)
def test_every_order_is_the_formulas(order: str, pooling: str) -> None:
    """The sides leave windows that hang over both edges, over one, and over none."""
    for height, width in ((9, 8), (13, 13), (3, 6), (2, 3)):
        values, gradients = deviations(order, draw(3, MAPS, height, width), pooling=pooling)
        assert values < 1e-6, (height, width)
        assert gradients < 1e-6, (height, width)


@pytest.mark.parametrize("n", [1, 3, 7])
@pytest.mark.parametrize("size", [2, 4])
def test_other_windows(n: int, size: int) -> None:
    for partial in (True, False):
        for pooling in ("max", "average"):
            x = draw(2, MAPS, 11, 10)
            found = deviations("relu lrn spatial_norm pool", x, pooling=pooling, n=n, size=size, partial=partial)
            assert max(found) < 1e-6


def test_a_wrong_step_is_found() -> None:
    """The tolerance is not so wide that the mistakes of this field get through."""
    x = draw(3, MAPS, 9, 8)
    fused = fuse(steps_of("relu lrn spatial_norm pool"))
    assert fused is not None
    with torch.no_grad():
        y = fused(x)
    request = draw(*y.shape, seed=9)
    right_values, right_gradients = follow(x, formulas_of("relu lrn spatial_norm pool"), request)
    for wrong in (
        formulas_of("lrn spatial_norm pool relu"),
        formulas_of("relu spatial_norm lrn pool"),
        formulas_of("relu lrn spatial_norm pool", n=3),
        [torch.relu, lambda x: oracle.lrn(x, ALPHA / 5, 5, 2.0, 0.75), *formulas_of("spatial_norm pool")],
        [*formulas_of("relu lrn spatial_norm"), lambda x: F.avg_pool2d(x, 3, 2, ceil_mode=True)],
    ):
        values, gradients = follow(x, wrong, request)
        assert oracle.deviation(values, right_values) > 1e-4
        assert oracle.deviation(gradients, right_gradients) > 1e-4
    # A norm whose gradient forgets that the sum depends on x, too.
    forgetful = [torch.relu, lambda x: x * (oracle.lrn(x, ALPHA, 5, 2.0, 0.75) / x.clamp(min=1e-9)).detach()]
    _, gradients = follow(x, [*forgetful, *formulas_of("spatial_norm pool")], request)
    assert oracle.deviation(gradients, right_gradients) > 1e-3


@pytest.mark.parametrize("order", ORDERS[:5])
def test_bfloat16_is_the_rounded_float32(order: str) -> None:
    """What comes and goes is rounded as torch rounds it; between, everything is float32."""
    x = draw(3, MAPS, 13, 12).bfloat16()
    fused = fuse(steps_of(order))
    assert fused is not None
    with torch.no_grad():
        shape = fused(x).shape
    request = draw(*shape, seed=9).bfloat16()
    values, gradients = run(fused, x, request)
    # A last ReLU is undone from its output, which has the same sign in both.
    wide_values, wide_gradients = run(fused, x.float(), request.float())
    assert torch.equal(values, wide_values.bfloat16())
    assert torch.equal(gradients, wide_gradients.bfloat16())


def test_nan_and_infinity_are_not_hidden() -> None:
    """A loss that is not finite must be seen."""
    for order in ("relu lrn pool", "lrn pool relu", "relu lrn spatial_norm pool"):
        for dtype in (torch.float32, torch.bfloat16):
            fused = fuse(steps_of(order))
            assert fused is not None
            x = draw(1, MAPS, 9, 9).to(dtype)
            x[0, 3, 4, 4] = torch.nan
            with torch.no_grad():
                assert fused(x).isnan().any()
            x[0, 3, 4, 4] = torch.inf
            with torch.no_grad():
                assert not fused(x).isfinite().all()


def test_of_equal_pixels_the_first_gets_the_gradient() -> None:
    x = torch.ones(1, MAPS, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    fused = fuse(steps_of("relu pool"))
    assert fused is not None
    fused(x).sum().backward()
    like_torch = torch.ones(1, MAPS, 4, 4, requires_grad=True)
    F.max_pool2d(like_torch, 3, 2, ceil_mode=True).sum().backward()
    assert torch.equal(x.grad, like_torch.grad)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("with_nan", [False, True])
def test_a_window_chooses_the_pixel_that_torch_chooses(size: int, with_nan: bool) -> None:
    """With pixels of four values, of which many in a window are equal, and with several that are no number."""
    for height, width in ((13, 12), (7, 9), (3, 3), (5, 3)):
        x = draw(3, MAPS, height, width, seed=size).mul(0.6).round()  # zeros of both signs among them
        if with_nan:
            x[draw(*x.shape, seed=1) > 2] = torch.nan
        fused = fuse([*steps_of("pool", size=size), nn.ReLU()])
        assert fused is not None
        with torch.no_grad():
            values, chosen = fused.forward(x, keep=True)
        wanted, places = F.max_pool2d(x.contiguous(), size, 2, ceil_mode=True, return_indices=True)
        assert torch.equal(values.nan_to_num(99), wanted.relu().nan_to_num(99))
        rows = torch.arange(wanted.shape[2])[:, None] * 2
        columns = torch.arange(wanted.shape[3]) * 2
        within = (places // width - rows) * size + places % width - columns
        assert torch.equal(chosen.permute(0, 3, 1, 2).long(), within)
        assert len(within.unique()) == size * size or min(height, width) < 2 * size


def test_the_number_of_threads_changes_no_bit() -> None:
    x, fused = draw(5, MAPS, 9, 9), fuse(steps_of("relu lrn spatial_norm pool"))
    assert fused is not None
    with torch.no_grad():
        request = fused(x) * 0 + 1
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found.append(run(fused, x, request))
    finally:
        torch.set_num_threads(before)
    for values, gradients in found[1:]:
        assert torch.equal(values, found[0][0])
        assert torch.equal(gradients, found[0][1])


def test_gradients_may_take_the_memory_of_the_maps_once() -> None:
    fused = fuse(steps_of("relu lrn spatial_norm pool"))
    assert fused is not None
    x = draw(2, MAPS, 9, 9)
    with torch.no_grad():
        request = draw(*fused(x).shape, seed=9)
    _, right = run(fused, x, request)
    fused.overwrites_input = True
    mine = x.clone(memory_format=torch.preserve_format).requires_grad_()
    maps = mine * 1
    y = fused(maps)
    y.backward(request, retain_graph=True)
    assert torch.equal(mine.grad, right)
    assert torch.equal(maps, right), "its memory holds the gradient now"
    with pytest.raises(RuntimeError, match="have gone backward already, and their maps are overwritten"):
        y.backward(request)


def test_what_cannot_be_taken_is_left_to_the_modules() -> None:
    fused = fuse(steps_of("relu lrn pool"))
    assert fused is not None
    x = draw(2, MAPS, 9, 9)
    assert fused.fits(x)
    assert not fused.fits(x.double())
    assert not fused.fits(x.half())
    assert not fused.fits(x.contiguous())
    assert not fused.fits(x.to("meta"))
    assert fuse([nn.Tanh(), nn.MaxPool2d(3, 2)]) is None
    assert fuse([nn.ReLU()]) is None
    assert fuse([nn.ReLU(), LocalResponseNorm(MAPS, 5, 2.0, 0.1, False, 0.5)]) is None  # another power
    first = fuse([nn.ReLU(), nn.MaxPool2d(3, 2), nn.Dropout()])
    assert first is not None
    assert len(first.modules) == 2
    twice = fuse([nn.ReLU(), nn.MaxPool2d(3, 2), nn.AvgPool2d(3, 2)])
    assert twice is not None
    assert len(twice.modules) == 2


def test_a_compiled_layer_is_the_same() -> None:
    """torch.compile follows the modules; what numba compiles it would not see."""
    network = compose("network=alexnet", "network.width=0.25").network
    layer = Tower(network, 10, 0, 0).on(torch.device("cpu"), torch.channels_last).eval().layers["conv2"]
    x = draw(1, 12, 15, 15)
    with torch.no_grad():
        true = layer(x)
        compiled = torch.compile(layer, backend="eager")(x)
    assert oracle.deviation(compiled, true) < 1e-5


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "twotower.model.cpu_kernels", raising=False)
    package = sys.modules["twotower.model"]
    monkeypatch.delattr(package, "cpu_kernels", raising=False)
    fused_steps._load_kernels.cache_clear()
    yield
    fused_steps._load_kernels.cache_clear()


@pytest.mark.usefixtures("without_numba")
def test_without_numba_the_modules_run() -> None:
    fused = fuse(steps_of("relu lrn pool"))
    assert fused is not None
    assert not fused.fits(draw(2, MAPS, 9, 9))
    assert choose_fused("auto")
    assert "numba cannot be imported here (" in str(notice_steps())
    with pytest.raises(ValueError, match=r"fused_steps=yes needs numba, which cannot be imported here \(.*numba"):
        choose_fused("yes")


def test_compiling_is_announced_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stats = SimpleNamespace(cache_path=str(tmp_path))
    monkeypatch.setattr(
        fused_steps, "_load_kernels", lambda: (SimpleNamespace(run_forward=SimpleNamespace(stats=stats)), "")
    )
    assert "numba compiles ReLU, norms and pooling for this processor" in str(notice_steps())
    (tmp_path / "cpu_kernels.run_forward-385.py311.nbi").touch()
    assert notice_steps() is None


def gradients_of(layer: Layer, x: Tensor) -> list[Tensor]:
    layer.zero_grad()
    mine = x.detach().requires_grad_()
    y = layer(mine)
    y.backward(draw(*y.shape, seed=3))
    assert mine.grad is not None
    return [y.detach(), mine.grad, *(p.grad for p in layer.parameters() if p.grad is not None)]


@pytest.mark.parametrize("ablation", ["none", "no_lrn", "no_overlap", "average_pooling", "tanh"])
def test_a_layer_is_the_same_with_and_without(ablation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = compose("network=alexnet_2012", f"ablation={ablation}", "network.width=0.25").network
    tower = Tower(network, 10, 0, 0).on(torch.device("cpu"), torch.channels_last)
    calls: list[FusedSteps] = []
    forward = FusedSteps.forward

    def count(self: FusedSteps, *arguments, **options):
        calls.append(self)
        return forward(self, *arguments, **options)

    monkeypatch.setattr(FusedSteps, "forward", count)
    for name, shape in (("conv1", (2, 3, 64, 64)), ("conv2", (2, 12, 15, 15)), ("conv5", (2, 48, 13, 13))):
        layer = tower.layers[name]
        together = gradients_of(layer, draw(*shape))
        assert bool(calls) == (ablation != "tanh" or name == "conv1")  # whose norm and pooling come first
        calls.clear()
        of_layer = layer.register_forward_hook(lambda *arguments: None)
        for mine, true in zip(gradients_of(layer, draw(*shape)), together, strict=True):
            assert torch.equal(mine, true), "who watches the layer as a whole changes nothing"
        of_layer.remove()
        calls.clear()
        watched = layer.after[0].register_forward_hook(lambda *arguments: None)
        one_by_one = gradients_of(layer, draw(*shape))
        watched.remove()
        assert not calls, "a hook must see each step"
        for mine, true in zip(together, one_by_one, strict=True):
            assert oracle.deviation(mine, true) < 1e-5
        tower.fuse_steps(False)
        for mine, true in zip(gradients_of(layer, draw(*shape)), one_by_one, strict=True):
            assert torch.equal(mine, true)
        assert not calls
        tower.fuse_steps(True)
