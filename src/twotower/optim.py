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
        parameters: by name; names that end in "bias" are biases.
        bias_rate: rate of the biases as a multiple of the weights' (2 in the 2012 code, at the start).
        bias_decay: whether the biases decay too.

    A rate of 0 freezes: neither velocity nor decay moves the parameter (weights.cu:148).
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        momentum: float,
        weight_decay: float,
        bias_rate: float,
        bias_decay: bool,
    ) -> None:
        self.parameters = dict(parameters)
        weights = [p for name, p in self.parameters.items() if not name.endswith("bias")]
        biases = [p for name, p in self.parameters.items() if name.endswith("bias")]
        groups = [
            {"params": weights, "weight_decay": weight_decay, "multiple": 1.0},
            {"params": biases, "weight_decay": weight_decay if bias_decay else 0.0, "multiple": bias_rate},
        ]
        # The first step with an empty buffer sets it to the gradient, which is the rule with v = 0.
        self._sgd = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True)
        self.rate = 0.0

    def set_rate(self, rate: float) -> None:
        """The learning rate of the weights from the next step on; 0 keeps the velocity for later."""
        for group in self._sgd.param_groups:
            new = rate * group["multiple"]
            if new > 0:
                old = group.get("velocity_rate", new)
                if old != new:
                    for parameter in group["params"]:
                        buffer = self._sgd.state[parameter].get("momentum_buffer")
                        if buffer is not None:
                            buffer.mul_(old / new)
                group["velocity_rate"] = new
            group["lr"] = new
        self.rate = rate

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
        found = {}
        for group in self._sgd.param_groups:
            for parameter in group["params"]:
                buffer = self._sgd.state[parameter].get("momentum_buffer")
                if buffer is not None:
                    found[self._name(parameter)] = buffer * -group["velocity_rate"]
        return found

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What must be kept to go on bit for bit: torch's buffers by name, and the rates they belong to."""
        buffers = {
            self._name(parameter): state["momentum_buffer"]
            for parameter, state in self._sgd.state.items()
            if state.get("momentum_buffer") is not None
        }
        rates = [group.get("velocity_rate") for group in self._sgd.param_groups]
        return buffers, {"rate": self.rate, "velocity_rates": rates}

    def load_state(self, buffers: Mapping[str, Tensor], rates: Mapping[str, Any]) -> None:
        """Takes back what `state` gave."""
        for name, buffer in buffers.items():
            parameter = self.parameters[name]
            self._sgd.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(buffer)
        for group, velocity_rate in zip(self._sgd.param_groups, rates["velocity_rates"], strict=True):
            if velocity_rate is not None:
                group["velocity_rate"] = velocity_rate
            group["lr"] = rates["rate"] * group["multiple"]
        self.rate = rates["rate"]

    def _name(self, parameter: Tensor) -> str:
        return next(name for name, p in self.parameters.items() if p is parameter)
