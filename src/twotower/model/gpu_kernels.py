"""ReLU, LRN and pooling in one kernel each way, and the spatial norm, written in Triton for NVIDIA GPUs.

A program takes a block of pixels with all their C maps, and computes again what the steps before a pool gave for each
pixel of its window, which costs less than to write it to memory and read it back. The sum over neighbouring maps is a
product with a band matrix, as in `layers.py`, whose formulas these are. All arithmetic is float32; float64 is left to
the layers. Maps may lie in either order in memory: a kernel takes strides.

Arrays: x [B, C, H, W], y [B, C, h, w] after pooling; `chosen` is uint8, as y: which pixel of its window a max pool
took, in the order of rows.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS = 32  # in a block


@triton.jit
def _powers(x, band, k):
    """s and s^-0.75 of a block [P, C], where s = k + the scaled sum of the neighbours' squares."""
    s = tl.dot(x * x, band, input_precision="ieee") + k
    r = 1.0 / tl.sqrt(s)
    return s, r * tl.sqrt(r)


@triton.jit
def _first_steps(x, band, k, FIRST_RELU: tl.constexpr, HAS_LRN: tl.constexpr):
    """A block [P, C] after the steps before the pool."""
    y = tl.where(x < 0.0, 0.0, x) if FIRST_RELU else x
    if HAS_LRN:
        _, t = _powers(y, band, k)
        y = y * t
    return y


@triton.jit
def forward_kernel(
    x_at, y_at, chosen_at, band_at, k, pixels, height, width, small_height, small_width,
    x_image, x_map, x_row, x_column, y_image, y_map, y_row, y_column,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr,
    FIRST_RELU: tl.constexpr, HAS_LRN: tl.constexpr, IS_MAX: tl.constexpr, LAST_RELU: tl.constexpr,
    KEEP: tl.constexpr,
):  # fmt: skip
    """x -> y. Without a pool SIZE and STRIDE are 1."""
    maps = tl.arange(0, BLOCK_C)
    n = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    image, i, j = n // (small_height * small_width), (n // small_width) % small_height, n % small_width
    is_map, is_pixel = maps < C, n < pixels
    band = tl.load(band_at + maps[:, None] * BLOCK_C + maps[None, :])
    best = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    which = tl.zeros((BLOCK_P, BLOCK_C), tl.int32)
    count = tl.zeros((BLOCK_P,), tl.float32)
    for number in tl.static_range(SIZE * SIZE):
        row, column = i * STRIDE + number // SIZE, j * STRIDE + number % SIZE
        inside = is_pixel & (row < height) & (column < width)
        at = image * x_image + row * x_row + column * x_column
        mask = inside[:, None] & is_map[None, :]
        x = tl.load(x_at + at[:, None] + maps[None, :] * x_map, mask=mask, other=0.0).to(tl.float32)
        value = _first_steps(x, band, k, FIRST_RELU, HAS_LRN)
        if IS_MAX:
            better = inside[:, None] & ((value > best) | (value != value))
            if number == 0:
                better = inside[:, None] & is_map[None, :]  # the first pixel of a window is always in the image
            best = tl.where(better, value, best)
            which = tl.where(better, number, which)
        else:
            best += tl.where(inside[:, None], value, 0.0)
            count += tl.where(inside, 1.0, 0.0)
    if not IS_MAX:
        best = best / tl.maximum(count, 1.0)[:, None]
    if LAST_RELU:
        best = tl.where(best < 0.0, 0.0, best)
    at = image * y_image + i * y_row + j * y_column
    at_map = at[:, None] + maps[None, :] * y_map
    mask = is_pixel[:, None] & is_map[None, :]
    tl.store(y_at + at_map, best.to(y_at.dtype.element_ty), mask=mask)
    if KEEP:
        tl.store(chosen_at + at_map, which.to(tl.uint8), mask=mask)


