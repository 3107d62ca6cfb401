"""Figure 2 as a table of eight rows, the tower that is built from it, and the way of a batch through both towers.

B images, C maps of one tower; sizes are those of a 224 x 224 image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twotower.config import LAYER_KINDS, READS, STEPS, LayerConfig, NetworkConfig
from twotower.exchange import Exchange
from twotower.layers import Dropout, LocalResponseNorm, ReadBothConv2d, ReadBothLinear, SpatialNorm
from twotower.streams import torch_stream

NUM_TOWERS = 2
IMAGE_MAPS = 3  # R, G, B


@dataclass(frozen=True)
class Row:
    """A layer with everything that follows from the rows before it. Sizes in pixels (1 for linear layers)."""

    name: str
    config: LayerConfig
    kernels: tuple[int, int]  # of tower 0 and tower 1
    maps_in: tuple[int, int]  # what one tower reads of each half; the image counts as own
    size_in: int
    size_conv: int  # after the convolution
    size_out: int  # after pooling

    @property
    def reads_both(self) -> bool:
        return self.config.reads == "both"

    def num_parameters(self, tower: int) -> int:
        own, other = self.maps_in[tower], self.maps_in[1 - tower] if self.reads_both else 0
        return self.kernels[tower] * ((own + other) * self.config.size**2 + 1)


def _halves(row: str, whole: float, width: float, odd_allowed: bool) -> tuple[int, int]:
    if whole != int(whole) or whole < 1 or (whole % NUM_TOWERS and not odd_allowed):
        raise ValueError(
            f"network.width={width:g} gives {row} {whole:g} kernels, which cannot be cut into two equal towers; "
            "choose a width such as 1, 0.5, 0.25 or 0.125 at which every layer has an even number of kernels."
        )
    return (int(whole) + 1) // NUM_TOWERS, int(whole) // NUM_TOWERS


def _pooled(size: int, window: int, stride: int) -> int:
    # The last window may begin inside and end outside (layer.py:1164: ceil), but not begin outside.
    count = -(-(size - window) // stride) + 1
    return count - 1 if (count - 1) * stride >= size else count


def plan(network: NetworkConfig, num_classes: int) -> list[Row]:
    """Works out each layer's widths and sizes, e.g. 224-55-27-27-13-13-13-13-6 for the paper's network.

    Raises: ValueError naming the layer, if a width cannot be cut in two, a word is not known, or nothing is left
    of the image.
    """
    if num_classes < NUM_TOWERS:
        raise ValueError(f"The data has {num_classes} class; a network needs at least {NUM_TOWERS}.")
    rows: list[Row] = []
    maps, size = (IMAGE_MAPS, IMAGE_MAPS), network.image_size
    for name, layer in network.layers.items():
        for key, value, allowed in (("kind", layer.kind, LAYER_KINDS), ("reads", layer.reads, READS)):
            if value not in allowed:
                raise ValueError(f"network.layers.{name}.{key}={value} is not known; choose of {', '.join(allowed)}.")
        unknown = [step for step in layer.then if step not in STEPS]
        if unknown:
            raise ValueError(f"network.layers.{name}.then has {unknown[0]}; the steps are {', '.join(STEPS)}.")
        if layer.kernels is None:
            kernels = _halves(name, num_classes, network.width, odd_allowed=True)
        else:
            kernels = _halves(name, layer.kernels * network.width, network.width, odd_allowed=False)
        size_in = size
        if layer.kind == "linear":
            maps, size_in, size = (maps[0] * size**2, maps[1] * size**2), 1, 1
        else:
            size = (size + 2 * layer.pad + layer.overhang - layer.size) // layer.stride + 1
        size_conv = size
        if "pool" in layer.then:
            size = _pooled(size, network.pool.size, network.pool.stride)
        if size < 1 or size_conv < 1:
            raise ValueError(f"network.layers.{name} leaves nothing of an image of {size_in} pixels.")
        rows.append(Row(name, layer, kernels, maps, size_in, size_conv, size))
        maps = kernels
    return rows


def _after(row: Row, network: NetworkConfig, tower: int, seed: int) -> list[nn.Module]:
    """The steps that follow a layer's sum, in the order of the table. A norm that is null is left out."""
    steps: list[nn.Module] = []
    for step in row.config.then:
        if step == "relu":
            steps.append(nn.ReLU(inplace=True))
        elif step == "lrn" and network.lrn is not None:
            lrn = network.lrn
            steps.append(LocalResponseNorm(row.kernels[tower], lrn.n, lrn.k, lrn.alpha, lrn.alpha_over_n, lrn.beta))
        elif step == "spatial_norm" and network.spatial_norm is not None:
            norm = network.spatial_norm
            steps.append(SpatialNorm(norm.n, norm.alpha, norm.beta))
        elif step == "pool":
            steps.append(nn.MaxPool2d(network.pool.size, network.pool.stride, ceil_mode=True))
        elif step == "dropout" and network.dropout_keep < 1:
            steps.append(Dropout(network.dropout_keep, seed, tower, row.name))
    return steps


