"""A trained network in one piece and in plain torch. It needs torch and safetensors, and nothing of twotower.

    network = plain.load("alexnet.safetensors")
    logits = network(images - network.mean_image)  # images: float32 [B, 3, S, S], RGB, 0..255; logits: [B, classes]

An image is brought to 256 pixels at its shorter side (table["prepared_size"]), and the centre S x S of it is taken.

Every step is a module with a name, conv1, conv1_activation, conv1_lrn, conv1_pool ... fc8, so forward hooks and tools
that look for layers work. Where two towers were trained, tower 0's maps come first. A layer that read both is an
ordinary one here; where each tower read only itself, a convolution has two groups and a linear layer two blocks, and
no norm looks across.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn


class BlockLinear(nn.Module):
    """A linear layer of two towers that read only themselves: weight [K, C / 2], whose halves see the halves of x."""

    def __init__(self, units_in: int, units_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(units_out, units_in // 2))
        self.bias = nn.Parameter(torch.empty(units_out))

    def forward(self, x: Tensor) -> Tensor:
        inputs, weights, biases = x.chunk(2, dim=1), self.weight.chunk(2), self.bias.chunk(2)
        return torch.cat([F.linear(inputs[t], weights[t], biases[t]) for t in range(2)], dim=1)


class LocalConv2d(nn.Module):
    """A convolution without shared weights: pixel (i, j) of its output has weight[i, j] and bias[i, j] of its own."""

    def __init__(self, shape: Sequence[int], stride: int, pad: int) -> None:
        super().__init__()
        self.stride, self.pad = stride, pad
        self.weight = nn.Parameter(torch.empty(*shape))
        self.bias = nn.Parameter(torch.empty(*shape[:3]))

    def forward(self, x: Tensor) -> Tensor:
        size = self.weight.shape[-1]
        windows = F.pad(x, (self.pad,) * 4).unfold(2, size, self.stride).unfold(3, size, self.stride)
        return torch.einsum("bcijyx,ijkcyx->bkij", windows, self.weight) + self.bias.permute(2, 0, 1)


class LocalResponseNorm(nn.Module):
    """LRN over |j - i| <= n // 2 maps of one tower. torch divides its alpha by the size of this window."""

    def __init__(self, n: int, k: float, alpha: float, alpha_over_n: bool, beta: float, towers: int) -> None:
        super().__init__()
        self.size, self.k, self.beta, self.towers = n // 2 * 2 + 1, k, beta, towers
        self.alpha = alpha * self.size / (n if alpha_over_n else 1)

    def forward(self, x: Tensor) -> Tensor:
        halves = x.chunk(self.towers, dim=1)
        normed = [
            F.local_response_norm(halves[t], self.size, self.alpha, self.beta, self.k) for t in range(self.towers)
        ]
        return torch.cat(normed, dim=1)


class SpatialNorm(nn.Module):
    """A norm over n x n pixels of the same map, with zeros outside of the image."""

    def __init__(self, n: int, alpha: float, beta: float) -> None:
        super().__init__()
        self.n, self.alpha, self.beta = n, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        mean = F.avg_pool2d(x * x, self.n, stride=1, padding=self.n // 2)
        return x * (1 + self.alpha * mean) ** -self.beta


class Dropout2012(nn.Module):
    """Dropout of 2012: nothing is rescaled in training; at test every unit counts times `keep`."""

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.full_like(x, self.keep)
        return x * (torch.bernoulli(keep) if self.training else keep)


class Network(nn.Module):
    """The layers of `table`, a NetworkConfig as a dictionary; parameters conv1.weight, conv1.bias ... fc8.bias."""

    def __init__(self, table: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.table = table
        reads_maps = True
        for name, layer in table["layers"].items():
            if layer["kind"] == "linear" and reads_maps:
                self.add_module(f"{name}_flatten", nn.Flatten())
                reads_maps = False
            if layer.get("overhang"):  # zeros to the right and below
                self.add_module(f"{name}_pad", nn.ZeroPad2d((0, layer["overhang"], 0, layer["overhang"])))
            self.add_module(name, self._sum(layer, tensors[f"{name}.weight"]))
            for step in layer["then"]:
                if module := self._step(step, layer["pooling"]):
                    self.add_module(f"{name}_{step}", module)
        self.register_buffer("mean_image", tensors["mean_image"])  # float32 [3, S, S]
        self.load_state_dict({name: tensors[name] for name in self.state_dict()}, assign=True)

    def _sum(self, layer: dict[str, Any], weight: Tensor) -> nn.Module:
        blocks = self.table["towers"] if layer["reads"] == "own" else 1
        with torch.device("meta"):  # values come later, so none are drawn
            if layer["kind"] == "local":
                return LocalConv2d(weight.shape, layer["stride"], layer["pad"])
            if layer["kind"] == "conv":
                groups, sizes = layer["groups"] * blocks, (layer["size"], layer["stride"], layer["pad"])
                return nn.Conv2d(weight.shape[1] * groups, weight.shape[0], *sizes, groups=groups)
            return (BlockLinear if blocks > 1 else nn.Linear)(weight.shape[1] * blocks, weight.shape[0])

    def _step(self, name: str, pooling: str) -> nn.Module | None:
        """A step that follows a layer's sum; None for a norm that the network does not have."""
        table = self.table
        if name == "activation":
            return {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}[table["activation"]]()
        if name == "lrn" and table["lrn"]:
            return LocalResponseNorm(**table["lrn"], towers=table["towers"])
        if name == "spatial_norm" and table["spatial_norm"]:
            return SpatialNorm(**table["spatial_norm"])
        if name == "pool":  # `partial`: the last window may hang over the edge
            pool = table["pool"]
            kind = nn.MaxPool2d if pooling == "max" else nn.AvgPool2d
            return kind(pool["size"], pool["stride"], ceil_mode=pool["partial"])
        if name == "dropout":
            keep = table["dropout_keep"]
            return nn.Dropout(1 - keep) if table["dropout_scaling"] == "training" else Dropout2012(keep)
        return None

    def forward(self, x: Tensor) -> Tensor:
        for module in self.children():
            x = module(x)
        return x


def load(path: str | Path) -> Network:
    """The network in a file that `launch/export.py to=merged` made, ready for use."""
    with safe_open(path, framework="pt") as file:
        table = json.loads(file.metadata()["network"])
    # Values that were rounded to half precision are computed with in float32.
    return Network(table, {name: tensor.float() for name, tensor in load_file(path).items()}).eval()