@triton.jit
def backward_kernel(
    x_at, y_at, chosen_at, gy_at, gx_at, band_at, k, beta2, pixels, height, width, small_height, small_width,
    x_image, x_map, x_row, x_column, y_image, y_map, y_row, y_column,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, SIZE: tl.constexpr, STRIDE: tl.constexpr,
    FIRST_RELU: tl.constexpr, HAS_LRN: tl.constexpr, IS_MAX: tl.constexpr, LAST_RELU: tl.constexpr,
):  # fmt: skip
    """dL/dx from dL/dy: each pixel of x adds up what the windows that hold it ask of it."""
    maps = tl.arange(0, BLOCK_C)
    n = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    image, row, column = n // (height * width), (n // width) % height, n % width
    is_map, is_pixel = maps < C, n < pixels
    band = tl.load(band_at + maps[:, None] * BLOCK_C + maps[None, :])
    asked = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    windows: tl.constexpr = (SIZE + STRIDE - 1) // STRIDE  # in a direction, that can hold one pixel
    for window in tl.static_range(windows * windows):
        i, j = row // STRIDE - window // windows, column // STRIDE - window % windows
        dy, dx = row - i * STRIDE, column - j * STRIDE
        holds = is_pixel & (i >= 0) & (j >= 0) & (i < small_height) & (j < small_width) & (dy < SIZE) & (dx < SIZE)
        at = image * y_image + i * y_row + j * y_column
        at_map = at[:, None] + maps[None, :] * y_map
        mask = holds[:, None] & is_map[None, :]
        g = tl.load(gy_at + at_map, mask=mask, other=0.0).to(tl.float32)
        if LAST_RELU:
            y = tl.load(y_at + at_map, mask=mask, other=0.0).to(tl.float32)
            g = tl.where(y > 0.0, g, 0.0)
        if IS_MAX:
            which = tl.load(chosen_at + at_map, mask=mask, other=255).to(tl.int32)
            g = tl.where(which == (dy * SIZE + dx)[:, None], g, 0.0)
        else:
            rows = tl.minimum(SIZE, height - i * STRIDE)
            columns = tl.minimum(SIZE, width - j * STRIDE)
            g = g / tl.where(holds, rows * columns, 1).to(tl.float32)[:, None]
        asked += g
    at = image * x_image + row * x_row + column * x_column
    at_map = at[:, None] + maps[None, :] * x_map
    mask = is_pixel[:, None] & is_map[None, :]
    x = tl.load(x_at + at_map, mask=mask, other=0.0).to(tl.float32)
    if HAS_LRN:
        value = tl.where(x < 0.0, 0.0, x) if FIRST_RELU else x
        s, t = _powers(value, band, k)
        own = t * asked
        neighbours = tl.dot(own * value / s, band, input_precision="ieee")
        asked = own - beta2 * value * neighbours
    if FIRST_RELU:
        asked = tl.where(x > 0.0, asked, 0.0)
    tl.store(gx_at + at_map, asked.to(gx_at.dtype.element_ty), mask=mask)


