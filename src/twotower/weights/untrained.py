"""Which layers look as they were drawn at first, and so untrained."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from twotower.config import UNSCALED, NetworkConfig
from twotower.model.layer_table import plan
from twotower.weights.merged import divide_image_weights

ROUNDING = 1e-6  # relative error of float32 weights that were divided by a std and are multiplied by it again
SAMPLING_ERRORS = 4.0  # within which weights count as never trained


def untrained_layers(
    tensors: Mapping[str, Tensor], network: NetworkConfig, num_classes: int, input_std: Sequence[float] = UNSCALED
) -> list[str]:
    """The layers that look as they were drawn: spread, mean and biases are those of their initial distribution.

    Args:
        input_std: by which the weights that read the image were divided after training.
    """
    as_drawn = []
    tensors = divide_image_weights(tensors, network, [1 / std for std in input_std])
    for row in plan(network, num_classes):
        weight, bias = tensors[f"{row.name}.weight"].double(), tensors[f"{row.name}.bias"]
        c, (fan_in, fan_out) = row.config, row.fans(0)
        scale = 1.0 if c.reads == "image" else network.width**-0.5
        std = {
            "normal": c.initial_std * scale,
            "truncated": c.initial_std * scale * 0.8796,  # std of a normal distribution that is cut at two std
            "xavier": math.sqrt(2 / (fan_in + fan_out)),
            "kaiming": math.sqrt(2 / fan_out),
            "torch": 1 / math.sqrt(3 * fan_in),
        }[c.initial]
        sampling = SAMPLING_ERRORS / math.sqrt(weight.numel())
        spread = abs(float(weight.std()) / std - 1) < sampling / math.sqrt(2)
        centred = abs(float(weight.mean())) < sampling * std
        if c.initial == "torch" and network.initial_bias is None:
            bound = (1 + ROUNDING) / math.sqrt(fan_in)
            as_set = bool((bias.abs() <= bound).all() and (weight.abs() <= bound).all())
        else:
            constant = c.initial_bias if network.initial_bias is None else network.initial_bias
            as_set = bool((bias == constant).all())
        if spread and centred and as_set:
            as_drawn.append(row.name)
    return as_drawn
