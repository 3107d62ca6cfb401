"""Weights of others, read into our networks, against forward passes written here as their authors wrote them.

The files are made here, with the names and layouts of the originals at a small width. Logits agree to 1e-5 (float32
weights, everything else in float64); what a wrong order of channels or a lost scale gives is asserted next to it.
"""

import copyreg
import io
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from helpers import oracle
from helpers.torchvision_weights import CLASSES, SIZE, torchvision_logits, torchvision_state
from helpers.towers import load_network
from twotower.config import LayerConfig, NetworkConfig
from twotower.config.presets import presets
from twotower.distributed.exchange import InProcessExchange
from twotower.model.layer_table import count_parameters, plan
from twotower.model.tower import Tower, forward
from twotower.weights import read_weights as weights
from twotower.weights.caffemodel import read_binaryproto, read_caffemodel
from twotower.weights.merged import expected_shapes
from twotower.weights.npydict import read_layers

CAFFE = {"width": 0.0625, "image_size": SIZE}
CAFFE_SHAPES = {  # at a sixteenth of the width, 99 pixels: 23-11-11-5-5-5-5-2
    "conv1": (6, 3, 11, 11),
    "conv2": (16, 3, 5, 5),
    "conv3": (24, 16, 3, 3),
    "conv4": (24, 12, 3, 3),
    "conv5": (16, 12, 3, 3),
    "fc6": (256, 16 * 2 * 2),
    "fc7": (256, 256),
    "fc8": (CLASSES, 256),
}
Layers = dict[str, list[NDArray[np.float32]]]


def caffe_layers(seed: int = 0) -> Layers:
    """[weight, bias] of each layer, weights [out, in, height, width] for B, G, R."""
    draw = np.random.default_rng(seed)
    layers = {}
    for name, shape in CAFFE_SHAPES.items():
        fan_in = np.prod(shape[1:]) * (30 if name == "conv1" else 0.5)
        weight = draw.normal(0, fan_in**-0.5, shape).astype(np.float32)
        layers[name] = [weight, draw.normal(0, 0.2, shape[0]).astype(np.float32)]
    return layers


def pixels(size: int = SIZE) -> Tensor:
    """float64 [3, 3, size, size], R, G, B in 0..255, the channels unlike each other."""
    generator = torch.Generator().manual_seed(4)
    images = torch.rand(3, 3, size, size, generator=generator, dtype=torch.float64)
    return images * torch.tensor([255.0, 180.0, 90.0], dtype=torch.float64)[:, None, None]


def caffe_logits(layers: Layers, rgb: Tensor, mean_bgr: Tensor, pool_first: bool = False) -> Tensor:
    """bvlc_alexnet's (or CaffeNet's, which pools first) deploy.prototxt, on B, G, R less the mean."""

    def conv(name: str, x: Tensor, stride: int = 1, pad: int = 0, group: int = 1) -> Tensor:
        weight, bias = (torch.from_numpy(part).double() for part in layers[name])
        return F.conv2d(x, weight, bias, stride, pad, groups=group).relu()

    def norm(x: Tensor) -> Tensor:
        return F.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)

    def pool(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, 2, ceil_mode=True)

    x = rgb.flip(1) - mean_bgr
    for name, options in (("conv1", {"stride": 4}), ("conv2", {"pad": 2, "group": 2})):
        x = conv(name, x, **options)
        x = norm(pool(x)) if pool_first else pool(norm(x))
    x = conv("conv3", x, pad=1)
    x = conv("conv4", x, pad=1, group=2)
    x = pool(conv("conv5", x, pad=1, group=2))
    x = x.flatten(1)
    for name in ("fc6", "fc7", "fc8"):
        weight, bias = (torch.from_numpy(part).double() for part in layers[name])
        x = x @ weight.T + bias
        x = x.relu() if name != "fc8" else x
    return x


@torch.no_grad()
def our_logits(path: Path, network: NetworkConfig, rgb: Tensor, mean_file: Path | None = None) -> Tensor:
    towers, mean = weights.load_towers_from_file(path, network, CLASSES, torch.device("cpu"), mean_file)
    assert mean is not None
    mean = mean.double()
    return forward(
        [tower.double() for tower in towers],
        rgb - (mean[:, None, None] if mean.dim() == 1 else mean),
        InProcessExchange(),
    )


# The messages of caffe.proto that a file of weights has, as the protobuf library knows them.
def caffe_messages() -> dict[str, Any]:
    number = descriptor_pb2.FieldDescriptorProto
    one, many = number.LABEL_OPTIONAL, number.LABEL_REPEATED
    fields = {
        "BlobShape": [("dim", 1, number.TYPE_INT64, many, "")],
        "BlobProto": [
            *(
                (key, place, number.TYPE_INT32, one, "")
                for place, key in enumerate(("num", "channels", "height", "width"), 1)
            ),
            ("data", 5, number.TYPE_FLOAT, many, ""),
            ("diff", 6, number.TYPE_FLOAT, many, ""),
            ("shape", 7, number.TYPE_MESSAGE, one, "BlobShape"),
            ("double_data", 8, number.TYPE_DOUBLE, many, ""),
        ],
        "LayerParameter": [
            ("name", 1, number.TYPE_STRING, one, ""),
            ("type", 2, number.TYPE_STRING, one, ""),
            ("loss_weight", 5, number.TYPE_FLOAT, many, ""),
            ("blobs", 7, number.TYPE_MESSAGE, many, "BlobProto"),
        ],
        "V1LayerParameter": [
            ("bottom", 2, number.TYPE_STRING, many, ""),
            ("name", 4, number.TYPE_STRING, one, ""),
            ("type", 5, number.TYPE_INT32, one, ""),
            ("blobs", 6, number.TYPE_MESSAGE, many, "BlobProto"),
        ],
        "NetParameter": [
            ("name", 1, number.TYPE_STRING, one, ""),
            ("layers", 2, number.TYPE_MESSAGE, many, "V1LayerParameter"),
            ("layer", 100, number.TYPE_MESSAGE, many, "LayerParameter"),
        ],
    }
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    for message, rows in fields.items():
        described = file.message_type.add(name=message)
        for name, place, kind, label, of in rows:
            field = described.field.add(name=name, number=place, type=kind, label=label)
            if of:
                field.type_name = f".caffe.{of}"
            if name in ("dim", "data", "diff", "double_data") and message != "LayerParameter":
                field.options.packed = name != "diff"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe.{name}")) for name in fields}


MESSAGES = caffe_messages()


def fill(blob: Any, array: NDArray[np.float32], old: bool, double: bool = False) -> None:
    if old:
        sizes = (1,) * (4 - array.ndim) + array.shape
        blob.num, blob.channels, blob.height, blob.width = sizes
    else:
        blob.shape.dim.extend(array.shape)
    (blob.double_data if double else blob.data).extend(array.ravel().tolist())
    blob.diff.append(0.5)


def save_caffemodel(path: Path, layers: Layers, old: bool = False, double: bool = False) -> Path:
    net = MESSAGES["NetParameter"](name="AlexNet")
    rows = net.layers if old else net.layer
    rows.add(name="data")
    for name, parts in layers.items():
        row = rows.add(name=name)
        for part in parts:
            fill(row.blobs.add(), part, old, double)
    path.write_bytes(net.SerializeToString())
    return path


class Python2Pickler(pickle._Pickler):
    """Writes strings and bytes as Python 2 did, which made the well-known file."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)

    def save_python2(self, value: Any) -> None:
        content = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(b"T" + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_python2

    def save_global(self, value: Any, name: str | None = None) -> None:
        module = value.__module__.replace("numpy._core", "numpy.core")
        self.write(b"c" + module.encode() + b"\n" + (name or value.__qualname__).encode() + b"\n")
        self.memoize(value)

    dispatch[type] = dispatch[type(lambda: 0)] = dispatch[type(len)] = save_global


def npy_of(value: Any, path: Path, dump: Callable[[Any, Any], None] | None = None) -> Path:
    """A `.npy` file as `numpy.save` makes it of an object, or with another pickler."""
    held = np.empty((), object)
    held[()] = value
    if dump is None:
        np.save(path, held, allow_pickle=True)
        return path
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        dump(held, file)
    return path


def tensorflow_layers(layers: Layers) -> Layers:
    """[height, width, in, out] and [in, out]; what follows the maps reads them as [height, width, maps]."""
    turned = {}
    for name, (weight, bias) in layers.items():
        if weight.ndim == 4:
            turned[name] = [weight.transpose(2, 3, 1, 0), bias]
        elif name == "fc6":
            turned[name] = [weight.reshape(-1, 16, 2, 2).transpose(2, 3, 1, 0).reshape(-1, len(weight)), bias]
        else:
            turned[name] = [weight.T, bias]
    return turned


def save_as(kind: str, layers: Layers, folder: Path) -> Path:
    if kind == "caffemodel":
        return save_caffemodel(folder / "new.caffemodel", layers)
    if kind == "caffemodel of 2014":
        return save_caffemodel(folder / "old.caffemodel", layers, old=True)
    if kind == "caffemodel in double":
        return save_caffemodel(folder / "double.caffemodel", layers, double=True)
    if kind == "npy of lists":
        return npy_of(layers, folder / "lists.npy")
    if kind == "npy of dictionaries":
        return npy_of({n: {"weights": w, "biases": b} for n, (w, b) in layers.items()}, folder / "dictionaries.npy")
    if kind == "npy of TensorFlow":
        return npy_of(tensorflow_layers(layers), folder / "tensorflow.npy")
    if kind == "npy of Python 2":
        turned = {n: [np.ascontiguousarray(part) for part in parts] for n, parts in tensorflow_layers(layers).items()}
        return npy_of(turned, folder / "python2.npy", lambda held, file: Python2Pickler(file, 2).dump(held))
    named = {
        f"{n}.{part}": a for n, parts in layers.items() for part, a in zip(("weight", "bias"), parts, strict=True)
    }
    np.savez(folder / "named.npz", **named)
    return folder / "named.npz"


KINDS = (
    "caffemodel",
    "caffemodel of 2014",
    "caffemodel in double",
    "npy of lists",
    "npy of dictionaries",
    "npy of TensorFlow",
    "npy of Python 2",
    "npz",
)


@pytest.mark.parametrize("kind", KINDS)
def test_caffes_weights_compute_what_caffe_does(tmp_path: Path, kind: str) -> None:
    """From each kind of file; and with channels in the wrong order, or without the mean, the logits are others."""
    layers, rgb = caffe_layers(), pixels()
    mean = torch.tensor([104.00698793, 116.66876762, 122.67891434], dtype=torch.float64)[:, None, None]
    true = caffe_logits(layers, rgb, mean)
    found = our_logits(save_as(kind, layers, tmp_path), load_network("caffe_alexnet", **CAFFE), rgb)
    assert oracle.deviation(found, true) < 1e-5

    # What the tolerance must reject.
    assert oracle.deviation(caffe_logits(layers, rgb.flip(1), mean), true) > 1e-2
    assert oracle.deviation(caffe_logits(layers, rgb, mean.flip(0)), true) > 1e-2
    assert oracle.deviation(caffe_logits(layers, rgb, 0 * mean), true) > 1e-2
    assert oracle.deviation(caffe_logits(layers, rgb, mean, pool_first=True), true) > 1e-3
    if kind == "npy of TensorFlow":  # the rows of fc6 as Caffe has them
        layers["fc6"][0] = layers["fc6"][0].reshape(-1, 2, 2, 16).transpose(0, 3, 1, 2).reshape(256, -1)
        assert oracle.deviation(caffe_logits(layers, rgb, mean), true) > 1e-2


def test_tensorflow_reads_maps_last() -> None:
    """The layers of `tensorflow_layers`, computed as TensorFlow computes them: the maps' numbers lie together."""
    layers = caffe_layers()
    maps = torch.rand(3, 16, 2, 2, dtype=torch.float64)
    first, bias = tensorflow_layers(layers)["fc6"]
    theirs = maps.permute(0, 2, 3, 1).flatten(1) @ torch.from_numpy(first.copy()).double() + torch.from_numpy(bias)
    ours = maps.flatten(1) @ torch.from_numpy(layers["fc6"][0]).double().T + torch.from_numpy(layers["fc6"][1])
    assert oracle.deviation(theirs, ours) < 1e-12


