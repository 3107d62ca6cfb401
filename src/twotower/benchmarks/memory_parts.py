"""What fills the memory of a process that trains: both towers in one, or one tower in each of two, as in 2012.

A GTX 580 has 3 GiB (section 3.2 of the paper, which writes 3GB). Weights, gradients and velocities follow from the
table of layers; what a forward pass keeps for the backward pass is counted while one runs, storage by storage.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from twotower.benchmarks.baseline import build_baseline
from twotower.config import MemoryConfig
from twotower.distributed.exchange import InProcessExchange
from twotower.ground.devices import in_memory_format
from twotower.ground.precision import check_precision, in_precision
from twotower.model.fused_steps import choose_fused
from twotower.model.layer_numbers import FLOAT_BYTES, describe
from twotower.model.layer_table import IMAGE_MAPS
from twotower.model.tower import Tower, forward

GTX_580_BYTES = 3 * 2**30  # the memory of the paper's GPUs, section 3.2
Layers = Sequence[tuple[str, nn.Module]]
COPIES = ("weights", "gradients", "velocities")


@dataclass(frozen=True)
class MemoryPart:
    """A part of the memory, in bytes.

    Attributes:
        of_tower: of one tower, in a process of its own: half of what both keep, and what the other one sends.
        of_both: of both towers in one process; of a network of one tower the same.
        of_plain: of the network in one piece, made of torch's own layers.
    """

    name: str
    of_tower: float
    of_both: float
    of_plain: float


class _Counter:
    """Counts the storages that autograd keeps, each once, for the layer that is being computed."""

    def __init__(self, layers: Layers, images: Tensor) -> None:
        known = [images, *(parameter for _, layer in layers for parameter in layer.parameters())]
        # The tensors themselves are held, so that no address is used again.
        self._held: list[Tensor] = list(known)
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._now = ""
        self.kept: dict[str, int] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self._held.append(tensor)
            self.kept[self._now] = self.kept.get(self._now, 0) + storage.nbytes()
        return tensor

    def enter(self, layer: str, _module: nn.Module, _inputs: tuple[Tensor, ...]) -> None:
        self._now = layer

    @contextmanager
    def watching(self, layers: Layers) -> Iterator[None]:
        hooks = [layer.register_forward_pre_hook(partial(self.enter, name)) for name, layer in layers]
        try:
            with saved_tensors_hooks(self.keep, lambda tensor: tensor):
                yield
        finally:
            for hook in hooks:
                hook.remove()


def _count(layers: Layers, run: Callable[[Tensor], Tensor], size: int) -> dict[str, tuple[int, int]]:
    """What a forward pass keeps, by layer: bytes once, and for each image."""
    found = []
    for num_images in (1, 2):
        images = torch.zeros(num_images, IMAGE_MAPS, size, size).to(memory_format=torch.channels_last)
        counter = _Counter(layers, images)
        with counter.watching(layers):
            run(images)
        found.append(counter.kept)
    one, two = found
    names = dict.fromkeys(name for name, _ in layers)
    return {name: (2 * one.get(name, 0) - two.get(name, 0), two.get(name, 0) - one.get(name, 0)) for name in names}


def count_kept_plain(settings: MemoryConfig) -> dict[str, tuple[int, int]]:
    """What a forward pass of the network in one piece keeps: bytes once, and for each image."""
    network, device = settings.network, torch.device("cpu")
    plain = in_memory_format(build_baseline(network, settings.num_classes), torch.channels_last)
    sums = [module for module in plain if isinstance(module, nn.Conv2d | nn.Linear)]
    layers = list(zip(network.layers, sums, strict=True))

    def run(images: Tensor) -> Tensor:
        with in_precision(settings.precision, device):
            logits: Tensor = plain(images)
        return logits

    return _count(layers, run, network.image_size)


def count_kept(settings: MemoryConfig) -> dict[str, tuple[int, int]]:
    """What a forward pass of both towers keeps for the backward pass, by layer: bytes once, and for each image.

    What is kept once are weights in bfloat16, where the precision asks for them.
    """
    network = settings.network
    towers = [Tower(network, settings.num_classes, tower, seed=0) for tower in range(network.towers)]
    for tower in towers:
        tower.on(torch.device("cpu"), torch.channels_last)
        tower.precision = settings.precision
        tower.fuse_steps(choose_fused(settings.fused_steps))

    def run(images: Tensor) -> Tensor:
        for tower in towers:
            tower.at_step(0, slice(0, len(images)), len(images))
        return forward(towers, images, InProcessExchange())

    layers: Layers = [(name, layer) for tower in towers for name, layer in tower.layers.items()]
    return _count(layers, run, network.image_size)


def list_memory(settings: MemoryConfig) -> list[MemoryPart]:
    """The parts in order. Raises: ValueError for a network or a precision that cannot be."""
    network, batch = settings.network, settings.batch_size
    check_precision(settings.precision, torch.device("cpu"), "precision")
    layers = describe(network, settings.num_classes, batch)
    weights = sum(sum(layer.parameters) for layer in layers) * FLOAT_BYTES
    parts = [MemoryPart(name, weights / network.towers, weights, weights) for name in COPIES]
    kept, plain = count_kept(settings), count_kept_plain(settings)
    once, plain_once = (sum(of_layer for of_layer, _ in found.values()) for found in (kept, plain))
    if once:
        parts.append(MemoryPart(f"weights, {settings.precision}", once / network.towers, once, plain_once))
    images = batch * IMAGE_MAPS * network.image_size**2 * FLOAT_BYTES
    parts.append(MemoryPart("images", images, images, images))
    for layer in layers:
        of_layer = batch * kept[layer.name][1]
        # The half of the other tower stays, too, for the gradient of the weights that read it.
        received = layer.exchanged_bytes / (1 if settings.precision == "fp32" else 2)
        of_plain = batch * plain[layer.name][1]
        parts.append(MemoryPart(layer.name, of_layer / network.towers + received, of_layer, of_plain))
    return parts
