"""A convolution without shared weights, "local" in the code of 2011: each output pixel has its own kernels.

B images, C maps of H x W pixels; K maps of H' x W' pixels come out.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def _places(size: int, stride: int, height: int, width: int) -> list[tuple[slice, slice]]:
    """For each pixel of a window, the pixels of the padded image that it falls on, one for each output pixel."""
    return [
        (slice(dy, dy + (height - 1) * stride + 1, stride), slice(dx, dx + (width - 1) * stride + 1, stride))
        for dy in range(size)
        for dx in range(size)
    ]


class _Windows(torch.autograd.Function):
    """What each output pixel reads: [B, C, H, W] -> [H' W', B, size size C].

    Pixels come first, because each is a matrix product of its own. torch's `unfold` has images first and the maps of
    a pixel apart, which took two to three times as long on a CPU, forward and backward.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, stride: int, pad: int) -> Tensor:
        padded = F.pad(x.permute(2, 3, 0, 1), (0, 0, 0, 0, pad, pad, pad, pad))
        height, width = ((side - size) // stride + 1 for side in padded.shape[:2])
        ctx.places, ctx.pad, ctx.padded_shape = _places(size, stride, height, width), pad, padded.shape
        # Made by `cat`, which copies in several threads what assignments would copy in one.
        return torch.cat([padded[place] for place in ctx.places], dim=3).flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        height, width, images, maps = ctx.padded_shape
        grad_padded = grads[0].new_zeros(height, width, images, maps)
        of_places = grads[0].unflatten(2, (len(ctx.places), maps)).unbind(2)
        for place, grad in zip(ctx.places, of_places, strict=True):
            target = grad_padded[place]
            target += grad.view(target.shape)
        inside = grad_padded[ctx.pad : height - ctx.pad, ctx.pad : width - ctx.pad]
        return inside.permute(2, 3, 0, 1), None, None, None


class LocalConv2d(nn.Module):
    """x: [B, C, H, W] -> [B, K, H', W'], where pixel (i, j) is a convolution's with weight[i, j] and bias[i, j].

    weight: [H', W', K, C, size, size]; bias: [H', W', K]. It takes one size of image, as each pixel has its kernels.
    """

    def __init__(self, maps_in: int, maps_out: int, size: int, stride: int, pad: int, side: int) -> None:
        super().__init__()
        self.stride, self.pad = stride, pad
        self.weight = nn.Parameter(torch.empty(side, side, maps_out, maps_in, size, size))
        self.bias = nn.Parameter(torch.empty(side, side, maps_out))

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        if torch.is_autocast_enabled(device) and x.dtype == torch.float32:
            x = x.to(torch.get_autocast_dtype(device))  # as the product would, but before windows are copied
        height, width, kernels, _, size, _ = self.weight.shape
        windows = _Windows.apply(x, size, self.stride, self.pad)
        if len(windows) != height * width:
            raise ValueError(
                f"this local layer has kernels for {height} x {width} pixels, and an image of {x.shape[2]} x "
                f"{x.shape[3]} gives {len(windows)}; use images of the size that the network was built for."
            )
        weights = self.weight.permute(0, 1, 4, 5, 3, 2).reshape(len(windows), -1, kernels)
        y = torch.baddbmm(self.bias.flatten(0, 1).unsqueeze(1), windows, weights)
        return y.unflatten(0, (height, width)).permute(2, 3, 0, 1)
