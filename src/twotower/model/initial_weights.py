"""The initial weights of a layer, as the network's table names them.

| `initial`   | weights                                              | used by                                     |
|-------------|------------------------------------------------------|---------------------------------------------|
| `normal`    | N(0, std^2)                                          | the paper (section 5), the 2012 code, Caffe |
| `truncated` | the same, redrawn beyond two std                     | TF-slim's fully-connected layers            |
| `xavier`    | uniform, bound sqrt(6 / (fan in + fan out))          | TF-slim's convolutions (Glorot, Bengio 2010)|
| `kaiming`   | N(0, 2 / fan out)                                    | teaching codes (He et al. 2015)             |
| `torch`     | uniform, bound 1 / sqrt(fan in), also for the biases | `torch.nn.Conv2d` and `Linear` by default   |

Fan in: the values that one output reads, of both towers; fan out: the outputs that read one value, times the window.
"""

import math

import torch
from torch import Tensor, nn

from twotower.config import LayerConfig


def draw_weight(
    weight: Tensor, layer: LayerConfig, fan_in: int, fan_out: int, width: float, stream: torch.Generator
) -> None:
    """Fills a weight in place.

    `normal` and `truncated` have a fixed std, which suits one width only: the spread of what a layer puts out goes
    with the root of the number of its inputs, and would shrink by the root of two at each layer when the width is
    halved. So a narrow network gets wider distributions. The others follow from the fans.
    """
    std = layer.initial_std * (1.0 if layer.reads == "image" else width**-0.5)
    if layer.initial == "normal":
        nn.init.normal_(weight, std=std, generator=stream)
    elif layer.initial == "truncated":
        nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=stream)
    elif layer.initial == "kaiming":
        nn.init.normal_(weight, std=math.sqrt(2 / fan_out), generator=stream)
    else:
        bound = math.sqrt(6 / (fan_in + fan_out)) if layer.initial == "xavier" else 1 / math.sqrt(fan_in)
        nn.init.uniform_(weight, -bound, bound, generator=stream)


def draw_bias(bias: Tensor, layer: LayerConfig, of_all: float | None, fan_in: int, stream: torch.Generator) -> None:
    """Fills a bias in place: the constant of all layers, if there is one, the row's, or torch's own uniform one."""
    if of_all is None and layer.initial == "torch":
        nn.init.uniform_(bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=stream)
    else:
        nn.init.constant_(bias, layer.initial_bias if of_all is None else of_all)
