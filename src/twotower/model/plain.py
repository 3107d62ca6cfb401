"""A trained network in one piece and in plain torch. It needs torch and safetensors, and nothing of twotower.

    network = plain.load("alexnet.safetensors")
    logits = network(images - network.mean_image)  # images: float32 [B, 3, S, S], RGB, 0..255; logits: [B, classes]

An image is brought to 256 pixels at its shorter side (table["prepared_size"]), and the centre S x S of it is taken.

Where two towers were trained, tower 0's maps come first. A layer that read both is an ordinary one here; where each
tower read only itself, a convolution has two groups and a linear layer two blocks, and no norm looks across.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn


class Network(nn.Module):
    """The layers of `table`, a NetworkConfig as a dictionary; parameters conv1.weight, conv1.bias ... fc8.bias."""

    def __init__(self, table: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.table = table
        self.register_buffer("mean_image", tensors["mean_image"])  # float32 [3, S, S]
        for name in table["layers"]:
            own = {part: nn.Parameter(tensors[f"{name}.{part}"]) for part in ("weight", "bias")}
            self.add_module(name, nn.ParameterDict(own))

    def forward(self, x: Tensor) -> Tensor:
        for name, layer in self.table["layers"].items():
            weight, bias = self.get_parameter(f"{name}.weight"), self.get_parameter(f"{name}.bias")
            blocks = self.table["towers"] if layer["reads"] == "own" else 1
            if layer["kind"] == "conv":
                x = F.pad(x, (0, layer["overhang"], 0, layer["overhang"]))  # zeros to the right and below
                x = F.conv2d(x, weight, bias, layer["stride"], layer["pad"], groups=layer["groups"] * blocks)
            elif blocks == 1:
                x = F.linear(x.flatten(1), weight, bias)
            else:
                halves = zip(x.flatten(1).chunk(2, dim=1), weight.chunk(2), bias.chunk(2), strict=True)
                x = torch.cat([F.linear(*half) for half in halves], dim=1)
            for step in layer["then"]:
                x = self.step(step, x, layer["pooling"])
        return x

    def step(self, name: str, x: Tensor, pooling: str) -> Tensor:
        """What follows a layer's sum."""
        table, lrn, norm, pool = self.table, self.table["lrn"], self.table["spatial_norm"], self.table["pool"]
        if name == "activation":
            return {"relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}[table["activation"]](x)
        if name == "lrn" and lrn:  # over |j - i| <= n // 2 maps; torch divides its alpha by the size of this window
            size = lrn["n"] // 2 * 2 + 1
            alpha = lrn["alpha"] * size / (lrn["n"] if lrn["alpha_over_n"] else 1)
            halves = x.chunk(table["towers"], dim=1)
            return torch.cat([F.local_response_norm(h, size, alpha, lrn["beta"], lrn["k"]) for h in halves], dim=1)
        if name == "spatial_norm" and norm:  # over n x n pixels, with zeros outside of the image
            mean = F.avg_pool2d(x * x, norm["n"], stride=1, padding=norm["n"] // 2)
            return x * (1 + norm["alpha"] * mean) ** -norm["beta"]
        if name == "pool":  # `partial`: the last window may hang over the edge
            function = F.max_pool2d if pooling == "max" else F.avg_pool2d
            return function(x, pool["size"], pool["stride"], ceil_mode=pool["partial"])
        if name == "dropout" and table["dropout_scaling"] == "training":
            return F.dropout(x, 1 - table["dropout_keep"], self.training)
        if name == "dropout":  # of 2012: nothing is rescaled in training; at test every unit counts times `keep`
            keep = torch.full_like(x, table["dropout_keep"])
            return x * (torch.bernoulli(keep) if self.training else keep)
        return x


def load(path: str | Path) -> Network:
    """The network in a file that `launch/export.py to=merged` made, ready for use."""
    with safe_open(path, framework="pt") as file:
        table = json.loads(file.metadata()["network"])
    return Network(table, load_file(path)).eval()
