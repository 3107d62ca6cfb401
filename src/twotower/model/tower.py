"""Figure 2 as a table of layers, the tower that is built from it, and the way of a batch through both towers.

B images, C maps of one tower; sizes are those of a 224 x 224 image. A network of one piece is one tower that has
all maps, and reads no other.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NoReturn, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from twotower.config import NetworkConfig
from twotower.distributed.exchange import Exchange, InProcessExchange
from twotower.ground.devices import in_memory_format
from twotower.ground.precision import in_precision
from twotower.ground.random_streams import torch_stream
from twotower.model.fused_steps import LEAST_VALUES, FusedSteps, fuse
from twotower.model.initial_weights import draw_bias, draw_weight
from twotower.model.layer_table import Row, plan
from twotower.model.layers import Dropout, LocalResponseNorm, ReadBothConv2d, ReadBothLinear, SpatialNorm
from twotower.model.local_conv import LocalConv2d

ACTIVATION_LAYERS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def _after(row: Row, network: NetworkConfig, tower: int, seed: int) -> list[tuple[str, nn.Module]]:
    """The steps that follow a layer's sum, in the order of the table. A norm that is null is left out."""
    steps: list[tuple[str, nn.Module]] = []
    for step in row.config.then:
        if step == "activation":
            steps.append((step, ACTIVATION_LAYERS[network.activation]()))
        elif step == "lrn" and network.lrn is not None:
            lrn = network.lrn
            maps = row.kernels[tower]
            steps.append((step, LocalResponseNorm(maps, lrn.n, lrn.k, lrn.alpha, lrn.alpha_over_n, lrn.beta)))
        elif step == "spatial_norm" and network.spatial_norm is not None:
            norm = network.spatial_norm
            steps.append((step, SpatialNorm(norm.n, norm.alpha, norm.beta)))
        elif step == "pool":
            # Both kinds clip the last window at the image's edge; the average is taken over the pixels that are left.
            kind = nn.MaxPool2d if row.config.pooling == "max" else nn.AvgPool2d
            steps.append((step, kind(network.pool.size, network.pool.stride, ceil_mode=network.pool.partial)))
        elif step == "dropout" and network.dropout_keep < 1:
            rescale = network.dropout_scaling == "training"
            steps.append((step, Dropout(network.dropout_keep, seed, tower, row.name, rescale)))
    return steps


class Layer(nn.Module):
    """One row of the table, as one tower has it: the sum over its inputs, then the steps of the row, e.g. ReLU, LRN.

    Forward hooks work on the layer, on `sum` and on each step of `after`. What they are given is not overwritten
    later, keyword arguments included: the activation and the sum over both halves work in place only in layers that
    nobody has hooked.

    `steps` are the names of what `after` holds, in its order, as in the table: activation, lrn, pool ...
    """

    def __init__(self, row: Row, network: NetworkConfig, tower: int, seed: int) -> None:
        super().__init__()
        self.reads_both = row.reads_both
        self.is_linear = row.config.kind == "linear"
        self.overhang = row.config.overhang
        c, kernels, maps_in = row.config, row.kernels[tower], row.maps_in[tower]
        self.sum: nn.Module
        if self.is_linear:
            self.sum = ReadBothLinear(maps_in, kernels) if self.reads_both else nn.Linear(maps_in, kernels)
        elif self.reads_both:
            self.sum = ReadBothConv2d(maps_in, kernels, c.size, c.stride, c.pad)
        elif row.is_local:
            self.sum = LocalConv2d(maps_in, kernels, c.size, c.stride, c.pad, row.size_conv)
        else:
            self.sum = nn.Conv2d(maps_in, kernels, c.size, c.stride, c.pad, groups=c.groups)
        steps = _after(row, network, tower, seed)
        names = [name for name, _ in steps]
        self.steps = [  # a step that a layer has twice is numbered: activation, pool, activation_2
            f"{name}_{names[: place + 1].count(name)}" if name in names[:place] else name
            for place, name in enumerate(names)
        ]
        self.after = nn.Sequential(*(module for _, module in steps))
        self.fused: FusedSteps | None = None
        self.fuse_steps(True)

    def prepare(self, x: Tensor) -> Tensor:
        """The half as this layer reads it, and as the other tower is sent it: [B, C, H, W], or [B, C * H * W]."""
        if self.is_linear:
            return x.flatten(1)
        if self.overhang and torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))  # as the convolution would, but before it is copied
        return F.pad(x, (0, self.overhang, 0, self.overhang)) if self.overhang else x

    def sum_own(self, x: Tensor) -> Tensor:
        """The sum over this tower's half, for a layer that reads both; it is computed while the halves cross."""
        assert isinstance(self.sum, ReadBothConv2d | ReadBothLinear)
        return self.sum.own(x)

    def forward(self, x: Tensor, peer: Tensor | None = None, own_sum: Tensor | None = None) -> Tensor:
        """The layer's output for this tower: [B, K, H', W'], or [B, K].

        Args:
            x: the half that this tower computed, [B, C, H, W] or [B, C].
            peer: the half that the other tower computed, already as `prepare` gives it, for a layer that reads both.
            own_sum: `sum_own(prepare(x))`, if it has been computed already; x must then come from `prepare`, too.
                Without hooks it is overwritten.
        """
        in_place = not _is_hooked(self)
        for step in (self.sum, *self.after):
            if isinstance(step, nn.ReLU | ReadBothConv2d):
                step.inplace = in_place
        if self.reads_both:
            if peer is None:
                raise ValueError("this layer reads both towers; use twotower.forward(towers, images, exchange).")
            y = self.sum(x if own_sum is not None else self.prepare(x), peer, own_sum=own_sum)
        else:
            y = self.sum(self.prepare(x))
        return self._run_steps(y)

    def _run_steps(self, y: Tensor) -> Tensor:
        """The steps after the sum; several in one pass where nobody watches a single one and it is possible.

        A hook on the whole layer, or on the sum, changes no bit: it finds the same tensors either way.
        """
        if self.fused is None or _is_hooked(self.after) or not self.fused.fits(y):
            return cast(Tensor, self.after(y))
        y = self.fused(y)
        for step in list(self.after)[len(self.fused.modules) :]:
            y = step(y)
        return y

    def fuse_steps(self, wanted: bool, overwrite: bool = False) -> None:
        """Whether several steps may run in one pass, as they do at first; see `FusedSteps.overwrites_input`."""
        self.fused = fuse(list(self.after)) if wanted and not self.is_linear else None
        if self.fused is not None:
            self.fused.overwrites_input = overwrite


def _is_hooked(layer: nn.Module) -> bool:
    """Whether somebody may have kept a tensor that a step in place would overwrite."""
    return torch_module._has_any_global_hook() or any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        for module in layer.modules()
    )


def _refuse_hook(self: nn.Module, *arguments: object, **options: object) -> NoReturn:
    """Raises: RuntimeError, because the hook would never be called."""
    raise RuntimeError(
        f"a hook on a {type(self).__name__} never fires, because twotower.forward calls the layers of both towers in "
        'turn; register it on a layer, tower.layers["conv3"], or on the loaded network.'
    )


class _WithoutHooks(nn.Module):
    """A module that `forward` never calls as a whole, and that refuses hooks for this reason."""

    register_forward_hook = register_forward_pre_hook = _refuse_hook
    register_full_backward_hook = register_full_backward_pre_hook = register_backward_hook = _refuse_hook


class TowerLayers(_WithoutHooks, nn.ModuleDict):
    """The layers of a tower by name, conv1 ... fc8."""


class Tower(_WithoutHooks):
    """One tower of Figure 2, from the image to its half of the classes; or a network of one piece.

    Hooks belong on its layers; one on the tower itself is refused, because it would never fire.

    `network` is its table. `precision` is that of its arithmetic, fp32, tf32 or bf16: see ground/precision.py.

    Parameters are named as in the paper: conv1.weight ... fc8.bias; layers that read both towers have
    weight_own and weight_other instead of weight.
    """

    def __init__(self, network: NetworkConfig, num_classes: int, tower: int, seed: int) -> None:
        super().__init__()
        self.rows = plan(network, num_classes)
        self.network = network
        self.precision = "fp32"
        self.tower, self.num_towers, self.initial_bias = tower, network.towers, network.initial_bias
        self.layers = TowerLayers({row.name: Layer(row, network, tower, seed) for row in self.rows})
        self.initialise(seed, network.width)

    def on(self, device: torch.device, memory_format: torch.memory_format) -> "Tower":
        """Moves the tower to a device, its convolutions' weights into a memory format."""
        return in_memory_format(self.to(device), memory_format)

    def fuse_steps(self, wanted: bool, overwrite: bool = False) -> None:
        """Whether ReLU, norms and pooling of a layer may run in one pass on a CPU; see `fused_steps`.

        Args:
            overwrite: whether gradients may take the memory of maps, so that no graph goes backward twice.
        """
        for layer in self.table():
            layer.fuse_steps(wanted, overwrite)

    def fuses_steps(self) -> bool:
        """Whether any layer has maps that are large enough for it."""
        values = [row.kernels[self.tower] * row.size_conv**2 for row in self.rows]
        layers = zip(self.table(), values, strict=True)
        return any(layer.fused is not None and value >= LEAST_VALUES for layer, value in layers)

    def table(self) -> list[Layer]:
        """conv1 ... fc8."""
        return [cast(Layer, layer) for layer in self.layers.values()]

    def initialise(self, seed: int, width: float) -> None:
        """Draws the initial weights of stream (seed, tower, layer); the same on every device."""
        for row in self.rows:
            stream = torch_stream("weights", seed, self.tower, row.name)
            fan_in, fan_out = row.fans(self.tower)
            for name, parameter in self.layers[row.name].named_parameters():
                if name.endswith("bias"):
                    draw_bias(parameter.data, row.config, self.initial_bias, fan_in, stream)
                else:
                    draw_weight(parameter.data, row.config, fan_in, fan_out, width, stream)

    def forward(self, images: Tensor) -> Tensor:
        """The logits [B, classes] of images [B, 3, H, W], for a network that is one tower.

        Raises: ValueError for one tower of two, whose layers cannot be computed without the other one.
        """
        if self.num_towers > 1:
            raise ValueError(
                f"this is tower {self.tower} of {self.num_towers}, and some of its layers read "
                "the other one; call twotower.forward([tower0, tower1], images, twotower.InProcessExchange())."
            )
        return forward([self], images, InProcessExchange())

    def paper_named_parameters(self) -> dict[str, nn.Parameter]:
        """{"conv1.weight": ..., "conv3.weight_own": ..., "fc8.bias": ...}."""
        return {name.replace("layers.", "").replace("sum.", ""): p for name, p in self.named_parameters()}

    def freeze(self, frozen: Collection[str]) -> None:
        """Keeps these layers as they are. If they are the first ones, the backward pass stops above them."""
        for row in self.rows:
            self.layers[row.name].requires_grad_(row.name not in frozen)

    def at_step(self, step: int, rows: slice, batch: int) -> None:
        """Chooses the dropout masks of a step; see `Dropout.at_step`."""
        for module in self.modules():
            if isinstance(module, Dropout):
                module.at_step(step, rows, batch)


def forward(towers: Sequence[Tower], images: Tensor, exchange: Exchange) -> Tensor:
    """The logits [B, classes] of images [B, 3, H, W], through the towers that live in this process.

    With one tower here, the other process must call this on the same images at the same time. Under bf16 the logits
    come in float32, too, for the loss.
    """
    with in_precision(towers[0].precision, images.device):
        logits = exchange.collect(_run_layers(towers, images, exchange))
    return logits.float() if logits.dtype == torch.bfloat16 else logits


def _run_layers(towers: Sequence[Tower], images: Tensor, exchange: Exchange) -> list[Tensor]:
    """Each tower's half of the logits."""
    halves = [images for _ in towers]
    for layers in zip(*(tower.table() for tower in towers), strict=True):  # conv1 ... fc8
        if layers[0].reads_both:
            halves = [layer.prepare(x) for layer, x in zip(layers, halves, strict=True)]
            flight = exchange.start(halves)
            sums = [layer.sum_own(x) for layer, x in zip(layers, flight.own, strict=True)]
            peers = exchange.finish(flight)
            halves = [
                layer(x, peer, own_sum=y) for layer, x, peer, y in zip(layers, flight.own, peers, sums, strict=True)
            ]
        else:
            halves = [layer(x) for layer, x in zip(layers, halves, strict=True)]
    return halves
