"""The layers of any file of weights, whatever it calls them: ours, Caffe's, TensorFlow's, state dictionaries."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twotower.config import NetworkConfig
from twotower.ground.stored_files import read_tensors
from twotower.weights.caffemodel import read_caffemodel
from twotower.weights.npydict import read_layers
from twotower.weights.other_formats import load_without_code, read_floats
from twotower.weights.read_weights import FORMATS, read_checkpoint, read_merged

KINDS = "a run's folder, .safetensors, .pth, .pt, .bin, .caffemodel, .npy or .npz"
COLOURS = 3
REMEDY = "get the file again"
# What state dictionaries are wrapped in, and what stands before each name where a network was wrapped.
WRAPPERS = ("state_dict", "model", "model_state_dict")
PREFIXES = ("module.", "model.", "net.", "backbone.")


@dataclass(frozen=True)
class Layer:
    """A layer with weights, in the order of the file.

    Attributes:
        name: as the file has it; "layer 2" if it has none, as in the state dictionary of a single layer.
        weight: float32 [out, in, height, width], or [out, in].
        bias: float32 [out], or None.
    """

    name: str
    weight: Tensor
    bias: Tensor | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weights."""
        return tuple(self.weight.shape)


@dataclass(frozen=True)
class AnyFile:
    """The layers, the table of layers that the file has of itself, and whether it is a file of Caffe's."""

    layers: list[Layer]
    says: NetworkConfig | None = None
    is_caffe: bool = False


def read_layers_of(path: Path) -> AnyFile:
    """The layers with weights. Raises: ValueError if the file cannot be read, or has no such layers."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; give {KINDS}.")
    suffix = path.suffix
    if suffix == ".caffemodel":
        return AnyFile(_order(path, _from_arrays(read_caffemodel(path))), is_caffe=True)
    if suffix in (".npy", ".npz"):
        return AnyFile(_order(path, _from_arrays(read_layers(path))))
    if path.is_dir():
        imported = read_checkpoint(path)
        return AnyFile(_order(path, _from_state(path, imported.tensors)), imported.network)
    if suffix == ".safetensors":
        tensors, about = read_tensors(path, REMEDY)
        if about.get("format") in FORMATS:
            merged = read_merged(path)
            return AnyFile(_order(path, _from_state(path, merged.tensors)), merged.network)
        # Such a file has its tensors in an order of its own.
        return AnyFile(_order(path, _from_state(path, {name: tensors[name] for name in sorted(tensors, key=_count)})))
    if suffix in (".pth", ".pt", ".bin"):
        return AnyFile(_order(path, _from_state(path, _load_state(path))))
    raise ValueError(f"{path} is of a kind that is not known here; give {KINDS}.")


def _count(name: str) -> list[tuple[int, str]]:
    """Sorts features.3 before features.10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _load_state(path: Path) -> Mapping[str, Tensor]:
    state = load_without_code(path)
    for name in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dictionary; save the network's state_dict() with torch.save.")
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def _from_state(path: Path, state: Mapping[str, Tensor]) -> list[Layer]:
    """The layers of a state dictionary whose weights have two dimensions or four, or six as local layers have."""
    layers = []
    for name, tensor in state.items():
        stem, _, part = name.rpartition(".")
        if part != "weight" or tensor.dim() not in (2, 4, 6):
            continue
        bias = state.get(f"{name.removesuffix('weight')}bias")  # a layer's own dictionary has no stem
        for prefix in PREFIXES:
            stem = stem.removeprefix(prefix)
        biases = None if bias is None else read_floats(bias, path, name)
        layers.append(Layer(stem, read_floats(tensor, path, name), biases))
    return layers


def _from_arrays(found: Mapping[str, list[NDArray[np.float32]]]) -> list[Layer]:
    """Caffe's layers, or TensorFlow's: the first convolution's three colours tell which."""
    raw = {
        name: [torch.from_numpy(array) for array in arrays] for name, arrays in found.items() if len(arrays) in (1, 2)
    }
    first = next((parts[0] for parts in raw.values() if parts[0].dim() == 4), None)
    is_tensorflow = first is not None and first.shape[1] != COLOURS and first.shape[2] == COLOURS
    layers = []
    for name, parts in raw.items():
        weight = parts[0]
        if is_tensorflow:
            weight = weight.permute(3, 2, 0, 1) if weight.dim() == 4 else weight.t()
        elif weight.dim() == 4 and weight.shape[:2] == (1, 1):  # old files of Caffe give every blob four dimensions
            weight = weight[0, 0]
        layers.append(Layer(name, weight, parts[1].flatten() if len(parts) > 1 else None))
    return layers


def _order(path: Path, layers: list[Layer]) -> list[Layer]:
    """As the file has them, convolutions first. Raises: ValueError if there are none."""
    if not layers:
        raise ValueError(f"{path} has no layers with weights and biases; give {KINDS}.")
    named = [
        layer if layer.name.strip() else replace(layer, name=f"layer {number}")
        for number, layer in enumerate(layers, start=1)
    ]
    return sorted(named, key=lambda layer: layer.weight.dim() == 2)  # "classifier" sorts before "features"
