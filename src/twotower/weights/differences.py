"""What sets a network apart from the paper's, row by row, in words and numbers that a person can compare."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from twotower.config import NetworkConfig
from twotower.config.presets import preset
from twotower.model.layer_numbers import LayerNumbers, describe

PAPER = "alexnet"  # the network of the paper's text
Row = tuple[str, str, str]


def list_differences(network: NetworkConfig, num_classes: int, paper: NetworkConfig | None = None) -> list[Row]:
    """What sets a network apart from the paper's: what it is about, here, in the paper.

    Args:
        paper: the network to compare with; None: that of the paper's text.
    """
    paper = replace(paper or preset(PAPER), width=network.width)
    ours, theirs = describe(network, num_classes, 1), describe(paper, num_classes, 1)
    rows: list[Row] = []
    for one, other in zip(ours, theirs, strict=False):
        rows += [
            (f"{other.name}, {what}", mine, its)
            for (what, mine), (_, its) in zip(_traits(one), _traits(other), strict=True)
            if mine != its
        ]
    rows += [(layer.name, "is there", "") for layer in ours[len(theirs) :]]
    rows += [(layer.name, "", "is there") for layer in theirs[len(ours) :]]
    for what, of in _WHOLE.items():
        if of(network) != of(paper):
            rows.append((what, of(network), of(paper)))
    return rows


def _describe_reads(layer: LayerNumbers) -> str:
    """The maps that a kernel sees; two groups in one process are two towers that do not see each other."""
    if layer.reads == "image":
        return "the image"
    parts = len(layer.maps_out) * layer.groups if layer.reads == "own" else layer.groups
    return "all maps" if parts == 1 else f"those of its own {'half' if parts == 2 else f'part of {parts}'}"


def _traits(layer: LayerNumbers) -> list[tuple[str, str]]:
    """What a layer is, in words that can be compared."""
    kernel = "" if layer.kind == "linear" else f"{layer.kernel} x {layer.kernel}, stride {layer.stride}"
    return [
        ("kind", layer.kind),
        ("maps or units", f"{sum(layer.maps_out):,}"),
        ("kernels", kernel),
        ("reads", _describe_reads(layer)),
        ("pixels", "" if layer.kind == "linear" else f"{layer.size_conv}, then {layer.size_out}"),
        ("order after the sum", ", ".join(layer.steps) or "nothing"),
    ]


def _describe_lrn(network: NetworkConfig) -> str:
    lrn: Any = network.lrn
    if lrn is None:
        return "none"
    return f"n {lrn.n}, k {lrn.k:g}, alpha {lrn.alpha:g}{' / n' if lrn.alpha_over_n else ''}, beta {lrn.beta:g}"


_WHOLE: Mapping[str, Any] = {
    "towers": lambda network: str(network.towers),
    "LRN": _describe_lrn,
    "norm over pixels": lambda network: "none" if network.spatial_norm is None else f"n {network.spatial_norm.n}",
    "pooling": lambda network: (
        f"{network.pool.size} / {network.pool.stride}" + ("" if network.pool.partial else ", whole windows only")
    ),
    "dropout": lambda network: "times 0.5 at test" if network.dropout_scaling == "test" else "times 2 in training",
    "activation": lambda network: network.activation,
    "pixels of the image": lambda network: str(network.image_size),
    "first biases": lambda network: ", ".join(f"{row.initial_bias:g}" for row in network.layers.values()),
    "rate of biases": lambda network: f"{network.bias_rate:g} times that of weights",
    "weight decay of biases": lambda network: "yes" if network.bias_decay else "no",
}
