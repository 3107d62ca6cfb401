"""AlexNet's weights of others, turned into ours: Caffe's in its own or TensorFlow's layout, and torchvision's."""

import pickle
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twotower.config import NetworkConfig
from twotower.ground.wording import on_one_line
from twotower.model.layer_table import Row, plan
from twotower.weights.caffemodel import read_binaryproto, read_caffemodel
from twotower.weights.merged import Imported, does_not_fit, expected_shapes, misfits
from twotower.weights.npydict import read_layers, read_npy

# The mean over all pixels of Caffe's mean image of ILSVRC-2012, B, G, R (ilsvrc_2012_mean.npy).
CAFFE_MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)
LAYOUTS = ("out-in-height-width (Caffe)", "height-width-in-out (TensorFlow)")

# torchvision's input is (pixels / 255 - mean) / std, R, G, B.
TORCHVISION_MEAN, TORCHVISION_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TORCHVISION_NAMES = {
    **{f"features.{place}": f"conv{layer}" for layer, place in enumerate((0, 3, 6, 8, 10), start=1)},
    **{f"classifier.{place}": f"fc{layer}" for layer, place in enumerate((1, 4, 6), start=6)},
}
LARGEST_TENSOR = 1 << 28  # numbers; fc6 has 38 million


def read_caffe(path: Path, network: NetworkConfig, num_classes: int, mean_file: Path | None) -> Imported:
    """Caffe's weights in a `.caffemodel`, `.npy` or `.npz` file; the layout is what the shapes say.

    Raises: ValueError if the file is damaged, fits in no layout, or in both.
    """
    layers = read_caffemodel(path) if path.suffix == ".caffemodel" else read_layers(path)
    for name, blobs in layers.items():
        if len(blobs) != 2:
            raise ValueError(f"{path} has {len(blobs)} arrays for {name}; a weight and a bias are needed.")
    readings = {layout: _in_our_layout(layers, network, num_classes, layout) for layout in LAYOUTS}
    wanted = expected_shapes(network, num_classes)
    fitting = [layout for layout, tensors in readings.items() if not misfits(tensors, wanted)]
    if len(fitting) == 2:
        raise ValueError(f"{path} fits both as {' and as '.join(fitting)}; no shape tells which; give a .caffemodel.")
    if not fitting:
        nearest = min(readings, key=lambda layout: len(misfits(readings[layout], wanted)))

        def fits(other: NetworkConfig, classes: int) -> bool:
            shapes = expected_shapes(other, classes)
            return any(not misfits(_in_our_layout(layers, other, classes, layout), shapes) for layout in LAYOUTS)

        raise does_not_fit(path, readings[nearest], network, num_classes, fits)
    tensors = {name: tensor.contiguous() for name, tensor in readings[fitting[0]].items()}
    first = _image_layer(network)
    tensors[first] = tensors[first].flip(1).contiguous()  # B, G, R to R, G, B
    mean, of = _caffe_mean(mean_file, network.image_size)
    source = f"{path}, Caffe's weights as {fitting[0]}, {first} turned from BGR to RGB, mean {of}"
    return Imported(tensors, mean, source)


def _in_our_layout(
    layers: Mapping[str, Sequence[NDArray[np.float32]]], network: NetworkConfig, num_classes: int, layout: str
) -> dict[str, Tensor]:
    """The layers' weights and biases, if they are in a layout."""
    maps = _maps_before_linear(plan(network, num_classes))
    tensors: dict[str, Tensor] = {}
    for name, (w, b) in layers.items():
        weight = torch.from_numpy(w)
        if layout == LAYOUTS[0]:
            # Old files of Caffe give every blob four dimensions.
            weight = weight[0, 0] if weight.dim() == 4 and weight.shape[:2] == (1, 1) else weight
        elif weight.dim() == 4:
            weight = weight.permute(3, 2, 0, 1)
        elif weight.dim() == 2:
            # Tensorflow's maps are [height, width, maps] when they become a vector, and caffe-tensorflow, which made
            # bvlc_alexnet.npy, has reordered the rows of the first linear layer so (kaffe, DataReshaper).
            if name in maps and len(weight) % maps[name] == 0:
                units, pixels = weight.shape[1], len(weight) // maps[name]
                weight = weight.view(pixels, maps[name], units).transpose(0, 1).reshape(-1, units)
            weight = weight.t()
        tensors[f"{name}.weight"] = weight
        tensors[f"{name}.bias"] = torch.from_numpy(b).flatten()
    return tensors


