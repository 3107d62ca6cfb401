"""A network in numbers: what each layer reads and puts out, parameters, multiply-adds, memory, exchanged bytes.

All of it follows from the table in the network's yaml; nothing is built or run.
"""

from dataclasses import dataclass
from typing import Any

from twotower.config import NetworkConfig
from twotower.model.layer_table import IMAGE_MAPS, Row, plan

FLOAT_BYTES = 4
READS = {"image": "the image", "own": "own tower", "both": "both towers", "all": "all maps"}


@dataclass(frozen=True)
class LayerNumbers:
    """One layer. Tuples hold a number for each tower; sizes are in pixels, 1 for fully-connected layers.

    Attributes:
        maps_in: maps or units that one tower reads, of both halves together.
        groups: blocks of maps that do not see each other, within one tower.
        units: outputs of the layer's sums over both towers, before pooling (the paper's count of neurons).
        parameters: weights and biases.
        multiply_adds: for one image, forward.
        activation_bytes: of the sums, norms and pooled maps of a batch, float32, for one tower.
        exchanged_bytes: that one tower sends in a forward pass; the backward pass sends as many.
    """

    name: str
    kind: str
    reads: str
    maps_in: int
    size_in: int
    groups: int
    kernel: int
    stride: int
    maps_out: tuple[int, ...]
    size_conv: int
    size_out: int
    steps: tuple[str, ...]
    units: int
    parameters: tuple[int, ...]
    multiply_adds: tuple[int, ...]
    activation_bytes: int
    exchanged_bytes: int


def _numbers(row: Row, network: NetworkConfig, batch_size: int) -> LayerNumbers:
    c, linear = row.config, row.config.kind == "linear"
    towers = range(len(row.kernels))
    reads = c.reads if c.reads == "image" or len(towers) == 2 else "all"
    multiply_adds = tuple(row.fans(tower)[0] * row.kernels[tower] * row.size_conv**2 for tower in towers)
    values = row.kernels[0] * row.size_conv**2  # outputs of the sums
    size, stored_values = row.size_conv, values
    for step in c.then:
        size = row.size_out if step == "pool" else size
        in_place = step == "activation" and network.activation == "relu"
        stored_values += 0 if in_place else row.kernels[0] * size**2
    wire_bytes = FLOAT_BYTES if network.exchange_precision == "single" else FLOAT_BYTES // 2
    half = row.maps_in[0] * (1 if linear else row.size_in**2)
    return LayerNumbers(
        name=row.name,
        kind=c.kind,
        reads=reads,
        maps_in=row.inputs(0),
        size_in=row.size_in,
        groups=c.groups,
        kernel=c.size,
        stride=c.stride,
        maps_out=row.kernels,
        size_conv=row.size_conv,
        size_out=row.size_out,
        steps=tuple(c.then),
        units=sum(row.kernels) * row.size_conv**2,
        parameters=tuple(row.num_parameters(tower) for tower in towers),
        multiply_adds=multiply_adds,
        activation_bytes=batch_size * stored_values * FLOAT_BYTES,
        exchanged_bytes=batch_size * half * wire_bytes if row.reads_both else 0,
    )


def describe(network: NetworkConfig, num_classes: int, batch_size: int) -> list[LayerNumbers]:
    """The layers in order. Raises: ValueError if the network cannot be built."""
    return [_numbers(row, network, batch_size) for row in plan(network, num_classes)]


def totals(layers: list[LayerNumbers]) -> dict[str, Any]:
    """Sums over all layers: parameters and multiply-adds of all towers, the rest of one."""
    towers = range(len(layers[0].parameters))
    return {
        "units": sum(layer.units for layer in layers),
        "parameters": sum(sum(layer.parameters) for layer in layers),
        "parameters_of_tower": tuple(sum(layer.parameters[t] for layer in layers) for t in towers),
        "multiply_adds": sum(sum(layer.multiply_adds) for layer in layers),
        "activation_bytes": sum(layer.activation_bytes for layer in layers),
        "exchanged_bytes": sum(layer.exchanged_bytes for layer in layers),
        "image_maps": IMAGE_MAPS,
    }
