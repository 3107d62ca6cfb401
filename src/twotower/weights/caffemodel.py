"""Weights in Caffe's own files: `.caffemodel` (a NetParameter) and `.binaryproto` (a mean image, a BlobProto).

Both are protocol buffers; the few fields that are needed are read here, by their numbers in caffe.proto:

    NetParameter      layers = 2 (V1LayerParameter), layer = 100 (LayerParameter)
    V1LayerParameter  name = 4, blobs = 6               LayerParameter  name = 1, blobs = 7
    BlobProto         num, channels, height, width = 1, 2, 3, 4; data = 5 (float); shape = 7; double_data = 8
    BlobShape         dim = 1
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Value = int | memoryview
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types
MAX_DIMENSIONS = 8


class _DamagedError(Exception):
    """Why the bytes are no such message."""


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = 0
    for count in range(10):
        if at >= len(message):
            raise _DamagedError("it ends within a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, at
    raise _DamagedError("a number has more than ten bytes")


def _fields(message: memoryview) -> Iterator[tuple[int, int, Value]]:
    """Field number, wire type and value of each field; numbers as int, everything else as its bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        wire = key & 7
        if wire == VARINT:
            value, at = _varint(message, at)
            yield key >> 3, wire, value
            continue
        if wire == LENGTH:
            size, at = _varint(message, at)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise _DamagedError(f"field {key >> 3} has the unknown wire type {wire}")
        if size > len(message) - at:
            raise _DamagedError(f"field {key >> 3} has {size} bytes, and {len(message) - at} are left")
        yield key >> 3, wire, message[at : at + size]
        at += size


def _varints(value: Value) -> list[int]:
    """One number, or several of them packed."""
    if isinstance(value, int):
        return [value]
    numbers: list[int] = []
    at = 0
    while at < len(value) and len(numbers) <= MAX_DIMENSIONS:
        number, at = _varint(value, at)
        numbers.append(number)
    return numbers


def _blob(message: memoryview) -> Array:
    """float32 in the blob's shape; old files have four dimensions for everything."""
    old: dict[int, int] = {}
    shape: list[int] | None = None
    values: dict[int, list[memoryview]] = {5: [], 8: []}
    for field, wire, value in _fields(message):
        if field in (1, 2, 3, 4) and isinstance(value, int):
            old[field] = value
        elif field == 7 and isinstance(value, memoryview):
            shape = [size for number, _, one in _fields(value) if number == 1 for size in _varints(one)]
        elif field in values and isinstance(value, memoryview) and wire in (LENGTH, FIXED32, FIXED64):
            values[field].append(value)  # packed, or a field for each number
    kind = np.dtype("<f4") if values[5] else np.dtype("<f8")
    content = b"".join(values[5] or values[8])
    sizes = shape if shape is not None else [old.get(field, 1) for field in (1, 2, 3, 4)]
    count = 1
    for size in sizes:
        count *= size
    if len(sizes) > MAX_DIMENSIONS or max(sizes, default=1) >= 1 << 31 or count * kind.itemsize != len(content):
        raise _DamagedError(f"a blob of shape {sizes[:MAX_DIMENSIONS]} has {len(content) // kind.itemsize} values")
    return np.frombuffer(content, kind).reshape(sizes).astype(np.float32)


def _layer(message: memoryview, name_field: int, blobs_field: int) -> tuple[str, list[Array]]:
    name, blobs = "", []
    for field, _, value in _fields(message):
        if field == name_field and isinstance(value, memoryview):
            name = bytes(value).decode("utf-8", "replace")
        elif field == blobs_field and isinstance(value, memoryview):
            blobs.append(_blob(value))
    return name, blobs


def read_caffemodel(path: Path) -> dict[str, list[Array]]:
    """{"conv1": [weight, bias], ...} of the layers that have weights, float32; weights [out, in, height, width].

    Raises: ValueError if the file is no Caffe model, or it is cut short or changed.
    """
    layers = {}
    try:
        for field, _, value in _fields(memoryview(path.read_bytes())):
            if field in (2, 100) and isinstance(value, memoryview):
                name, blobs = _layer(value, *((4, 6) if field == 2 else (1, 7)))
                if blobs:
                    layers[name] = blobs
    except _DamagedError as error:
        raise ValueError(f"{path} is no .caffemodel, or is damaged: {error}; get it again.") from error
    if not layers:
        raise ValueError(f"{path} has no layer with weights; give a .caffemodel of a trained network.")
    return layers


def read_binaryproto(path: Path) -> Array:
    """A mean image [1, channels, height, width], float32. Raises: ValueError if the file is none, or is damaged."""
    try:
        return _blob(memoryview(path.read_bytes()))
    except _DamagedError as error:
        raise ValueError(f"{path} is no .binaryproto, or is damaged: {error}; get it again.") from error