def _maps_before_linear(rows: Sequence[Row]) -> dict[str, int]:
    """{first linear layer: the maps of all towers before it}."""
    pairs = [(row.name, sum(last.kernels)) for last, row in pairwise(rows) if row.config.kind == "linear"]
    return dict(pairs[:1])


def _image_layer(network: NetworkConfig) -> str:
    return next(f"{name}.weight" for name, layer in network.layers.items() if layer.reads == "image")


def _caffe_mean(path: Path | None, size: int) -> tuple[Tensor, str]:
    """RGB, [3] or the central [3, size, size] of a mean image [3, H, W] (or [1, 3, H, W]) in B, G, R."""
    if path is None:
        return torch.tensor(CAFFE_MEAN_BGR).flip(0), "of all pixels"
    array = read_binaryproto(path) if path.suffix == ".binaryproto" else read_npy(path)
    shape = np.shape(array)
    shape = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape
    if shape != (3,) and not (len(shape) == 3 and shape[0] == 3 and min(shape[1:]) >= size):
        raise ValueError(
            f"{path} has the shape {shape}; a mean image is [3, H, W] in B, G, R, at least {size} pixels."
        )
    mean = torch.from_numpy(np.array(array, np.float32).reshape(shape)).flip(0)
    if mean.dim() == 3:
        top, left = (mean.shape[1] - size) // 2, (mean.shape[2] - size) // 2
        mean = mean[:, top : top + size, left : left + size].contiguous()
    return mean, f"image {path}"


def read_floats(tensor: Tensor, path: Path, name: str) -> Tensor:
    """The tensor in float32. Raises: ValueError if it claims more than AlexNet has: one number may stand for many."""
    if tensor.numel() > LARGEST_TENSOR:
        raise ValueError(
            f"{path} claims {list(tensor.shape)} numbers of {name}, more than AlexNet has; get it again."
        )
    return tensor.float().contiguous()


def _list_objects(path: Path) -> list[str]:
    """The classes and functions that a file of torch.save names, besides those of tensors; nothing is called."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # of any kind, as the file may be anything
        return []


def load_without_code(path: Path) -> Any:
    """What torch.save wrote, as long as it is tensors and plain containers. Raises: ValueError for anything else."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, MemoryError) as error:
        objects = _list_objects(path)
        if objects:
            raise ValueError(
                f"{path} holds Python objects ({on_one_line(', '.join(objects), 100)}), which could run code and are "
                "not opened; save the tensors alone where it is from: torch.save(model.state_dict(), FILE)."
            ) from error
        raise ValueError(f"{path} cannot be read as a state dictionary of tensors; get the file again.") from error


def read_torchvision(path: Path) -> Imported:
    """torchvision's state dictionary of alexnet. Raises: ValueError if the file is none, or is damaged."""
    state = load_without_code(path)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dictionary; give torchvision's weights of alexnet, as they come.")
    tensors: dict[str, Tensor] = {}
    for place, layer in TORCHVISION_NAMES.items():
        for part in ("weight", "bias"):
            if f"{place}.{part}" not in state:
                raise ValueError(f"{path} has no {place}.{part}; only torchvision's alexnet is known in .pth files.")
            tensors[f"{layer}.{part}"] = read_floats(state[f"{place}.{part}"], path, f"{place}.{part}")
    # (p / 255 - m) / s = (p - 255 m) / (255 s). Padding adds zeros after this, so it stays exact. The scale goes into
    # the weights, whatever input.std is: the file is evaluated with 1, and training brings it to its own (transfer).
    scale = 255 * torch.tensor(TORCHVISION_STD, dtype=torch.float64)
    first = tensors["conv1.weight"]
    if first.dim() == 4 and first.shape[1] == len(scale):
        tensors["conv1.weight"] = (first.double() / scale[:, None, None]).float()
    mean = (255 * torch.tensor(TORCHVISION_MEAN, dtype=torch.float64)).float()
    return Imported(tensors, mean, f"{path}, torchvision's weights with its scale of the input in conv1.weight")
