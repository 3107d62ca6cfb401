"""ReLU, both norms and pooling of one image after the other, compiled by numba for the CPU that runs it.

torch's steps each read and write the whole batch in memory. Here an image passes through all steps of a layer while
it lies in the second-level cache (0.6 MB for conv1 of the paper), so the batch is read once and only the pooled maps
are written. Each pixel's C values stand side by side (channels_last), which is what the vector units want.

All arithmetic is float32. bfloat16 comes and goes as its bits, uint16, because NumPy has no such type.

Arrays: x, gx [B, H, W, C]; y, gy [B, h, w, C] after pooling; a map is [H, W, C], a plane its pixels [H * W, C].
The formulas are those of `layers.py`, which is the reference. numba compiles this file on first use, in seconds, and
keeps the result beside it; so all functions that call each other stand here.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload
from numpy.typing import NDArray

RELU, LRN, SPATIAL_NORM, MAX_POOL, AVERAGE_POOL = range(5)  # both pools last

Array = NDArray[Any]
_ZERO, _ONE, _TWO = np.float32(0), np.float32(1), np.float32(2)
_BLOCK_VALUES = 1024  # of each of four arrays, which together fill half of the first-level cache
_BETA = np.float32(0.75)  # of both norms: s^-0.75 takes two square roots, any other power several times as long

# Products may be added without rounding in between. NaN must stay NaN, so nothing more of fast arithmetic is allowed.
_compiled: Callable[[Any], Any] = njit(fastmath={"contract"}, error_model="numpy", nogil=True, cache=True)


@_compiled
def _widen(x: Array, plane: Array) -> None:
    """The bits of bfloat16, uint16, to float32."""
    values, bits = x.reshape(-1), plane.reshape(-1).view(np.uint32)
    for i in range(values.size):
        bits[i] = np.uint32(values[i]) << np.uint32(16)


@_compiled
def _round(plane: Array, x: Array) -> None:
    """float32 to the bits of the nearest bfloat16, of two equally near ones the even one. NaN stays NaN."""
    values, bits = x.reshape(-1), plane.reshape(-1).view(np.uint32)
    for i in range(values.size):
        b = bits[i]
        rounded = (b + np.uint32(0x7FFF) + ((b >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        is_nan = (b & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        values[i] = np.uint16(0x7FC0) if is_nan else np.uint16(rounded)


@_compiled
def _copy(x: Array, y: Array) -> None:
    x, y = x.reshape(-1), y.reshape(-1)
    for i in range(x.size):
        y[i] = x[i]


def _load(x: Array, plane: Array) -> None:
    """An image to float32."""
    raise NotImplementedError("numba chooses by the type of x")


def _store(plane: Array, x: Array) -> None:
    """An image from float32."""
    raise NotImplementedError("numba chooses by the type of x")


@overload(_load)
def _choose_load(x: Any, plane: Any) -> Any:
    def widen(x: Any, plane: Any) -> Any:
        _widen(x, plane)

    def copy(x: Any, plane: Any) -> Any:
        _copy(x, plane)

    return widen if x.dtype == types.uint16 else copy


@overload(_store)
def _choose_store(plane: Any, x: Any) -> Any:
    def round_off(plane: Any, x: Any) -> Any:
        _round(plane, x)

    def copy(plane: Any, x: Any) -> Any:
        _copy(plane, x)

    return round_off if x.dtype == types.uint16 else copy


@_compiled
def _relu(x: Array, y: Array) -> None:
    x, y = x.reshape(-1), y.reshape(-1)
    for i in range(x.size):
        y[i] = _ZERO if x[i] < _ZERO else x[i]


@_compiled
def _relu_backward(x: Array, g: Array) -> None:
    """Clears the gradient where `x`, the input or the output of the ReLU, is not positive."""
    x, g = x.reshape(-1), g.reshape(-1)
    for i in range(x.size):
        g[i] = g[i] if x[i] > _ZERO else _ZERO


@_compiled
def _window_sums(values: Array, sums: Array, k: np.float32, scale: np.float32, n: int) -> None:
    """k + scale * the sum over n neighbours, of which the middle one has the index of the sum plus n // 2."""
    if n == 5:  # one pass instead of five
        for i in range(sums.size):
            near = values[i + 1] + values[i + 2] + values[i + 3]
            sums[i] = k + scale * (values[i] + near + values[i + 4])
        return
    for i in range(sums.size):
        sums[i] = k
    for d in range(n):
        shifted = values[d : d + sums.size]
        for i in range(sums.size):
            sums[i] += scale * shifted[i]