@pytest.mark.parametrize("suffix", ["npy", "binaryproto"])
def test_caffenet_with_a_mean_image(tmp_path: Path, suffix: str) -> None:
    """The mean image's central crop, from [3, 256, 256] in B, G, R."""
    layers, rgb = caffe_layers(1), pixels()
    mean = np.random.default_rng(1).uniform(0, 255, (3, 256, 256)).astype(np.float32)
    path = tmp_path / f"mean.{suffix}"
    if suffix == "npy":
        np.save(path, mean)
    else:
        blob = MESSAGES["BlobProto"]()
        fill(blob, mean, old=True)
        path.write_bytes(blob.SerializeToString())
    central = torch.from_numpy(mean[:, 78 : 78 + SIZE, 78 : 78 + SIZE]).double()
    true = caffe_logits(layers, rgb, central, pool_first=True)
    file = save_caffemodel(tmp_path / "caffenet.caffemodel", layers)
    assert oracle.deviation(our_logits(file, load_network("caffenet", **CAFFE), rgb, path), true) < 1e-5
    off_centre = torch.from_numpy(mean[:, 79 : 79 + SIZE, 78 : 78 + SIZE]).double()
    assert oracle.deviation(caffe_logits(layers, rgb, off_centre, pool_first=True), true) > 1e-3


def test_torchvisions_weights_compute_what_torchvision_does(tmp_path: Path) -> None:
    """With the scale of the input folded into conv1; padding stays exact, as it is zeros after both."""
    state, rgb = torchvision_state(), pixels(224)
    torch.save(state, tmp_path / "alexnet.pth")
    true = torchvision_logits(state, rgb)
    found = our_logits(tmp_path / "alexnet.pth", load_network("torchvision_alexnet", width=0.125), rgb)
    assert oracle.deviation(found, true) < 1e-5
    assert oracle.deviation(torchvision_logits(state, rgb, scaled=False), true) > 1e-2
    assert oracle.deviation(torchvision_logits(state, rgb.flip(1)), true) > 1e-2


ALL = {
    "alexnet": {"width": 0.0625},
    "alexnet_2012": {"width": 0.0625},
    "no_exchange": {"width": 0.0625},
    "six_conv_bottleneck": {"width": 0.0625},
    "one_tower": {"width": 0.0625},
    "caffe_alexnet": {"width": 0.0625},
    "cifar_four_layer": {"width": 0.25, "towers": 2},
    "cifar_13pct": {"width": 0.25},
}


@pytest.mark.parametrize("name", ALL)
def test_split_then_merge_is_the_identity(name: str) -> None:
    """Bit for bit, with an odd number of classes; the parts are those that the towers have."""
    network = load_network(name, **ALL[name])
    draw = torch.Generator().manual_seed(8)
    merged = {n: torch.randn(shape, generator=draw) for n, shape in expected_shapes(network, CLASSES).items()}
    towers = [weights.split(merged, network, CLASSES, tower) for tower in range(network.towers)]
    for index, own in enumerate(towers):
        parameters = Tower(network, CLASSES, index, seed=0).paper_named_parameters()
        assert {n: t.shape for n, t in own.items()} == {n: p.shape for n, p in parameters.items()}
        assert all(t.is_contiguous() for t in own.values())
    again = weights.merge(towers)
    assert list(again) == list(merged)
    assert all(torch.equal(again[n], merged[n]) for n in merged)
    if name.startswith("alexnet"):
        assert all(torch.equal(true, merged[n]) for n, true in oracle.merge(*towers).items())


def test_shapes_have_every_presets_parameters() -> None:
    for network in presets():
        shapes = expected_shapes(network, 1000)
        assert sum(int(np.prod(shape)) for shape in shapes.values()) == count_parameters(plan(network, 1000))


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    """The first tensor, both shapes, and the network that would fit; torchvision's own width costs no memory here."""
    whole = {n: torch.zeros(()).expand(t.shape) for n, t in torchvision_state(1).items()}
    path = tmp_path / "alexnet.pth"
    torch.save(whole, path)
    with pytest.raises(
        ValueError,
        match=r"conv1\.weight is \(64, 3, 11, 11\) and should be \(96, 3, 11, 11\); "
        r"it fits network=torchvision_alexnet with 11 classes\.$",
    ):
        weights.read_weights(path, load_network("alexnet"), 1000)
    layers = caffe_layers()
    file = npy_of(layers, tmp_path / "caffe.npy")
    with pytest.raises(
        ValueError, match=r"fc8\.weight is \(11, 256\) and should be \(12, 256\); it fits network=caffe"
    ):
        weights.read_weights(file, load_network("caffe_alexnet", **CAFFE), 12)
    del layers["conv4"]
    file = save_caffemodel(tmp_path / "short.caffemodel", layers)
    with pytest.raises(ValueError, match=r"conv4\.weight is missing and should be \(24, 12, 3, 3\)"):
        weights.read_weights(file, load_network("caffe_alexnet", **CAFFE), CLASSES)