class Layer(nn.Module):
    """One row of the table, as one tower has it: the sum over its inputs, then ReLU, norms, pooling, dropout."""

    def __init__(self, row: Row, network: NetworkConfig, tower: int, seed: int) -> None:
        super().__init__()
        self.reads_both, self.is_linear, self.overhang = (
            row.reads_both,
            row.config.kind == "linear",
            row.config.overhang,
        )
        c, kernels, maps_in = row.config, row.kernels[tower], row.maps_in[tower]
        self.sum: nn.Module
        if self.is_linear:
            self.sum = ReadBothLinear(maps_in, kernels) if self.reads_both else nn.Linear(maps_in, kernels)
        elif self.reads_both:
            self.sum = ReadBothConv2d(maps_in, kernels, c.size, c.stride, c.pad)
        else:
            self.sum = nn.Conv2d(maps_in, kernels, c.size, c.stride, c.pad)
        self.after = nn.Sequential(*_after(row, network, tower, seed))

    def own(self, x: Tensor) -> Tensor:
        """The layer's sum over this tower's half, or the whole sum if it reads no other."""
        if isinstance(self.sum, ReadBothConv2d | ReadBothLinear):
            return self.sum.own(x)
        return cast(Tensor, self.sum(x))

    def other(self, peer: Tensor, y: Tensor) -> Tensor:
        """y plus the sum over the other tower's half."""
        assert isinstance(self.sum, ReadBothConv2d | ReadBothLinear)
        return self.sum.other(peer, y)

    def ready(self, x: Tensor) -> Tensor:
        """What is read of this tower, and what the other one is sent: [B, C, H, W], or [B, C * H * W]."""
        if self.is_linear:
            return x.flatten(1)
        return F.pad(x, (0, self.overhang, 0, self.overhang)) if self.overhang else x


class Tower(nn.Module):
    """One tower of Figure 2, from the image to its half of the classes.

    Parameters are named as in the paper: conv1.weight ... fc8.bias; layers that read both towers have
    weight_own and weight_other instead of weight.
    """

    def __init__(self, network: NetworkConfig, num_classes: int, tower: int, seed: int) -> None:
        super().__init__()
        self.rows = plan(network, num_classes)
        self.tower = tower
        self.layers = nn.ModuleDict({row.name: Layer(row, network, tower, seed) for row in self.rows})
        self.initialise(seed, network.width)

    def on(self, device: torch.device, memory_format: torch.memory_format) -> "Tower":
        """Moves the tower to a device, its convolutions' weights into a memory format."""
        self.to(device).to(memory_format=memory_format)  # type: ignore[call-overload]
        return self

    def table(self) -> list[Layer]:
        """conv1 ... fc8."""
        return [cast(Layer, layer) for layer in self.layers.values()]

    def initialise(self, seed: int, width: float) -> None:
        """Draws the initial weights of stream (seed, tower, layer); the same on every device.

        A narrow network gets wider distributions: the spread of what a layer puts out goes with the root of the
        number of its inputs, and would shrink by the root of two at each layer when the width is halved.
        """
        for row in self.rows:
            stream = torch_stream("weights", seed, self.tower, row.name)
            std = row.config.initial_std * (1.0 if row.config.reads == "image" else width**-0.5)
            for name, parameter in self.layers[row.name].named_parameters():
                if name.endswith("bias"):
                    nn.init.constant_(parameter, row.config.initial_bias)
                else:
                    nn.init.normal_(parameter, std=std, generator=stream)

    def paper_named_parameters(self) -> dict[str, nn.Parameter]:
        """{"conv1.weight": ..., "conv3.weight_own": ..., "fc8.bias": ...}."""
        return {name.replace("layers.", "").replace("sum.", ""): p for name, p in self.named_parameters()}

    def at_step(self, step: int, rows: slice, batch: int) -> None:
        """Chooses the dropout masks of a step; see `Dropout.at_step`."""
        for module in self.modules():
            if isinstance(module, Dropout):
                module.at_step(step, rows, batch)


def forward(towers: Sequence[Tower], images: Tensor, exchange: Exchange) -> Tensor:
    """The logits [B, classes] of images [B, 3, H, W], through the towers that live in this process.

    With one tower here, the other process must call this on the same images at the same time.
    """
    halves = [images for _ in towers]
    for layers in zip(*(tower.table() for tower in towers), strict=True):  # conv1 ... fc8
        halves = [layer.ready(x) for layer, x in zip(layers, halves, strict=True)]
        if layers[0].reads_both:
            flight = exchange.start(halves)
            sums = [layer.own(x) for layer, x in zip(layers, flight.own, strict=True)]
            peers = exchange.finish(flight)
            sums = [layer.other(peer, y) for layer, peer, y in zip(layers, peers, sums, strict=True)]
        else:
            sums = [layer.own(x) for layer, x in zip(layers, halves, strict=True)]
        halves = [layer.after(y) for layer, y in zip(layers, sums, strict=True)]
    return exchange.collect(halves)
