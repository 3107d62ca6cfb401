"""Reads what the layers of a network put out for a batch of images, by hooks that are taken off again.

    conv2        the whole layer: its sum and all steps after it
    conv2.sum    the sum over its inputs, before the first step
    conv2.lrn    the layer up to this step, as the table has it: activation, lrn, spatial_norm, pool, dropout

What a step reads is what the one before it puts out.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from twotower.distributed.exchange import InProcessExchange
from twotower.ground.devices import choose_memory_format
from twotower.model.tower import Layer, Tower, forward

SUM = "sum"


def list_steps(layer: Layer) -> dict[str, nn.Module]:
    """The parts of a layer that can be read, by their names, in the order in which they are computed."""
    return {SUM: layer.sum, **dict(zip(layer.steps, layer.after, strict=True))}


def find_module(tower: Tower, name: str) -> nn.Module:
    """The layer, or its step, of a name such as conv2 or conv2.lrn. Raises: ValueError if there is none."""
    layer_name, is_given, step = name.partition(".")
    layers = dict(zip([row.name for row in tower.rows], tower.table(), strict=True))
    if layer_name not in layers:
        raise ValueError(f"there is no layer {layer_name}; the layers are {', '.join(layers)}.")
    if not is_given:
        return layers[layer_name]
    steps = list_steps(layers[layer_name])
    if step not in steps:
        raise ValueError(
            f"{layer_name} has no step {step}; its steps are {', '.join(f'{layer_name}.{name}' for name in steps)}."
        )
    return steps[step]


@torch.no_grad()
def read_outputs(
    towers: Sequence[Tower], layers: Sequence[str], images: Tensor, exchange: InProcessExchange
) -> dict[str, list[Tensor]]:
    """The outputs of some layers or steps for images [B, 3, S, S].

    Args:
        towers: all towers of the network, in evaluation mode.
        layers: names such as conv2, which is after activation, norms and pooling, or conv2.sum.

    Returns: by name a tensor [B, C, H, W], or [B, units], for each tower, tower 0 first.

    Raises: ValueError for a name that the network does not have.
    """
    outputs: dict[str, list[Tensor]] = {layer: [] for layer in layers}

    def append_to(halves: list[Tensor]) -> Callable[[torch.nn.Module, object, Tensor], None]:
        return lambda module, inputs, output: halves.append(output)

    modules = [(find_module(tower, name), halves) for tower in towers for name, halves in outputs.items()]
    hooks = [module.register_forward_hook(append_to(halves)) for module, halves in modules]
    try:
        # Each layer is called once for each tower, tower 0 first.
        forward(towers, images.contiguous(memory_format=choose_memory_format(images.device)), exchange)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs
