"""The few layers that torch does not have in the form of 2012: both response norms, dropout, two-input layers.

Shapes: B images, C maps of one tower, H x W pixels.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from twotower.ground.precision import in_full_precision
from twotower.ground.random_streams import torch_stream

# Number of values that are normalised at a time on a CPU. The intermediates of such a chunk stay in the second-level
# cache (1 to 4 MiB a core), so memory is read and written once instead of about six times.
_CHUNK_VALUES = 1 << 18

Window = Callable[[Tensor], Tensor]


def is_channels_last(x: Tensor) -> bool:
    """Whether a pixel's maps stand side by side in memory, and that is not the other order, too."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _chunks(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    # A list, as torch.compile of 2.14 cannot follow a generator here.
    first = tensors[0]
    if first.device.type != "cpu":
        return [tensors]
    images = max(1, _CHUNK_VALUES // max(1, first[0].numel()))
    return list(zip(*[t.split(images) for t in tensors], strict=True))


def _power(s: Tensor, beta: float) -> Tensor:
    """s^-beta. For the paper's 0.75 from two square roots, several times cheaper than `pow`."""
    if beta != 0.75:
        return s.pow(-beta)
    r = s.rsqrt()
    return r.sqrt().mul_(r)


class _ResponseNorm(torch.autograd.Function):
    """y = x * s^-beta with s = k + window(x^2), where `window` is linear and its own transpose.

    With t = s^-beta: dL/dx = t * dL/dy - 2 beta x * window(dL/dy * x * t / s).

    Only x is kept for the backward pass; s is computed anew, which is cheaper than reading it back. Half
    precision is computed in float32, as a sum of squares leaves the range of float16 at 256.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: Window, k: float, beta: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.window, ctx.k, ctx.beta = window, k, beta
        y = torch.empty_like(x)
        with in_full_precision(x.device):
            for part, out in _chunks(x, y):
                wide = part if part.dtype == torch.float64 else part.float()
                s = window(wide * wide).add_(k)
                out.copy_(_power(s, beta).mul_(wide))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        window, k, beta = ctx.window, ctx.k, ctx.beta
        grad_y = torch.empty_like(x).copy_(grads[0]) if grads[0].stride() != x.stride() else grads[0]
        grad_x = torch.empty_like(x)
        with in_full_precision(x.device):
            for part, grad, out in _chunks(x, grad_y, grad_x):
                wide = part if part.dtype == torch.float64 else part.float()
                s = window(wide * wide).add_(k)
                own = _power(s, beta).mul_(grad)
                neighbours = window((own * wide).div_(s))
                out.copy_(own.addcmul_(neighbours, wide, value=-2 * beta))
        return grad_x, None, None, None


class LocalResponseNorm(nn.Module):
    """Normalisation across neighbouring maps (paper section 3.3), never across the tower's edge.

    [B, C, H, W] -> [B, C, H, W]; y_i = x_i (k + alpha * sum over |j - i| <= n // 2 of x_j^2)^-beta. The window is
    cut at map 0 and map C - 1. With `alpha_over_n` alpha is divided by n first, also where the window is cut, as
    in the 2012 code (layer.py:1183; so do Caffe and `torch.nn.LocalResponseNorm`); the paper's formula does not.

    The sum over a window of maps is a product with a banded C x C matrix, which costs next to nothing.
    """

    band: Tensor

    def __init__(self, maps: int, n: int, k: float, alpha: float, alpha_over_n: bool, beta: float) -> None:
        super().__init__()
        self.n, self.k, self.beta = n, k, beta
        self.scale = alpha / n if alpha_over_n else alpha
        distance = (torch.arange(maps)[:, None] - torch.arange(maps)[None]).abs()
        # It is a buffer so that it follows the tower's device, and float64 so that `.double()` towers stay exact.
        self.register_buffer("band", (distance <= n // 2).double() * self.scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        band = self.band.to(torch.float64 if x.dtype == torch.float64 else torch.float32)

        def window(squares: Tensor) -> Tensor:
            if is_channels_last(squares):
                rows = squares.permute(0, 2, 3, 1).reshape(-1, squares.shape[1])
                b, c, h, w = squares.shape
                return torch.mm(rows, band).view(b, h, w, c).permute(0, 3, 1, 2)
            return torch.matmul(band, squares.flatten(2)).view_as(squares)

        y: Tensor = _ResponseNorm.apply(x, window, self.k, self.beta)
        return y


class SpatialNorm(nn.Module):
    """Normalisation over the n x n pixels around each one in the same map; the 2012 code has it after LRN2.

    [B, C, H, W] -> [B, C, H, W]; y = x (1 + alpha / n^2 * sum of x^2)^-beta. The window is cut at the image's
    edge, the divisor stays n^2 (layer.py:1183, conv_util.cu:953-1015, kCNorm_manyfilter, of cuda-convnet2).
    """

    def __init__(self, n: int, alpha: float, beta: float) -> None:
        super().__init__()
        self.n, self.alpha, self.beta = n, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        def window(squares: Tensor) -> Tensor:
            return F.avg_pool2d(squares, self.n, stride=1, padding=self.n // 2).mul_(self.alpha)

        y: Tensor = _ResponseNorm.apply(x, window, 1.0, self.beta)
        return y


class Dropout(nn.Module):
    """Dropout of 2012: no rescaling in training, every unit times `keep` at test (paper 4.2, layer.cu:1126-1135).

    With `rescale`, as Caffe, TF-slim and torch have it: what is kept is divided by `keep` in training, and the test
    changes nothing.

    The mask is drawn for the batch of all replicas, and `rows` of it are used here. `at_step` must be called before
    each training step.
    """

    def __init__(self, keep: float, seed: int, tower: int, layer: str, rescale: bool = False) -> None:
        super().__init__()
        self.rescale = rescale
        self.keep, self.keys = keep, (seed, tower, layer)
        self.step, self.rows, self.batch = 0, slice(None), 0

    def at_step(self, step: int, rows: slice, batch: int) -> None:
        """Which step's mask is used, which rows of it, and how many rows it has over all replicas."""
        self.step, self.rows, self.batch = step, rows, batch

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x if self.rescale else x * self.keep
        generator = torch_stream("dropout", *self.keys, self.step, device=x.device)
        uniform = torch.rand(self.batch, *x.shape[1:], generator=generator, device=x.device)
        passed = x * (uniform[self.rows] < self.keep)
        return passed / self.keep if self.rescale else passed


class ReadBothConv2d(nn.Module):
    """A convolution that reads both towers: y = own(x) + other(peer) + bias, with a weight for each half.

    x and peer: [B, C, H, W]; weights: [K, C, size, size]; y: [B, K, H', W']. In a network of one piece, tower 0
    has the weight cat(own, other), tower 1 has cat(other, own), along dimension 1.

    With `inplace` the sum over the own half is overwritten by the sum over both; `Layer` clears it where a hook may
    have kept the former. Both ways give the same bits.
    """

    inplace = True

    def __init__(self, maps_in: int, maps_out: int, size: int, stride: int, pad: int) -> None:
        super().__init__()
        self.stride, self.pad = stride, pad
        self.weight_own = nn.Parameter(torch.empty(maps_out, maps_in, size, size))
        self.weight_other = nn.Parameter(torch.empty(maps_out, maps_in, size, size))
        self.bias = nn.Parameter(torch.empty(maps_out))

    def forward(self, x: Tensor, peer: Tensor, own_sum: Tensor | None = None) -> Tensor:
        """The sum over both halves; `own_sum` is `own(x)` where it was computed while the halves crossed."""
        return self.other(peer, self.own(x) if own_sum is None else own_sum)

    def own(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight_own, self.bias, self.stride, self.pad)

    def other(self, peer: Tensor, y: Tensor) -> Tensor:
        other_sum = F.conv2d(peer, self.weight_other, None, self.stride, self.pad)
        return y.add_(other_sum) if self.inplace else y + other_sum


class ReadBothLinear(nn.Module):
    """A fully-connected layer that reads both towers; x and peer: [B, C], weights: [K, C], y: [B, K]."""

    def __init__(self, units_in: int, units_out: int) -> None:
        super().__init__()
        self.weight_own = nn.Parameter(torch.empty(units_out, units_in))
        self.weight_other = nn.Parameter(torch.empty(units_out, units_in))
        self.bias = nn.Parameter(torch.empty(units_out))

    def forward(self, x: Tensor, peer: Tensor, own_sum: Tensor | None = None) -> Tensor:
        """The sum over both halves; `own_sum` is `own(x)` where it was computed while the halves crossed."""
        return self.other(peer, self.own(x) if own_sum is None else own_sum)

    def own(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_own, self.bias)

    def other(self, peer: Tensor, y: Tensor) -> Tensor:
        return torch.addmm(y, peer, self.weight_other.t())
