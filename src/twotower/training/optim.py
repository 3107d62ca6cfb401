"""The update rule of 2012 (paper section 5; weights.cu:146-198) and its per-layer rates.

    v <- momentum * v - weight_decay * rate * w - rate * dL/dw
    w <- w + v

The rate is inside the velocity. `torch.optim.SGD` keeps it outside: its buffer b obeys v = -rate * b, so the two
rules are the same while the rate stays, and differ for some ten steps after each drop, when torch's whole velocity
shrinks at once. Multiplying the buffers by old rate / new rate at the drop makes them the same throughout, and lets
torch's fused kernel do the work in one pass over memory.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class VelocitySGD:
    """The rule above for one tower's parameters.

    Args:
        parameters: by name, "<layer>.<what>"; names that end in "bias" are biases.
        bias_rate: rate of the biases as a multiple of the weights', for `set_rate`.
        bias_decay: whether the biases decay too.
        rule: `paper`, or `torch` to leave the buffers as they are when a rate changes.

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
    ) -> None:
        self.parameters, self.bias_rate, self.rule = dict(parameters), bias_rate, rule
        groups: dict[tuple[str, bool], dict[str, Any]] = {}
        for name, parameter in self.parameters.items():
            key = (name.split(".")[0], name.endswith("bias"))
            decay = weight_decay if bias_decay or not key[1] else 0.0
            group = groups.setdefault(key, {"params": [], "layer": key[0], "biases": key[1], "weight_decay": decay})
            group["params"].append(parameter)
        # The first step with an empty buffer sets it to the gradient, which is the rule with v = 0.
        self._sgd = torch.optim.SGD(list(groups.values()), lr=0.0, momentum=momentum, fused=True)

    @property
    def layers(self) -> list[str]:
        """Names, in the order of the parameters."""
        return list(dict.fromkeys(group["layer"] for group in self._sgd.param_groups))

    def set_rate(self, rate: float) -> None:
        """One rate for the weights of all layers, and `bias_rate` times it for their biases."""
        self.set_rates(dict.fromkeys(self.layers, rate), dict.fromkeys(self.layers, rate * self.bias_rate))

    def set_rates(self, weights: Mapping[str, float], biases: Mapping[str, float]) -> None:
        """Learning rates by layer from the next step on; 0 keeps the velocity for later."""
        for group in self._sgd.param_groups:
            new = (biases if group["biases"] else weights)[group["layer"]]
            if new > 0:
                old = group.get("velocity_rate", new)
                if old != new and self.rule == "paper":
                    for parameter in group["params"]:
                        buffer = self._sgd.state[parameter].get("momentum_buffer")
                        if buffer is not None:
                            buffer.mul_(old / new)
                group["velocity_rate"] = new
            group["lr"] = new

    @torch.no_grad()
    def step(self) -> None:
        """Updates the parameters from their gradients, and drops the gradients."""
        for group in self._sgd.param_groups:
            if group["lr"] == 0:
                for parameter in group["params"]:
                    parameter.grad = None
        self._sgd.step()
        self._sgd.zero_grad(set_to_none=True)

    def velocity(self) -> dict[str, Tensor]:
        """The velocities v by parameter name; those that never moved are left out."""
        velocities = {}
        for group in self._sgd.param_groups:
            for parameter in group["params"]:
                buffer = self._sgd.state[parameter].get("momentum_buffer")
                if buffer is not None:
                    velocities[self._name(parameter)] = buffer * -group["velocity_rate"]
        return velocities

    def mean_update(self, layer: str) -> float:
        """Mean |update| of a layer's weights in the last step; 0 if it is frozen or has not moved yet."""
        total, count = 0.0, 0
        for group in self._sgd.param_groups:
            if group["layer"] == layer and not group["biases"]:
                for parameter in group["params"]:
                    buffer = self._sgd.state[parameter].get("momentum_buffer")
                    count += parameter.numel()
                    if buffer is not None:
                        total += float(buffer.abs().sum()) * group["lr"]
        return total / max(count, 1)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Collects what must be kept to go on bit for bit: torch's buffers by name, and the rates they belong to."""
        buffers = {
            self._name(parameter): state["momentum_buffer"]
            for parameter, state in self._sgd.state.items()
            if state.get("momentum_buffer") is not None
        }
        groups = self._sgd.param_groups
        return buffers, {
            "rates": [group["lr"] for group in groups],
            "velocity_rates": [group.get("velocity_rate") for group in groups],
        }

    def load_state(self, buffers: Mapping[str, Tensor], rates: Mapping[str, Any]) -> None:
        """Takes back what `state` gave."""
        for name, buffer in buffers.items():
            parameter = self.parameters[name]
            self._sgd.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(buffer)
        pairs = zip(self._sgd.param_groups, rates["rates"], rates["velocity_rates"], strict=True)
        for group, rate, velocity_rate in pairs:
            if velocity_rate is not None:
                group["velocity_rate"] = velocity_rate
            group["lr"] = rate

    def _name(self, parameter: Tensor) -> str:
        return next(name for name, p in self.parameters.items() if p is parameter)