@triton.jit
def spatial_kernel(
    x_at, g_at, asked_at, out_at, scale, beta2, pixels, height, width, image, map_stride, row_stride, column_stride,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, N: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """The spatial norm: MODE 0 is forward; 1 is what each pixel asks of its neighbours, into `asked`; 2 is dL/dx."""
    maps = tl.arange(0, BLOCK_C)
    n = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    b, i, j = n // (height * width), (n // width) % height, n % width
    is_map, is_pixel = maps < C, n < pixels
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    asked = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for number in tl.static_range(N * N):
        row, column = i + number // N - N // 2, j + number % N - N // 2
        inside = is_pixel & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        at = b * image + row * row_stride + column * column_stride
        at_map, mask = at[:, None] + maps[None, :] * map_stride, inside[:, None] & is_map[None, :]
        x = tl.load(x_at + at_map, mask=mask, other=0.0).to(tl.float32)
        total += x * x
        if MODE == 2:
            asked += tl.load(asked_at + at_map, mask=mask, other=0.0)
    at = b * image + i * row_stride + j * column_stride
    at_map, mask = at[:, None] + maps[None, :] * map_stride, is_pixel[:, None] & is_map[None, :]
    x = tl.load(x_at + at_map, mask=mask, other=0.0).to(tl.float32)
    s = 1.0 + scale * total
    r = 1.0 / tl.sqrt(s)
    t = r * tl.sqrt(r)
    if MODE == 0:
        tl.store(out_at + at_map, (x * t).to(out_at.dtype.element_ty), mask=mask)
    else:
        own = t * tl.load(g_at + at_map, mask=mask, other=0.0).to(tl.float32)
        if MODE == 1:
            tl.store(asked_at + at_map, own * x / s, mask=mask)
        else:
            tl.store(out_at + at_map, (own - beta2 * x * scale * asked).to(out_at.dtype.element_ty), mask=mask)


def _blocks(pixels: int) -> tuple[int]:
    return (triton.cdiv(pixels, PIXELS),)


def make_band(maps: int, n: int, scale: float, device: torch.device) -> Tensor:
    """float32 [BLOCK_C, BLOCK_C]: scale where two maps are neighbours, else 0; BLOCK_C is 16, 32, 64 ..."""
    block = max(16, triton.next_power_of_2(maps))
    at = torch.arange(block, device=device)
    near = ((at[:, None] - at[None]).abs() <= n // 2) & (at < maps)[:, None] & (at < maps)[None]
    return near.float() * scale


def run_forward(x: Tensor, y: Tensor, chosen: Tensor, band: Tensor, k: float, how: dict[str, Any]) -> None:
    """All steps from x to y; `chosen` is empty where nobody will ask. `how` has the constants of the kernel."""
    pixels = y.shape[0] * y.shape[2] * y.shape[3]
    forward_kernel[_blocks(pixels)](
        x, y, chosen, band, k, pixels, *x.shape[2:], *y.shape[2:], *x.stride(), *y.stride(),
        C=x.shape[1], BLOCK_C=len(band), BLOCK_P=PIXELS, KEEP=chosen.numel() > 0, **how,
    )  # fmt: skip


def run_backward(
    x: Tensor, y: Tensor, chosen: Tensor, gy: Tensor, gx: Tensor, band: Tensor, k: float, how: dict[str, Any]
) -> None:
    """dL/dx; gy must have the strides of y, and gx those of x."""
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    backward_kernel[_blocks(pixels)](
        x, y, chosen, gy, gx, band, k, 1.5, pixels, *x.shape[2:], *y.shape[2:], *x.stride(), *y.stride(),
        C=x.shape[1], BLOCK_C=len(band), BLOCK_P=PIXELS, **how,
    )  # fmt: skip


def _run_spatial(x: Tensor, g: Tensor, asked: Tensor, out: Tensor, n: int, scale: float, mode: int) -> None:
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    spatial_kernel[_blocks(pixels)](
        x, g, asked, out, scale, 1.5, pixels, *x.shape[2:], *x.stride(),
        C=x.shape[1], BLOCK_C=max(16, triton.next_power_of_2(x.shape[1])), BLOCK_P=PIXELS, N=n, MODE=mode,
    )  # fmt: skip


def spatial_forward(x: Tensor, n: int, scale: float) -> Tensor:
    """The spatial norm of x, where scale is alpha / n^2."""
    y = torch.empty_like(x)
    _run_spatial(x, x, x, y, n, scale, mode=0)
    return y


def spatial_backward(x: Tensor, g: Tensor, n: int, scale: float) -> Tensor:
    """dL/dx of the spatial norm; g must have the strides of x."""
    asked, gx = torch.empty_like(x, dtype=torch.float32), torch.empty_like(x)
    _run_spatial(x, g, asked, gx, n, scale, mode=1)
    _run_spatial(x, g, asked, gx, n, scale, mode=2)
    return gx
