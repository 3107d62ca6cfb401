"""Figure 2 as a table of layers: what each layer reads and how large it is, worked out from the rows of the yaml."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from twotower.config import LayerConfig, NetworkConfig, PoolConfig, check_bounds

IMAGE_MAPS = 3  # R, G, B
OF_MAPS = ("lrn", "spatial_norm", "pool")  # steps that need pixels, or maps beside each other


@dataclass(frozen=True)
class Row:
    """A layer with everything that follows from the rows before it. Sizes in pixels (1 for linear layers)."""

    name: str
    config: LayerConfig
    kernels: tuple[int, ...]  # kernels of each tower
    maps_in: tuple[int, ...]  # maps that a tower can read from each tower; the image counts as each tower's own
    size_in: int
    size_conv: int  # size after the convolution
    size_out: int  # size after pooling

    @property
    def reads_both(self) -> bool:
        return self.config.reads == "both" and len(self.kernels) == 2

    def inputs(self, tower: int) -> int:
        """Maps or units that a tower reads, own and other together."""
        return self.maps_in[tower] + (self.maps_in[1 - tower] if self.reads_both else 0)

    def fans(self, tower: int) -> tuple[int, int]:
        """Fan-in and fan-out: inputs of one output, and outputs that read one input, over the whole kernel."""
        readers = sum(self.kernels) if self.reads_both or self.config.reads == "image" else self.kernels[tower]
        window = self.config.size**2
        return self.inputs(tower) // self.config.groups * window, readers // self.config.groups * window

    @property
    def is_local(self) -> bool:
        """Whether each output pixel has kernels and biases of its own."""
        return self.config.kind == "local"

    def num_parameters(self, tower: int) -> int:
        pixels = self.size_conv**2 if self.is_local else 1
        return pixels * self.kernels[tower] * (self.fans(tower)[0] + 1)  # and one bias


def _cut(row: str, whole: float, network: NetworkConfig, uneven_allowed: bool) -> tuple[int, ...]:
    """The kernels of each tower; the first gets one more where they do not divide evenly."""
    parts = network.towers
    if whole != int(whole) or whole < parts or (whole % parts and not uneven_allowed):
        raise ValueError(
            f"network.width={network.width:g} gives {row} {whole:g} kernels, which cannot be cut into {parts} equal "
            f"tower{'s' if parts > 1 else ''}; choose a width such as 1, 0.5, 0.25 or 0.125 at which every layer has "
            f"{'an even' if parts > 1 else 'a whole'} number of kernels."
        )
    return tuple((int(whole) + parts - 1 - tower) // parts for tower in range(parts))


def _pooled(size: int, pool: PoolConfig) -> int:
    if not pool.partial:
        return (size - pool.size) // pool.stride + 1
    # The last window may begin inside and end outside (layer.py:1164: ceil), but not begin outside.
    count = -(-(size - pool.size) // pool.stride) + 1
    return count - 1 if (count - 1) * pool.stride >= size else count


def _check_towers(network: NetworkConfig) -> None:
    """Raises: ValueError for a network whose rows are not what its number of towers asks for."""
    if network.towers == 1 and network.exchange_precision != "single":
        raise ValueError(
            f"network={network.name} is one tower and exchanges nothing; leave out ablation=half_exchange."
        )
    if network.towers == 2 and all(layer.reads != "both" for layer in network.layers.values()):
        raise ValueError(
            f"network={network.name} has no layer that reads both towers, so two of them would be two networks; give "
            "network.towers=1, or let a layer read both."
        )
    left = [name for name in network.leave_out if name in network.layers]
    if left:  # a command that composed a network must call `arrange_layers`
        raise ValueError(f"network.leave_out={network.leave_out} was not heeded: {left[0]} is still in the table.")


def _check_local(name: str, layer: LayerConfig, network: NetworkConfig) -> None:
    """Raises: ValueError for a local layer of a kind that there is not."""
    if layer.kind != "local":
        return
    for given, wrong, wanted in (
        (f"network.towers={network.towers}", network.towers != 1, "network.towers=1"),
        (f"network.layers.{name}.groups={layer.groups}", layer.groups != 1, "1"),
        (f"network.layers.{name}.reads=image", layer.reads == "image", "own, and let a convolution read the image"),
    ):
        if wrong:
            raise ValueError(f"{given} is not possible with a local layer such as {name}; give {wanted}.")


def plan(network: NetworkConfig, num_classes: int) -> list[Row]:
    """Works out each layer's widths and sizes, e.g. 224-55-27-27-13-13-13-13-6 for the paper's network.

    Raises: ValueError naming the layer, if a width cannot be cut in two, a word is not known, or nothing is left
    of the image.
    """
    check_bounds(network, "network.")
    _check_towers(network)
    if num_classes < 2:
        raise ValueError(f"The data has {num_classes} class; a network needs at least 2.")
    kinds = [(name, layer.kind) for name, layer in network.layers.items()]
    for (before, kind), (name, next_kind) in pairwise(kinds):
        if kind == "linear" and next_kind == "conv":
            raise ValueError(
                f"network.layers.{name}.kind=conv cannot follow {before}, which is linear and leaves no pixels; give "
                "linear."
            )
    if kinds and kinds[-1][1] == "conv":
        raise ValueError(f"network.layers.{kinds[-1][0]}.kind=conv cannot give the classes; give linear.")
    rows: list[Row] = []
    maps, size = (IMAGE_MAPS,) * network.towers, network.image_size
    for name, layer in network.layers.items():
        if not re.fullmatch(r"\w+", name, re.ASCII):
            raise ValueError(f"network.layers.{name} cannot be called so; give it a name of letters, digits and _.")
        outputs = num_classes if layer.kernels is None else layer.kernels * network.width
        kernels = _cut(name, outputs, network, uneven_allowed=layer.kernels is None)
        _check_local(name, layer, network)
        if layer.groups > 1 and (layer.kind == "linear" or (layer.reads == "both" and network.towers == 2)):
            raise ValueError(
                f"network.layers.{name}.groups={layer.groups} is for convolutions that read one tower or the image; "
                "give 1."
            )
        if layer.groups < 1 or any(count % layer.groups for count in kernels + maps):
            raise ValueError(
                f"network.layers.{name}.groups={layer.groups} does not divide the {maps[0]} maps that a tower reads "
                f"and the {kernels[0]} that it puts out; choose a divisor of both."
            )
        steps = [step for step in layer.then if step in OF_MAPS]
        if layer.kind == "linear" and steps:
            raise ValueError(
                f"network.layers.{name}.then has {steps[0]}, which is for the maps of a convolution; leave it out."
            )
        size_in = size
        if layer.kind == "linear":
            maps, size_in, size = tuple(count * size**2 for count in maps), 1, 1
        else:
            size = (size + 2 * layer.pad + layer.overhang - layer.size) // layer.stride + 1
        size_conv = size
        if "pool" in layer.then:
            size = _pooled(size, network.pool)
        if size < 1 or size_conv < 1:
            raise ValueError(f"network.layers.{name} leaves nothing of an image of {size_in} pixels.")
        rows.append(Row(name, layer, kernels, maps, size_in, size_conv, size))
        maps = kernels
    return rows


def count_parameters(rows: Sequence[Row]) -> int:
    """Weights and biases of all towers."""
    return sum(row.num_parameters(tower) for row in rows for tower in range(len(row.kernels)))
