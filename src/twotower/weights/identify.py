"""Tells which of the known AlexNets a file of weights is, by the shapes of its layers and the level of its biases.

Many networks are called AlexNet, and most are not that of 2012. Shapes tell the families apart. Within one, biases
do: they start at 0, 0.1 or 1, no weight decay pulls them back in most of these codes, and their median stays near.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from twotower.config import NetworkConfig
from twotower.config.presets import presets
from twotower.ground.wording import on_one_line
from twotower.weights.any_file import Layer, read_layers_of
from twotower.weights.merged import expected_shapes
from twotower.weights.untrained import untrained_layers

TITLES = {
    "alexnet": "the network of the paper's text, two towers",
    "alexnet_2012": "the network that won in 2012, two towers (run 145)",
    "no_exchange": "the two towers of 2012 without an exchange below fc8 (run 150)",
    "half_tower": "half of the network of 2012, one tower",
    "one_tower": "the network of 2012 in one piece: every layer reads all maps",
    "caffe_alexnet": "Caffe's bvlc_alexnet, one process with two groups",
    "caffenet": "Caffe's CaffeNet (bvlc_reference_caffenet): pooling before the norm",
    "torchvision_alexnet": 'torchvision\'s alexnet, after "One weird trick" (2014): one tower, other widths, no norm',
    "alexnet_v2": 'TF-slim\'s alexnet_v2, after "One weird trick" (2014): one tower, no norm',
    "alexnet_cifar": "the AlexNet of courses for 32 x 32 pixels",
}
CAFFES = ("caffe_alexnet", "caffenet")
NEAR = 0.5  # of the distance to the second nearest level of biases, that to the nearest may be


@dataclass(frozen=True)
class Identity:
    """What a file is.

    Attributes:
        networks: those of conf/network that it can be, the likeliest first; more than one where nothing tells them
            apart; empty if it is none.
        width: the factor on the kernels of each layer; 1 is the original's.
        num_classes: outputs of the last layer.
        reasons: sentences that say what the choice rests on.
        untrained: layers that look as they were drawn at first, by the names of conf/network.
        nearest: the network with the most layers in common, where it is none; its name, and the first difference.
    """

    networks: list[NetworkConfig]
    width: float
    num_classes: int
    reasons: list[str]
    untrained: list[str]
    nearest: tuple[str, str] | None = None


def _weight_shapes(network: NetworkConfig, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Of each layer. Raises: ValueError if the network cannot be built."""
    shapes = expected_shapes(network, num_classes)
    return {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight")}


def _expected(network: NetworkConfig, layers: list[Layer]) -> tuple[NetworkConfig, list[tuple[int, ...]]] | None:
    """The network at the file's width, and the shapes of its weights for the file's classes; None if it has none."""
    first = next(iter(network.layers.values()))
    width = layers[0].shape[0] / (first.kernels or layers[0].shape[0])
    sized = replace(network, width=width)
    try:
        return sized, list(_weight_shapes(sized, layers[-1].shape[0]).values())
    except ValueError:  # a width that cannot be cut, or too few classes
        return None


def _same(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether both are the same weights: a linear layer may be written as a convolution over all of its pixels."""
    return (
        found == wanted
        or (len(wanted) == 2 and len(found) == 4 and (found[0], math.prod(found[1:])) == wanted and found[2] > 1)
        or (len(wanted) == 2 and len(found) == 4 and found[2:] == (1, 1) and found[:2] == wanted)
    )


def _bias_distance(network: NetworkConfig, layers: list[Layer]) -> float:
    """Mean distance of the layers' median bias from where the network's biases start; the classes' are left out."""
    started = [row.initial_bias for row in network.layers.values()]
    medians = [layer.bias.median().item() if layer.bias is not None else 0.0 for layer in layers]
    return fmean(abs(median - start) for median, start in zip(medians[:-1], started[:-1], strict=True))


def _find_untrained(network: NetworkConfig, layers: list[Layer], num_classes: int) -> list[str]:
    """The layers, by the network's names, that look as they were drawn at first."""
    tensors: dict[str, Tensor] = {}
    for (name, shape), layer in zip(_weight_shapes(network, num_classes).items(), layers, strict=True):
        tensors[f"{name}.weight"] = layer.weight.reshape(shape)
        tensors[f"{name}.bias"] = torch.zeros(layer.shape[0]) if layer.bias is None else layer.bias
    return untrained_layers(tensors, network, num_classes)


def identify(path: Path) -> Identity:
    """Reads a file or a run's folder and finds the networks that it can be.

    Raises: ValueError if it cannot be read, or holds no layers with weights.
    """
    found = read_layers_of(path)
    layers, classes = found.layers, found.layers[-1].shape[0]
    if found.says is not None:
        untrained = _find_untrained(found.says, layers, classes)
        return Identity([found.says], found.says.width, classes, [f"it says that it is {found.says.name}"], untrained)
    fitting: list[NetworkConfig] = []
    common: list[tuple[int, str, str]] = []
    for network in presets():
        expected = _expected(network, layers)
        if expected is None:
            continue
        sized, shapes = expected
        pairs = [(layer, shape) for layer, shape in zip(layers, shapes, strict=False)]
        differing = [(layer, shape) for layer, shape in pairs if not _same(layer.shape, shape)]
        if not differing and len(shapes) == len(layers):
            fitting.append(sized)
            continue
        first = f"it has {len(layers)} layers and would have {len(shapes)}"
        if differing:
            layer, shape = differing[0]
            first = f"{on_one_line(layer.name, 100)} is {list(layer.shape)} and would be {list(shape)}"
        common.append((len(differing) + abs(len(shapes) - len(layers)), network.name, first))
    if not fitting:
        _, name, first = min(common)
        return Identity([], 1.0, classes, [], [], (name, first))
    networks, reasons = _choose(fitting, layers, found.is_caffe)
    untrained = max((_find_untrained(network, layers, classes) for network in networks), key=len)
    return Identity(networks, networks[0].width, classes, reasons, untrained)


def _choose(
    fitting: list[NetworkConfig], layers: list[Layer], is_caffe: bool
) -> tuple[list[NetworkConfig], list[str]]:
    """Of the networks whose shapes fit, those that the file's kind and its biases leave; and the reasons."""
    reasons = [f"the shapes of its {len(layers)} layers fit {_names(fitting)}"]
    fitting = [network for network in fitting if network.name in TITLES] or fitting
    caffes = [network for network in fitting if network.name in CAFFES]
    if is_caffe and caffes:
        fitting = caffes
        reasons.append("it is a file of Caffe's")
    distances = {network.name: _bias_distance(network, layers) for network in fitting}
    nearest = min(distances.values())
    others = [distance for distance in distances.values() if distance > nearest + 1e-6]
    left = [network for network in fitting if distances[network.name] <= nearest + 1e-6]
    if others and nearest < NEAR * min(others):
        reasons.append(f"the medians of its biases are where those of {_names(left)} start")
        fitting = left
    return fitting, reasons


def _names(networks: list[NetworkConfig]) -> str:
    return ", ".join(network.name for network in networks)
