"""The steps of a layer in one pass over its maps, where that is faster than one torch call after the other.

This file has the CPU's way, and chooses; `gpu_steps.py` has the GPU's.

`FusedSteps` stands for the modules of a layer's first steps, e.g. ReLU, LRN and max pooling, and gives the same
values to rounding. Where it cannot be used (float64, another order in memory, another activation than ReLU, no
numba), the modules run one by one, and they are what it is tested against.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from twotower.model.gpu_steps import GpuSteps, pooled_sides
from twotower.model.layers import LocalResponseNorm, SpatialNorm, is_channels_last

Array = NDArray[Any]
_POOLS = (nn.MaxPool2d, nn.AvgPool2d)
_MOST_PIXELS = 15  # on a side of a max pool's window, whose pixels are numbered in a byte
# Maps of one image with fewer values are left to torch: they take milliseconds, and numba a second to start.
LEAST_VALUES = 20_000


@cache
def _load_kernels() -> tuple[Any, str]:
    """The compiled functions, or None and the reason why there are none."""
    try:
        from twotower.model import cpu_kernels
    except Exception as error:  # an ImportError, or a RuntimeError where numba finds no folder for what it compiles
        return None, (str(error).strip().splitlines() or [type(error).__name__])[0]
    return cpu_kernels, ""


def find_numba_problem() -> str:
    """The reason why steps cannot be fused here; empty if they can."""
    return _load_kernels()[1]


def choose_fused(wanted: str) -> bool:
    """Whether steps are fused, by `machine.fused_steps`. Raises: ValueError for `yes` without numba."""
    if wanted == "yes" and find_numba_problem():
        raise ValueError(
            f"machine.fused_steps=yes needs numba, which cannot be imported here ({find_numba_problem()}); use "
            "machine.fused_steps=auto."
        )
    return wanted != "no"


def notice_steps() -> str | None:
    """What a person should know before the first step: that they are slow, or are compiled first; None: nothing."""
    kernels, problem = _load_kernels()
    if kernels is None:
        return f"numba cannot be imported here ({problem}), so each step of a layer runs by itself, slower"
    folder = Path(kernels.run_forward.stats.cache_path)
    if any(folder.glob("cpu_kernels.run_forward*.nbi")):
        return None
    return "numba compiles ReLU, norms and pooling for this processor; the first step takes some 10 seconds, once"


def _kernels() -> Any:
    return _load_kernels()[0]


@cache
def _threads(number: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(number, thread_name_prefix="steps")


def _over_images(work: Callable[[slice], None], images: int) -> None:
    """Runs `work` on all images, in as many threads as torch has. The values do not depend on their number."""
    number = min(torch.get_num_threads(), images)
    if number <= 1:
        work(slice(0, images))
        return
    bounds = [images * part // number for part in range(number + 1)]
    list(_threads(number).map(work, [slice(*pair) for pair in pairwise(bounds)]))


def _as_array(x: Tensor) -> Array:
    """The same memory as [B, H, W, C]; bfloat16 as its bits."""
    x = x.detach().permute(0, 2, 3, 1)
    array: Array = (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()
    return array


# As in cpu_kernels.py, which is not imported before it is needed.
_NUMBERS = {nn.ReLU: 0, LocalResponseNorm: 1, SpatialNorm: 2, nn.MaxPool2d: 3, nn.AvgPool2d: 4}


class FusedSteps:
    """The first steps of a layer in one: at most one pool, any number of ReLUs, LRNs and spatial norms.

    Args:
        modules: the steps, each of which `can_fuse`.

    Attributes:
        overwrites_input: whether dL/dx takes the memory of x, 74 MB at conv1 of the paper with 128 images. It is for
            trainings, which go backward once and keep no maps.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.modules = list(modules)
        self.overwrites_input = False
        self.on_gpu = GpuSteps(self.modules)
        self.steps = np.array([_NUMBERS[type(module)] for module in self.modules], np.int64)
        self.sizes, self.numbers = np.ones(4, np.int64), np.zeros(3, np.float32)
        self.pool: nn.MaxPool2d | nn.AvgPool2d | None = None
        for module in self.modules:
            if isinstance(module, LocalResponseNorm):
                self.sizes[0], self.numbers[:2] = module.n, (module.k, module.scale)
            elif isinstance(module, SpatialNorm):
                self.sizes[1], self.numbers[2] = module.n, module.alpha / module.n**2
            elif isinstance(module, _POOLS):
                self.pool, self.sizes[2:] = module, (module.kernel_size, module.stride)
        # A ReLU at the end is undone from its output, a pool from what it chose. All others need their input.
        needing = [
            index
            for index, module in enumerate(self.modules)
            if not isinstance(module, _POOLS)
            and not (isinstance(module, nn.ReLU) and index == len(self.modules) - 1 and index > 0)
        ]
        self.num_recomputed = max(needing, default=0)
        self.needs_output = len(self.modules) > 1 and isinstance(self.modules[-1], nn.ReLU)

    def fits(self, x: Tensor) -> bool:
        """Whether x [B, C, H, W] can be taken as it is."""
        if type(x) is not Tensor or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False  # torch follows a network to write it down, and does not see what other compilers do
        if x.dim() != 4 or min(pooled_sides(x, self.pool)) < 1:
            return False
        if x.device.type == "cuda":
            return self.on_gpu.fits(x)
        return (
            x.device.type == "cpu"
            and x.dtype in (torch.float32, torch.bfloat16)
            and is_channels_last(x)
            and x[0].numel() >= LEAST_VALUES
            and _kernels() is not None
        )

    def __call__(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, h, w], in the same order in memory."""
        y: Tensor = self.on_gpu(x) if x.device.type == "cuda" else _Fused.apply(x, self)
        return y

    def forward(self, x: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
        """The output, and which pixel of each window a max pool took, uint8 [B, h, w, C], if `keep`, else empty."""
        shape = (len(x), *pooled_sides(x, self.pool), x.shape[1])
        y = torch.empty(shape, dtype=x.dtype)
        remember = keep and isinstance(self.pool, nn.MaxPool2d)
        chosen = torch.empty(shape if remember else (shape[0], 0, 0, 0), dtype=torch.uint8)
        y = y.permute(0, 3, 1, 2)
        before, after, marks = _as_array(x), _as_array(y), chosen.numpy()

        def work(part: slice) -> None:
            _kernels().run_forward(before[part], after[part], marks[part], self.steps, self.sizes, self.numbers)

        _over_images(work, len(x))
        return y, chosen

    def backward(self, x: Tensor, y: Tensor, chosen: Tensor, grad: Tensor) -> Tensor:
        """dL/dx from dL/dy."""
        grad_x = x if self.overwrites_input else torch.empty_like(x)
        grad = grad.to(x.dtype).contiguous(memory_format=torch.channels_last)
        arrays = [_as_array(t) for t in (x, y, grad)] + [chosen.numpy(), _as_array(grad_x)]

        def work(part: slice) -> None:
            _kernels().run_backward(
                *(array[part] for array in arrays), self.steps, self.sizes, self.numbers, self.num_recomputed
            )

        _over_images(work, len(x))
        return grad_x


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, fused: FusedSteps) -> Tensor:
        y, chosen = fused.forward(x, keep=ctx.needs_input_grad[0])
        ctx.fused, ctx.is_spent = fused, False
        ctx.save_for_backward(x, y if fused.needs_output else y.new_empty((len(y), 0, 0, 0)), chosen)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        if ctx.is_spent:
            raise RuntimeError(
                "these steps have gone backward already, and their maps are overwritten; go forward anew"
            )
        ctx.is_spent = ctx.fused.overwrites_input
        return ctx.fused.backward(*ctx.saved_tensors, grads[0]), None


def _can_fuse(module: nn.Module) -> bool:
    if isinstance(module, LocalResponseNorm | SpatialNorm):
        return module.beta == 0.75
    if isinstance(module, nn.MaxPool2d):
        return bool(module.kernel_size <= _MOST_PIXELS)  # type: ignore[operator]
    return isinstance(module, nn.ReLU | nn.AvgPool2d)


def fuse(modules: Sequence[nn.Module]) -> FusedSteps | None:
    """The longest beginning of these steps that can be one; None if that is a single step or less."""
    first: list[nn.Module] = []
    for module in modules:
        kinds = [type(other) for other in first if not isinstance(other, nn.ReLU)]
        twice = type(module) in kinds or (isinstance(module, _POOLS) and any(k in _POOLS for k in kinds))
        if twice or not _can_fuse(module):
            break
        first.append(module)
    return FusedSteps(first) if len(first) > 1 else None
