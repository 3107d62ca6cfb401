"""The steps of a layer on a GPU: ReLU, LRN and pooling in one kernel each way, a spatial norm in its own.

`gpu_kernels.py` has the kernels. Before they are used for a layer, its steps are computed by them and by the modules
on a few pixels; where the kernels fail or differ, as on a GPU that nobody has tried, the modules run, and a person is
told.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from twotower.model.layers import LocalResponseNorm, SpatialNorm

MOST_MAPS = 128  # of a tower, as in the paper; the band of twice as many fills the memory of a multiprocessor
TOLERANCE = 1e-4  # relative difference between kernels and modules; sums in another order differ by 1e-6


@cache
def load_kernels() -> tuple[Any, str]:
    """The kernels, or None and the reason why there are none."""
    try:
        from twotower.model import gpu_kernels
    except Exception as error:  # an ImportError, or whatever a build of Triton raises that does not fit its torch
        return None, (str(error).strip().splitlines() or [type(error).__name__])[0]
    return gpu_kernels, ""


@dataclass
class Group:
    """Steps that one kernel computes: a ReLU, an LRN, a pool, a ReLU, each of them or not, in this order.

    Attributes:
        place: of the last step in that order, 0 to 3; -1: none yet.
    """

    n: int = 1
    k: float = 1.0
    scale: float = 0.0
    pool: nn.MaxPool2d | nn.AvgPool2d | None = None
    has_lrn: bool = False
    first_relu: bool = False
    last_relu: bool = False
    place: int = -1

    def take(self, module: nn.Module) -> bool:
        """Adds a step. Returns whether it could."""
        if isinstance(module, nn.ReLU):
            place = 0 if self.place < 0 else 3
            if self.place >= 3 or (self.place == 0 and place == 3):
                return self.place == 0  # the ReLU of a ReLU
            self.first_relu |= place == 0
            self.last_relu |= place == 3
        elif isinstance(module, LocalResponseNorm):
            place = 1
            if self.place >= place:
                return False
            self.n, self.k, self.scale, self.has_lrn = module.n, module.k, module.scale, True
        elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            place = 2
            if self.place >= place:
                return False
            self.pool = module
        else:
            return False
        self.place = place
        return True

    @property
    def how(self) -> dict[str, Any]:
        """The constants of the kernels."""
        return {
            "SIZE": 1 if self.pool is None else self.pool.kernel_size,
            "STRIDE": 1 if self.pool is None else self.pool.stride,
            "FIRST_RELU": self.first_relu,
            "HAS_LRN": self.has_lrn,
            "IS_MAX": isinstance(self.pool, nn.MaxPool2d),
            "LAST_RELU": self.last_relu,
        }


def split_steps(modules: Sequence[nn.Module]) -> list[Group | SpatialNorm]:
    """The kernels to run one after the other."""
    groups: list[Group | SpatialNorm] = []
    for module in modules:
        if isinstance(module, SpatialNorm):
            groups.append(module)
            continue
        last = groups[-1] if groups else None
        if not (isinstance(last, Group) and last.take(module)):
            group = Group()
            assert group.take(module)
            groups.append(group)
    return groups


def _like(grad: Tensor, y: Tensor) -> Tensor:
    """The gradient in the strides and the type of what it belongs to, which is what the kernels expect."""
    return grad if grad.stride() == y.stride() and grad.dtype == y.dtype else torch.empty_like(y).copy_(grad)


class _GroupFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, shape: tuple[int, int]) -> Tensor:
        kernels, _ = load_kernels()
        is_last = x.is_contiguous(memory_format=torch.channels_last)
        memory_format = torch.channels_last if is_last else torch.contiguous_format
        y = torch.empty((*x.shape[:2], *shape), dtype=x.dtype, device=x.device, memory_format=memory_format)
        remember = group.how["IS_MAX"] and ctx.needs_input_grad[0]
        chosen = torch.empty_like(y, dtype=torch.uint8) if remember else y.new_empty(0, dtype=torch.uint8)
        band = kernels.make_band(x.shape[1], group.n, group.scale, x.device)
        kernels.run_forward(x, y, chosen, band, group.k, group.how)
        ctx.save_for_backward(x, y, chosen, band)
        ctx.group = group
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, y, chosen, band = ctx.saved_tensors
        gx = torch.empty_like(x)
        load_kernels()[0].run_backward(x, y, chosen, _like(grads[0], y), gx, band, ctx.group.k, ctx.group.how)
        return gx, None, None


class _SpatialFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: SpatialNorm) -> Tensor:
        ctx.save_for_backward(x)
        ctx.norm = norm
        y: Tensor = load_kernels()[0].spatial_forward(x, norm.n, norm.alpha / norm.n**2)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (x,), norm = ctx.saved_tensors, ctx.norm
        gx: Tensor = load_kernels()[0].spatial_backward(x, _like(grads[0], x), norm.n, norm.alpha / norm.n**2)
        return gx, None


class GpuSteps:
    """Steps that can be fused, on a GPU; see `FusedSteps`, which has the same steps on a CPU."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = list(modules)
        self.groups = split_steps(self.modules)
        self._works: dict[tuple[str, int, torch.dtype], bool] = {}

    def fits(self, x: Tensor) -> bool:
        """Whether x [B, C, H, W] can be taken, by kernels that were tried for its maps on this GPU."""
        if x.shape[1] > MOST_MAPS or x.dtype not in (torch.float32, torch.bfloat16):
            return False
        key = (str(x.device), x.shape[1], x.dtype)
        if key not in self._works:
            self._works[key] = self._try_out(x)
        return self._works[key]

    def _try_out(self, like: Tensor) -> bool:
        """Compares kernels and modules on a few pixels, and warns where the kernels cannot be used."""
        kernels, problem = load_kernels()
        if kernels is not None:
            stream = torch.Generator().manual_seed(0)
            x = torch.randn(2, like.shape[1], 13, 13, generator=stream).to(like.device)
            try:
                problem = self._compare(x.contiguous(memory_format=torch.channels_last)) or self._compare(x)
            except Exception as error:  # of Triton's compiler and of the driver, which have many kinds
                problem = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if problem:
            names = ", ".join(type(module).__name__ for module in self.modules)
            warnings.warn(f"{names} run one by one on {like.device}, slower: {problem}", stacklevel=2)
        return not problem

    def _compare(self, x: Tensor) -> str:
        """What differs; empty if nothing does."""
        found = []
        for way in (self, nn.Sequential(*self.modules)):
            mine = x.clone(memory_format=torch.preserve_format).requires_grad_()
            y = way(mine * 1)
            y.backward(torch.linspace(-1, 1, y.numel(), device=x.device).view_as(y))
            assert mine.grad is not None
            found.append((y.detach(), mine.grad))
        for name, ours, theirs in zip(("values", "gradients"), *found, strict=True):
            difference = float((ours - theirs).abs().max() / theirs.abs().max())
            if not difference <= TOLERANCE:
                return f"the kernels' {name} differ by {difference:.1e}"
        return ""

    def __call__(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, h, w], in the same order in memory."""
        for group in self.groups:
            if isinstance(group, SpatialNorm):
                x = _SpatialFunction.apply(x, group)
            else:
                x = _GroupFunction.apply(x, group, pooled_sides(x, group.pool))
        return x


def pooled_sides(x: Tensor, pool: nn.MaxPool2d | nn.AvgPool2d | None) -> tuple[int, int]:
    """Height and width after a pool, as torch counts its windows; those of x without one."""
    sides = list(x.shape[2:])
    if pool is not None:
        size, stride, partial = int(pool.kernel_size), int(pool.stride), pool.ceil_mode  # type: ignore[arg-type]
        for side, length in enumerate(sides):
            windows = (length - size + (stride - 1 if partial else 0)) // stride + 1
            # A window that would start outside is none.
            sides[side] = windows - 1 if partial and (windows - 1) * stride >= length else windows
    return sides[0], sides[1]
