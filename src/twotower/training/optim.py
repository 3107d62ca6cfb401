"""The update rule of 2012 (paper section 5; weights.cu:146-198) and its per-layer rates.

    v <- momentum * v - weight_decay * rate * w - rate * dL/dw
    w <- w + v

The rate is inside the velocity. `torch.optim.SGD` keeps it outside: its buffer b obeys v = -rate * b, so the two
rules are the same while the rate stays, and differ for some ten steps after each drop, when torch's whole velocity
shrinks at once. Multiplying the buffers by old rate / new rate at the drop makes them the same throughout, and lets
torch's fused kernel do the work in one pass over memory.

That kernel is called by its function `torch.optim.sgd.sgd`. The class `torch.optim.SGD` is not used, because making
an object of it imports torch's compiler, which costs each tower one and a half seconds at its start, and 145 MB.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd


@dataclass
class _Group:
    """The weights of a layer, or its biases.

    Attributes:
        names: of the parameters.
        decay: weight decay.
        rate: of the next step.
        velocity_rate: the rate that the buffers belong to; None before the first rate above 0.
    """

    layer: str
    is_biases: bool
    decay: float
    names: list[str] = field(default_factory=list)
    rate: float = 0.0
    velocity_rate: float | None = None


class VelocitySGD:
    """The rule above for one tower's parameters.

    Args:
        parameters: by name, "<layer>.<what>"; names that end in "bias" are biases.
        bias_rate: rate of the biases as a multiple of the weights', for `set_rate`.
        bias_decay: whether the biases decay too.
        rule: `paper`, or `torch` to leave the buffers as they are when a rate changes.
        layer_decays: weight decay by layer, for those that have one of their own.

    A rate of 0 freezes: neither velocity nor decay moves the parameter (weights.cu:148).
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        momentum: float,
        weight_decay: float,
        bias_rate: float,
        bias_decay: bool,
        rule: str = "paper",
        layer_decays: Mapping[str, float] | None = None,
    ) -> None:
        self.parameters, self.bias_rate, self.rule = dict(parameters), bias_rate, rule
        self._momentum = momentum
        groups: dict[tuple[str, bool], _Group] = {}
        for name in self.parameters:
            layer, is_biases = name.split(".")[0], name.endswith("bias")
            decay = (layer_decays or {}).get(layer, weight_decay) if bias_decay or not is_biases else 0.0
            groups.setdefault((layer, is_biases), _Group(layer, is_biases, decay)).names.append(name)
        self._groups = list(groups.values())
        # torch's b. The first step, without one, sets it to the gradient, which is the rule with v = 0.
        self._buffers: dict[str, Tensor] = {}

    @property
    def layers(self) -> list[str]:
        """Names, in the order of the parameters."""
        return list(dict.fromkeys(group.layer for group in self._groups))

    def set_rate(self, rate: float) -> None:
        """One rate for the weights of all layers, and `bias_rate` times it for their biases."""
        self.set_rates(dict.fromkeys(self.layers, rate), dict.fromkeys(self.layers, rate * self.bias_rate))

    def set_rates(self, weights: Mapping[str, float], biases: Mapping[str, float]) -> None:
        """Learning rates by layer from the next step on; 0 keeps the velocity for later."""
        for group in self._groups:
            new = (biases if group.is_biases else weights)[group.layer]
            if new > 0:
                old = new if group.velocity_rate is None else group.velocity_rate
                if old != new and self.rule == "paper":
                    for name in group.names:
                        if name in self._buffers:
                            self._buffers[name].mul_(old / new)
                group.velocity_rate = new
            group.rate = new

    @torch.no_grad()
    def step(self) -> None:
        """Updates the parameters from their gradients, and drops the gradients."""
        for group in self._groups:
            if group.rate > 0:
                self.update_group(group)
        for parameter in self.parameters.values():
            parameter.grad = None

    def update_group(self, group: _Group) -> None:
        """Updates those parameters of a group that have gradients."""
        gradients = {name: self.parameters[name].grad for name in group.names}
        found = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        buffers = [self._buffers.get(name) for name in found]
        sgd(
            [self.parameters[name] for name in found],
            list(found.values()),
            buffers,
            fused=True,
            weight_decay=group.decay,
            momentum=self._momentum,
            lr=group.rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        self._buffers.update(
            {name: buffer for name, buffer in zip(found, buffers, strict=True) if buffer is not None}
        )

    def velocity(self) -> dict[str, Tensor]:
        """The velocities v by parameter name; those that never moved are left out."""
        velocities = {}
        for group in self._groups:
            for name in group.names:
                if name in self._buffers:
                    assert group.velocity_rate is not None, "nothing moves before there is a rate"
                    velocities[name] = self._buffers[name] * -group.velocity_rate
        return velocities

    def mean_update(self, layer: str) -> float:
        """Mean |update| of a layer's weights in the last step; 0 if it is frozen or has not moved yet."""
        total, count = 0.0, 0
        for group in self._groups:
            if group.layer == layer and not group.is_biases:
                for name in group.names:
                    count += self.parameters[name].numel()
                    if name in self._buffers:
                        total += float(self._buffers[name].abs().sum()) * group.rate
        return total / max(count, 1)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Collects what must be kept to go on bit for bit: torch's buffers by name, and the rates they belong to."""
        return dict(self._buffers), {
            "rates": [group.rate for group in self._groups],
            "velocity_rates": [group.velocity_rate for group in self._groups],
        }

    def load_state(self, buffers: Mapping[str, Tensor], rates: Mapping[str, Any]) -> None:
        """Takes back what `state` gave."""
        for name, buffer in buffers.items():
            self._buffers[name] = torch.empty_like(self.parameters[name]).copy_(buffer)
        pairs = zip(self._groups, rates["rates"], rates["velocity_rates"], strict=True)
        for group, rate, velocity_rate in pairs:
            group.rate = rate
            if velocity_rate is not None:
                group.velocity_rate = velocity_rate