def test_a_layout_that_shapes_do_not_tell_is_refused(tmp_path: Path) -> None:
    """Square in both directions: guessing would be right half of the time."""
    layers = {"conv1": {"kind": "conv", "kernels": 3, "reads": "image", "size": 3, "pad": 1, "then": []}}
    layers["fc2"] = {"kind": "linear", "kernels": None, "reads": "own", "then": []}
    network = NetworkConfig("square", {}, towers=1, image_size=1)
    network.layers = {name: LayerConfig(**layer) for name, layer in layers.items()}  # type: ignore[arg-type]
    draw = np.random.default_rng(0).normal
    held = {"conv1": [draw(size=(3, 3, 3, 3)), np.zeros(3)], "fc2": [draw(size=(3, 3)), np.zeros(3)]}
    with pytest.raises(ValueError, match="fits both"):
        weights.read_weights(npy_of(held, tmp_path / "square.npy"), network, 3)


class Hostile:
    """Calls something when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("place", ["npy", "npz", "pth"])
def test_hostile_pickles_are_refused(tmp_path: Path, place: str) -> None:
    """None of them may run, whatever they call and wherever it is hidden."""
    trace = tmp_path / "trace"
    attacks = [
        Hostile(os.system, f"touch {trace}"),
        {"conv1": [Hostile(exec, f"open({str(trace)!r}, 'w')"), np.zeros(3)]},
        {"conv1": [np.array([Hostile(os.mkdir, str(trace))], object), np.zeros(3)]},
        Hostile(np.load, str(trace)),
        Hostile(getattr, "", "join"),
        Hostile(copyreg._reconstructor, dict, object, None),
    ]
    for number, attack in enumerate(attacks):
        path = tmp_path / f"{number}.{place}"
        if place == "npy":
            npy_of(attack, path)
        elif place == "npz":
            np.savez(path, **{"conv1.weight": np.array(attack, object)})
        else:
            torch.save(attack, path)
        with pytest.raises(ValueError, match=f"{number}\\.{place}") as caught:
            weights.read_weights(path, load_network("caffe_alexnet", **CAFFE), CLASSES)
        assert "\n" not in str(caught.value)
        assert not trace.exists()
    if place == "npy":
        with pytest.raises(ValueError, match=r"its pickle asks for posix\.system"):
            read_layers(tmp_path / "0.npy")


def test_pickles_that_take_memory_are_refused(tmp_path: Path) -> None:
    """An index that asks for 32 GiB of memo, and lists of lists that would be walked a thousand million times."""
    shared: list[Any] = [0] * 900
    for _ in range(3):
        shared = [shared] * 900
    bombs = [
        b"\x80\x02}r\xff\xff\xff\xff.",
        pickle.dumps({"conv1": shared}, 2),
        pickle.dumps({"conv1": [1] * 5000}, 2),
    ]
    for bomb in bombs:
        path = npy_of(None, tmp_path / "bomb.npy", lambda held, file, bomb=bomb: file.write(bomb))
        with pytest.raises(ValueError, match=r"bomb\.npy is refused"):
            read_layers(path)


def test_damaged_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    """Cut anywhere or with bytes changed at random, a file is read or refused by name, and nothing else happens."""
    draw = random.Random(3)
    small: Layers = {name: [parts[0][:1], parts[1][:1]] for name, parts in caffe_layers().items()}
    readers = {"caffemodel": read_caffemodel, "npy": read_layers, "npz": read_layers, "binaryproto": read_binaryproto}
    for kind, reader in readers.items():
        path = tmp_path / f"file.{kind}"
        if kind == "caffemodel":
            save_caffemodel(path, small)
        elif kind == "npy":
            npy_of(small, path)
        elif kind == "npz":
            np.savez(path, **{f"{name}.w": parts[0] for name, parts in small.items()})
        else:
            blob = MESSAGES["BlobProto"]()
            fill(blob, np.zeros((3, 4, 4), np.float32), old=False)
            path.write_bytes(blob.SerializeToString())
        content = path.read_bytes()
        refused = 0
        for turn in range(120):
            changed = bytearray(content)
            if turn % 2:
                del changed[draw.randrange(len(content)) :]
            else:
                for _ in range(draw.choice((1, 20))):
                    changed[draw.randrange(min(len(content), 600))] = draw.randrange(256)
            path.write_bytes(changed)
            try:
                reader(path)
            except ValueError as error:
                refused += 1
                assert path.name in str(error)  # noqa: PT017
        assert refused > 30, kind
    path = tmp_path / "long.caffemodel"
    path.write_bytes(b"\x12\x8f\x4e\x00")
    with pytest.raises(ValueError, match="are no such message, or end within it"):
        read_caffemodel(path)


def test_unpacked_numbers_are_read(tmp_path: Path) -> None:
    """Each in a field of its own, as a library of before 2010 would write them."""
    path = tmp_path / "mean.binaryproto"
    values = [1.5, -2.0, 3.25]
    path.write_bytes(b"\x10\x03" + b"".join(b"\x2d" + struct.pack("<f", value) for value in values))
    assert read_binaryproto(path).ravel().tolist() == values


def test_other_files_are_refused(tmp_path: Path) -> None:
    network = load_network("caffe_alexnet", **CAFFE)
    (tmp_path / "weights.bin").write_bytes(b"")
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "array.npz", first=np.zeros(3))
    torch.save({"conv1": torch.zeros(3)}, tmp_path / "other.pth")
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "bytes.pth").write_bytes(b"\x00" * 50)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    (tmp_path / "page.safetensors").write_text("\n<!DOCTYPE html><title>Not found</title>")
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    for name, match in (
        ("nothing", "does not exist; give a run's"),
        ("weights.bin", "of a kind that is not known"),
        ("array.npy", "holds no dictionary of layers"),
        ("array.npz", "has an array first"),
        ("other.pth", r"has no features\.0\.weight"),
        ("bytes.pth", "cannot be read as a state dictionary"),
        ("module.pth", r"holds Python objects \(.*Linear.*\), which could run code and are not opened; save"),
        ("page.safetensors", r"page\.safetensors is damaged \(it is a page of HTML\)"),
        ("pointer.safetensors", r"is damaged \(it is only the pointer that git-lfs leaves"),
        ("other.safetensors", "has no network with it"),
    ):
        with pytest.raises(ValueError, match=match):
            weights.read_weights(tmp_path / name, network, CLASSES)
    with pytest.raises(ValueError, match="leave it out"):
        weights.read_weights(tmp_path / "other.pth", network, CLASSES, tmp_path / "array.npy")
    file = npy_of(caffe_layers(), tmp_path / "caffe.npy")
    np.save(tmp_path / "array.npy", np.zeros((3, 9)))
    with pytest.raises(ValueError, match=r"array\.npy has the shape \(3, 9\)"):
        weights.read_weights(file, network, CLASSES, tmp_path / "array.npy")


def test_mean_images_for_the_input() -> None:
    """As a data set has them, [size, size, 3]; a crop lies in the middle, where the centre crop takes it from."""
    channel = weights.whole_mean_image(torch.tensor([1.0, 2.0, 3.0]), 4)
    assert channel.shape == (4, 4, 3)
    assert channel[2, 1].tolist() == [1, 2, 3]
    crop = torch.arange(27.0).view(3, 3, 3)
    whole = weights.whole_mean_image(crop, 6)
    assert whole.shape == (6, 6, 3)
    assert np.array_equal(whole[1:4, 1:4], crop.permute(1, 2, 0).numpy())  # (6 - 3) // 2, as `Normaliser` counts
    assert whole[0, 0].tolist() == whole[1, 1].tolist()
    with pytest.raises(ValueError, match="more than the 2"):
        weights.whole_mean_image(crop, 2)


def test_our_own_pickler_is_python_2s() -> None:
    """The file that stands for the well-known one must have the opcodes of its time."""
    content = io.BytesIO()
    Python2Pickler(content, 2).dump({"conv1": [np.zeros(2, np.float32)]})
    assert b"numpy.core.multiarray\n_reconstruct" in content.getvalue()
    assert b"_codecs" not in content.getvalue()
    assert pickle.loads(content.getvalue(), encoding="latin1")["conv1"][0].tolist() == [0, 0]
