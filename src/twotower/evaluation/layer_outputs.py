"""Reads what the layers of a network put out for a batch of images, by hooks that are taken off again."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from twotower.distributed.exchange import InProcessExchange
from twotower.ground.devices import choose_memory_format
from twotower.model.tower import Tower, forward


@torch.no_grad()
def read_outputs(
    towers: Sequence[Tower], layers: Sequence[str], images: Tensor, exchange: InProcessExchange
) -> dict[str, list[Tensor]]:
    """The outputs of some layers for images [B, 3, S, S], after activation, norms and pooling.

    Args:
        towers: all towers of the network, in evaluation mode.
        layers: names of layers, conv1 ... fc8.

    Returns: for each layer a tensor [B, C, H, W], or [B, units], for each tower, tower 0 first.
    """
    outputs: dict[str, list[Tensor]] = {layer: [] for layer in layers}

    def append_to(halves: list[Tensor]) -> Callable[[torch.nn.Module, object, Tensor], None]:
        return lambda module, inputs, output: halves.append(output)

    hooks = [
        tower.layers[layer].register_forward_hook(append_to(halves))
        for tower in towers
        for layer, halves in outputs.items()
    ]
    try:
        # Each layer is called once for each tower, tower 0 first.
        forward(towers, images.contiguous(memory_format=choose_memory_format(images.device)), exchange)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs
