"""The merged form of a network's weights: what it is called and how large it is, cut into towers and put together.

It has a weight and a bias for each layer, conv1.weight, conv1.bias ... fc8.bias, with tower 0's rows first. Weights
are [out, in, height, width] or [out, in]; a layer that reads both towers has the columns [own | other] in tower 0's
rows and [other | own] in tower 1's, so that both count tower 0's maps first; one in which each tower reads itself has
that tower's columns only. A local layer, whose weights are not shared, has [height, width, out, in, size, size] and
biases [height, width, out]; there is one tower then. Input is RGB in 0..255 less the mean; what a
network was trained to have divided by a std has that std in the weights of the layers that read the image, see
`divide_image_weights`.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from twotower.config import UNSCALED, NetworkConfig
from twotower.config.key_roles import Role, select_settings
from twotower.config.presets import presets
from twotower.model.layer_table import plan


@dataclass(frozen=True)
class Imported:
    """Weights that were read from a file, as a network of this project takes them.

    Attributes:
        tensors: the merged form, float32, for RGB pixels in 0..255 less the mean, over `std`.
        mean: float32 [3] or [3, S, S], RGB, 0..255; None where the file has none: that of the data.
        source: what they were read from and what was done to them, for a report.
        network: the table in the file, where it has one.
        classes: their names in the file, where it has them.
        mean_use: `central` or `aligned`, as input.mean, where the file says.
        std: of R, G and B, as input.std; other than 1 in checkpoints only, files have it in conv1.weight.
    """

    tensors: dict[str, Tensor]
    mean: Tensor | None
    source: str
    network: NetworkConfig | None = None
    classes: list[str] | None = None
    mean_use: str | None = None
    std: Sequence[float] = UNSCALED


def expected_shapes(network: NetworkConfig, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the merged form, in the order of the layers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for row in plan(network, num_classes):
        columns = row.inputs(0) // (1 if row.reads_both else row.config.groups)
        if row.is_local:
            pixels, c = (row.size_conv, row.size_conv), row.config
            shapes[f"{row.name}.weight"] = (*pixels, sum(row.kernels), row.inputs(0), c.size, c.size)
            shapes[f"{row.name}.bias"] = (*pixels, sum(row.kernels))
            continue
        window = () if row.config.kind == "linear" else (row.config.size, row.config.size)
        shapes[f"{row.name}.weight"] = (sum(row.kernels), columns, *window)
        shapes[f"{row.name}.bias"] = (sum(row.kernels),)
    return shapes


def split(merged: Mapping[str, Tensor], network: NetworkConfig, num_classes: int, tower: int) -> dict[str, Tensor]:
    """A tower's own tensors, named as `Tower.paper_named_parameters` names them; copies, bit for bit."""
    own: dict[str, Tensor] = {}
    for row in plan(network, num_classes):
        begin = sum(row.kernels[:tower])
        rows = slice(None) if row.is_local else slice(begin, begin + row.kernels[tower])  # local: of one tower
        weight, bias = (merged[f"{row.name}.{part}"][rows] for part in ("weight", "bias"))
        if row.reads_both:
            halves = weight.split(row.maps_in, dim=1)
            own[f"{row.name}.weight_own"] = halves[tower].clone(memory_format=torch.contiguous_format)
            own[f"{row.name}.weight_other"] = halves[1 - tower].clone(memory_format=torch.contiguous_format)
        else:
            own[f"{row.name}.weight"] = weight.clone(memory_format=torch.contiguous_format)
        own[f"{row.name}.bias"] = bias.clone()
    return own


def merge(towers: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The merged form of the tensors of one or two towers, tower 0's first; the inverse of `split`, bit for bit."""
    merged: dict[str, Tensor] = {}
    for name in towers[0]:
        layer, part = name.split(".")
        if part == "weight_other":
            continue
        parts = [tower[name] for tower in towers]
        if part == "weight_own":
            (own, other), (own1, other1) = (
                (tower[f"{layer}.weight_own"], tower[f"{layer}.weight_other"]) for tower in towers
            )
            parts = [torch.cat([own, other], dim=1), torch.cat([other1, own1], dim=1)]
        merged[f"{layer}.{part.removesuffix('_own')}"] = torch.cat(parts).contiguous()
    return merged


def divide_image_weights(
    tensors: Mapping[str, Tensor], network: NetworkConfig, std: Sequence[float]
) -> dict[str, Tensor]:
    """The merged form with the weights that read R, G and B divided by `std`, each by its channel's.

    With them pixels less the mean give what pixels less the mean over `std` gave with those before; padding stays
    exact, as it is zeros after both. Nothing is touched where all of `std` is 1.
    """
    divided = dict(tensors)
    for name, layer in network.layers.items():
        if layer.reads != "image" or f"{name}.weight" not in tensors or tuple(std) == UNSCALED:
            continue
        weight = tensors[f"{name}.weight"]
        channels = torch.tensor(std, dtype=torch.float64).view(layer.groups, 1, -1, 1)
        parts = []
        for of_tower in weight.tensor_split(network.towers):
            blocks = of_tower.double().reshape(layer.groups, len(of_tower) // layer.groups, channels.shape[2], -1)
            parts.append((blocks / channels).reshape(of_tower.shape))
        divided[f"{name}.weight"] = torch.cat(parts).to(weight.dtype)
    return divided


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of all tensors' bytes, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def same_function(one: NetworkConfig, other: NetworkConfig) -> str | None:
    """None if both tables compute the same from the same weights, else the first key that differs."""

    first, second = (select_settings(network, (Role.NUMBERS,)) for network in (one, other))
    return next((key for key in {**first, **second} if first.get(key) != second.get(key)), None)


def misfits(tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names that are missing or of another shape, in the order of the layers; then those that are too many."""
    wrong = [name for name, shape in wanted.items() if name not in tensors or tuple(tensors[name].shape) != shape]
    return wrong + [name for name in tensors if name not in wanted]


def does_not_fit(
    path: Path,
    tensors: Mapping[str, Tensor],
    network: NetworkConfig,
    classes: int,
    fits: Callable[[NetworkConfig, int], bool],
) -> ValueError:
    """The error for weights that do not fit: the first tensor that is wrong, and the networks that would fit.

    Args:
        fits: whether the file fits a network with so many classes.
    """
    wanted = expected_shapes(network, classes)
    name = misfits(tensors, wanted)[0]
    actual = tuple(tensors[name].shape) if name in tensors else "missing"
    should = f"should be {wanted[name]}" if name in wanted else "should not be there"
    *_, last = wanted  # the classes' biases
    other_classes = len(tensors[last]) if last in tensors and tensors[last].dim() else 0
    better = []
    if other_classes > 1:
        for candidate in [network, *presets()]:
            try:
                if fits(candidate, other_classes):
                    better.append(f"network={candidate.name}")
            except ValueError:  # a preset that cannot have so many classes
                continue
    advice = "no network of conf/network fits it"
    if better:
        advice = f"it fits {' or '.join(dict.fromkeys(better))}" + (
            f" with {other_classes} classes" if other_classes != classes else ""
        )
    return ValueError(
        f"{path} does not fit network={network.name} with {classes} classes: {name} is {actual} and {should}; "
        f"{advice}."
    )
