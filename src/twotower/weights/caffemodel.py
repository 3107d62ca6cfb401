"""Weights in Caffe's own files: `.caffemodel` (a NetParameter) and `.binaryproto` (a mean image, a BlobProto).

Both are protocol buffers. Of Caffe's schema (caffe.proto) only these fields are needed; protobuf skips all others.
"""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

Array = NDArray[np.float32]
MAX_DIMENSIONS = 8

_FIELD = descriptor_pb2.FieldDescriptorProto
_NUMBER, _FLOATS, _DOUBLES, _TEXT = _FIELD.TYPE_INT64, _FIELD.TYPE_FLOAT, _FIELD.TYPE_DOUBLE, _FIELD.TYPE_STRING
# By message: name, number in caffe.proto, type (or another message), whether it is repeated.
SCHEMA: dict[str, list[tuple[str, int, Any, bool]]] = {
    "BlobShape": [("dim", 1, _NUMBER, True)],
    "BlobProto": [
        ("num", 1, _NUMBER, False),
        ("channels", 2, _NUMBER, False),
        ("height", 3, _NUMBER, False),
        ("width", 4, _NUMBER, False),
        ("data", 5, _FLOATS, True),
        ("shape", 7, "BlobShape", False),
        ("double_data", 8, _DOUBLES, True),
    ],
    "LayerParameter": [("name", 1, _TEXT, False), ("blobs", 7, "BlobProto", True)],
    "V1LayerParameter": [("name", 4, _TEXT, False), ("blobs", 6, "BlobProto", True)],
    "NetParameter": [("layers", 2, "V1LayerParameter", True), ("layer", 100, "LayerParameter", True)],
}


class _DamagedError(Exception):
    """Why the bytes are no such message."""


@cache
def _messages() -> dict[str, Any]:
    """The classes of the messages, by name."""
    file = descriptor_pb2.FileDescriptorProto(name="twotower/caffe.proto", package="twotower.caffe", syntax="proto2")
    for message, fields in SCHEMA.items():
        described = file.message_type.add(name=message)
        for name, number, kind, is_repeated in fields:
            label = _FIELD.LABEL_REPEATED if is_repeated else _FIELD.LABEL_OPTIONAL
            field = described.field.add(name=name, number=number, label=label)
            if isinstance(kind, str):
                field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".twotower.caffe.{kind}"
            else:
                field.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"twotower.caffe.{name}")) for name in SCHEMA
    }


def _parse(message: str, content: bytes) -> Any:
    try:
        return _messages()[message].FromString(content)
    except DecodeError as error:
        raise _DamagedError("its bytes are no such message, or end within it") from error


def _read_blob(blob: Any) -> Array:
    """float32 in the blob's shape; old files have four dimensions for everything."""
    values = blob.data or blob.double_data
    if blob.HasField("shape"):
        sizes = list(blob.shape.dim)
    else:
        old = ("num", "channels", "height", "width")
        sizes = [getattr(blob, name) if blob.HasField(name) else 1 for name in old]
    count = 1
    for size in sizes:
        count *= size
    if len(sizes) > MAX_DIMENSIONS or min(sizes, default=1) < 0 or count != len(values):
        raise _DamagedError(f"a blob of shape {sizes[:MAX_DIMENSIONS]} has {len(values)} values")
    return np.array(values, dtype=np.float32).reshape(sizes)


def read_caffemodel(path: Path) -> dict[str, list[Array]]:
    """{"conv1": [weight, bias], ...} of the layers that have weights, float32; weights [out, in, height, width].

    Raises: ValueError if the file is no Caffe model, or it is cut short or changed.
    """
    try:
        network = _parse("NetParameter", path.read_bytes())
        layers = {
            layer.name: [_read_blob(blob) for blob in layer.blobs]
            for layer in (*network.layers, *network.layer)
            if layer.blobs
        }
    except (_DamagedError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no .caffemodel, or is damaged: {error}; get it again.") from error
    if not layers:
        raise ValueError(f"{path} has no layer with weights; give a .caffemodel of a trained network.")
    return layers


def read_binaryproto(path: Path) -> Array:
    """A mean image [1, channels, height, width], float32. Raises: ValueError if the file is none, or is damaged."""
    try:
        return _read_blob(_parse("BlobProto", path.read_bytes()))
    except _DamagedError as error:
        raise ValueError(f"{path} is no .binaryproto, or is damaged: {error}; get it again.") from error