@_compiled
def _spread(x: Array, first: int, padded: Array, pad: int) -> None:
    """Pixels from `first` on, [P, C], to rows with zeros on both sides, so that one loop can run over several."""
    for p in range(padded.shape[0]):
        values, room = x[first + p], padded[p, pad : pad + x.shape[1]]
        for c in range(values.size):
            room[c] = values[c]


@_compiled
def _gather(padded: Array, pad: int, x: Array, first: int) -> None:
    """The way back from `_spread`."""
    for p in range(padded.shape[0]):
        values, room = x[first + p], padded[p, pad : pad + x.shape[1]]
        for c in range(values.size):
            values[c] = room[c]


@_compiled
def _lrn(x: Array, y: Array, k: np.float32, scale: np.float32, n: int) -> None:
    """Over neighbouring maps: [P, C]. As many pixels at a time as fit into the first-level cache."""
    pixels, maps = x.shape
    pad = n // 2
    at_a_time = max(1, _BLOCK_VALUES // (maps + 2 * pad))
    buffers = np.zeros((3, at_a_time, maps + 2 * pad), np.float32)
    padded, squares, s = buffers[0], buffers[1], buffers[2]
    for first in range(0, pixels, at_a_time):
        rows = min(at_a_time, pixels - first)
        _spread(x, first, padded[:rows], pad)
        values, q = padded[:rows].reshape(-1), squares[:rows].reshape(-1)
        length = values.size - 2 * pad
        sums, middle = s[:rows].reshape(-1)[:length], values[pad : pad + length]
        for i in range(values.size):
            q[i] = values[i] * values[i]
        _window_sums(q, sums, k, scale, n)
        for i in range(length):
            r = _ONE / math.sqrt(sums[i])
            middle[i] *= r * math.sqrt(r)
        _gather(padded[:rows], pad, y, first)


@_compiled
def _lrn_backward(x: Array, g: Array, k: np.float32, scale: np.float32, n: int) -> None:
    """Turns dL/dy into dL/dx, in place: [P, C]."""
    pixels, maps = x.shape
    pad = n // 2
    at_a_time = max(1, _BLOCK_VALUES // (maps + 2 * pad))
    buffers = np.zeros((4, at_a_time, maps + 2 * pad), np.float32)
    padded, asked, room, s = buffers[0], buffers[1], buffers[2], buffers[3]
    for first in range(0, pixels, at_a_time):
        rows = min(at_a_time, pixels - first)
        _spread(x, first, padded[:rows], pad)
        _spread(g, first, asked[:rows], pad)
        values, q = padded[:rows].reshape(-1), room[:rows].reshape(-1)
        length = values.size - 2 * pad
        sums, own = s[:rows].reshape(-1)[:length], asked[:rows].reshape(-1)[pad : pad + length]
        middle, neighbours = values[pad : pad + length], q[pad : pad + length]
        for i in range(values.size):
            q[i] = values[i] * values[i]
        _window_sums(q, sums, k, scale, n)
        for i in range(length):
            r = _ONE / math.sqrt(sums[i])
            own[i] *= r * math.sqrt(r)
            neighbours[i] = own[i] * middle[i] * (r * r)  # 0 between the pixels, where the value is 0
        _window_sums(q, sums, _ZERO, scale, n)
        for i in range(length):
            own[i] -= _TWO * _BETA * middle[i] * sums[i]
        _gather(asked[:rows], pad, g, first)


@_compiled
def _column_sums(x: Array, i: int, n: int, sums: Array) -> None:
    """Adds up n rows around row i, of those that there are: [W, C], between n // 2 columns of zeros on both sides."""
    height, width = x.shape[:2]
    pad = n // 2
    sums[:] = _ZERO
    middle = sums[pad : pad + width].reshape(-1)
    for row in range(max(0, i - pad), min(height, i + pad + 1)):
        values = x[row].reshape(-1)
        for v in range(values.size):
            middle[v] += values[v]


@_compiled
def _pixel_sum(sums: Array, j: int, n: int, total: Array, k: np.float32, scale: np.float32) -> None:
    """k + scale * the sum over n x n pixels around column j, from the sums of its columns."""
    for c in range(total.size):
        total[c] = _ZERO
    for d in range(n):
        column = sums[j + d]
        for c in range(total.size):
            total[c] += column[c]
    for c in range(total.size):
        total[c] = k + scale * total[c]


@_compiled
def _spatial_norm(x: Array, y: Array, squares: Array, scale: np.float32, n: int) -> None:
    """Over n x n pixels of the same map: [H, W, C]."""
    height, width, maps = x.shape
    sums, s = np.empty((width + n - 1, maps), np.float32), np.empty(maps, np.float32)
    _multiply(x, x, squares)
    for i in range(height):
        _column_sums(squares, i, n, sums)
        for j in range(width):
            _pixel_sum(sums, j, n, s, _ONE, scale)
            for c in range(maps):
                r = _ONE / math.sqrt(s[c])
                y[i, j, c] = x[i, j, c] * (r * math.sqrt(r))


@_compiled
def _multiply(a: Array, b: Array, product: Array) -> None:
    a, b, product = a.reshape(-1), b.reshape(-1), product.reshape(-1)
    for v in range(a.size):
        product[v] = a[v] * b[v]


@_compiled
def _spatial_norm_backward(x: Array, g: Array, squares: Array, asked: Array, scale: np.float32, n: int) -> None:
    """Turns dL/dy into dL/dx, in place; `squares` and `asked` are room for two maps."""
    height, width, maps = x.shape
    sums, s = np.empty((width + n - 1, maps), np.float32), np.empty(maps, np.float32)
    _multiply(x, x, squares)
    for i in range(height):
        _column_sums(squares, i, n, sums)
        for j in range(width):
            _pixel_sum(sums, j, n, s, _ONE, scale)
            for c in range(maps):
                r = _ONE / math.sqrt(s[c])
                own = r * math.sqrt(r) * g[i, j, c]
                g[i, j, c] = own
                asked[i, j, c] = own * x[i, j, c] * (r * r)
    for i in range(height):
        _column_sums(asked, i, n, sums)
        for j in range(width):
            _pixel_sum(sums, j, n, s, _ZERO, scale)
            for c in range(maps):
                g[i, j, c] -= _TWO * _BETA * x[i, j, c] * s[c]


@_compiled
def _max_pool(x: Array, y: Array, chosen: Array, size: int, stride: int) -> None:
    """The largest pixel of each window, and which one that is, from 0 in the order of rows. NaN wins, as in torch.

    First down each column of a row of windows, in one loop over all columns and maps: few maps, as of a narrow net,
    would leave the vector units half empty. Of equal values the first one counts, of several NaN the last.
    """
    height, width, maps = x.shape
    top, rows = np.empty(width * maps, np.float32), np.empty(width * maps, np.int32)
    which = np.empty(maps, np.int32)
    for i in range(y.shape[0]):
        first = x[i * stride].reshape(-1)
        for v in range(top.size):
            top[v] = first[v]
            rows[v] = 0
        for dy in range(1, min(size, height - i * stride)):
            below, number = x[i * stride + dy].reshape(-1), np.int32(dy * size)
            for v in range(top.size):
                is_better = below[v] > top[v] or below[v] != below[v]
                top[v] = below[v] if is_better else top[v]
                rows[v] = number if is_better else rows[v]
        for j in range(y.shape[1]):
            best, column = y[i, j], j * stride * maps
            for c in range(maps):
                best[c] = top[column + c]
                which[c] = rows[column + c]
            for dx in range(1, min(size, width - j * stride)):
                beside, places = top[column + dx * maps :], rows[column + dx * maps :]
                for c in range(maps):
                    number = places[c] + np.int32(dx)
                    is_first = beside[c] == best[c] and number < which[c]
                    is_last = beside[c] != beside[c] and (best[c] == best[c] or number > which[c])
                    is_better = beside[c] > best[c] or is_first or is_last
                    best[c] = beside[c] if is_better else best[c]
                    which[c] = number if is_better else which[c]
            for c in range(maps):
                chosen[i, j, c] = np.uint8(which[c])


@_compiled
def _pick(x: Array, y: Array, chosen: Array, size: int, stride: int) -> None:
    """The pixels that `_max_pool` chose before."""
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            for c in range(y.shape[2]):
                dy, dx = divmod(np.int64(chosen[i, j, c]), size)
                y[i, j, c] = x[i * stride + dy, j * stride + dx, c]


@_compiled
def _max_pool_backward(g: Array, chosen: Array, gx: Array, size: int, stride: int) -> None:
    height, width, maps = gx.shape
    gx[:] = _ZERO
    for i in range(g.shape[0]):
        for j in range(g.shape[1]):
            asked, which = g[i, j], chosen[i, j]
            for dy in range(min(size, height - i * stride)):
                for dx in range(min(size, width - j * stride)):
                    pixel, number = gx[i * stride + dy, j * stride + dx], np.uint8(dy * size + dx)
                    for c in range(maps):
                        pixel[c] += asked[c] if which[c] == number else _ZERO


@_compiled
def _average_pool(x: Array, y: Array, size: int, stride: int) -> None:
    """The mean of the pixels of each window that lie in the image."""
    height, width, maps = x.shape
    for i in range(y.shape[0]):
        for j in range(y.shape[1]):
            mean = y[i, j]
            rows, columns = min(size, height - i * stride), min(size, width - j * stride)
            mean[:] = _ZERO
            for dy in range(rows):
                for dx in range(columns):
                    pixel = x[i * stride + dy, j * stride + dx]
                    for c in range(maps):
                        mean[c] += pixel[c]
            for c in range(maps):
                mean[c] /= np.float32(rows * columns)


@_compiled
def _average_pool_backward(g: Array, gx: Array, size: int, stride: int) -> None:
    height, width, maps = gx.shape
    gx[:] = _ZERO
    for i in range(g.shape[0]):
        for j in range(g.shape[1]):
            asked = g[i, j]
            rows, columns = min(size, height - i * stride), min(size, width - j * stride)
            share = _ONE / np.float32(rows * columns)
            for dy in range(rows):
                for dx in range(columns):
                    pixel = gx[i * stride + dy, j * stride + dx]
                    for c in range(maps):
                        pixel[c] += asked[c] * share


@_compiled
def _run_step(
    step: int, before: Array, after: Array, room: Array, chosen: Array, sizes: Array, numbers: Array, again: bool
) -> None:
    """One step of one image, from map to map; `again` where `chosen` holds already what a pool chose."""
    if step == RELU:
        _relu(before, after)
    elif step == LRN:
        maps = before.shape[2]
        _lrn(before.reshape((-1, maps)), after.reshape((-1, maps)), numbers[0], numbers[1], sizes[0])
    elif step == SPATIAL_NORM:
        _spatial_norm(before, after, room[: before.size].reshape(before.shape), numbers[2], sizes[1])
    elif step == AVERAGE_POOL:
        _average_pool(before, after, sizes[2], sizes[3])
    elif again:
        _pick(before, after, chosen, sizes[2], sizes[3])
    else:
        _max_pool(before, after, chosen, sizes[2], sizes[3])


@_compiled
def run_forward(x: Array, y: Array, chosen: Array, steps: Array, sizes: Array, numbers: Array) -> None:
    """All steps of a layer, image by image, from x to y.

    Args:
        x: float32 or uint16 [B, H, W, C]; y: the same type, [B, h, w, C].
        chosen: uint8 [B, h, w, C], of which a max pool writes which pixel of its window it took; [B, 0, 0, 0] where
            nobody will ask.
        steps: int64, numbers of the steps in their order, of which at most one is a pool.
        sizes: int64 [4]: maps in the window of LRN, pixels on a side of the spatial norm's, pool's size and stride.
        numbers: float32 [3]: k of LRN, alpha over what it is divided by of LRN, the same of the spatial norm.
    """
    height, width, maps = x.shape[1:]
    small_height, small_width = y.shape[1:3]
    values, few = height * width * maps, small_height * small_width * maps
    buffers, room = np.empty((2, values), np.float32), np.empty(values, np.float32)
    forgotten = np.empty((small_height, small_width, maps), np.uint8)
    for b in range(x.shape[0]):
        now = 0
        shape, size = (height, width, maps), values
        _load(x[b], buffers[now])
        marks = chosen[b] if chosen.size > 0 else forgotten
        for step in steps:
            before = buffers[now][:size].reshape(shape)
            if step >= MAX_POOL:
                shape, size = (small_height, small_width, maps), few
            # Never in place: where input and output overlap, the compiled loops take one number at a time.
            now = 1 - now
            _run_step(step, before, buffers[now][:size].reshape(shape), room, marks, sizes, numbers, False)
        _store(buffers[now][:size], y[b])


@_compiled
def run_backward(
    x: Array, y: Array, gy: Array, chosen: Array, gx: Array, steps: Array, sizes: Array, numbers: Array, needed: int
) -> None:
    """dL/dx of all steps from dL/dy, image by image.

    The inputs of the steps are computed anew, which is cheaper than to read them back from memory. A last ReLU needs
    its output instead, and a pool only what it chose.

    Args:
        x, chosen, steps, sizes, numbers: as `run_forward` was given them.
        y: what it returned, read where the last step is a ReLU.
        gy: dL/dy, as y; gx: dL/dx, as x.
        needed: how many first steps have to be computed anew.
    """
    height, width, maps = x.shape[1:]
    small_height, small_width = gy.shape[1:3]
    values, few = height * width * maps, small_height * small_width * maps
    inputs, g = np.empty((needed + 1, values), np.float32), np.empty((2, values), np.float32)
    room, more_room = np.empty(values, np.float32), np.empty(values, np.float32)
    last = len(steps) - 1
    has_pool = False
    for step in steps:
        has_pool |= step >= MAX_POOL
    for b in range(x.shape[0]):
        shape, size = (height, width, maps), values
        _load(x[b], inputs[0])
        for index in range(needed):
            before, step = inputs[index][:size].reshape(shape), steps[index]
            if step >= MAX_POOL:
                shape, size = (small_height, small_width, maps), few
            _run_step(step, before, inputs[index + 1][:size].reshape(shape), room, chosen[b], sizes, numbers, True)

        shape, size = ((small_height, small_width, maps), few) if has_pool else ((height, width, maps), values)
        now = 0
        _load(gy[b], g[now][:size])
        for index in range(last, -1, -1):
            step, asked = steps[index], g[now][:size].reshape(shape)
            if step == RELU and index == last and index > 0:
                output = g[1 - now][:size]  # room that is free
                _load(y[b], output)
                _relu_backward(output, asked)
                continue
            if step >= MAX_POOL:
                shape, size, now = (height, width, maps), values, 1 - now
                wanted = g[now][:size].reshape(shape)
                if step == MAX_POOL:
                    _max_pool_backward(asked, chosen[b], wanted, sizes[2], sizes[3])
                else:
                    _average_pool_backward(asked, wanted, sizes[2], sizes[3])
                continue
            before = inputs[index][:size].reshape(shape)
            if step == RELU:
                _relu_backward(before, asked)
            elif step == LRN:
                pixels = size // maps
                _lrn_backward(
                    before.reshape((pixels, maps)), asked.reshape((pixels, maps)), numbers[0], numbers[1], sizes[0]
                )
            else:
                squares, more = room[:size].reshape(shape), more_room[:size].reshape(shape)
                _spatial_norm_backward(before, asked, squares, more, numbers[2], sizes[1])
        _store(g[now][:size], gx[b])
