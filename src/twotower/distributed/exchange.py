"""THE WIRE: how the halves of an activation cross between the towers, and their gradients cross back.

A layer that reads both towers computes y = own(x) + other(peer), where x is the half that this tower computed and
peer is the half that the other one computed. The swap travels while own(x) is computed:

    flight = exchange.start(halves)      # sends x, returns at once
    sums = own(x)
    peers = exchange.finish(flight)      # waits for peer
    sums = sums + other(peer)

Shapes, for a convolution and for a fully-connected layer:

    x, peer               [B, C, H, W]     [B, C]    B images; C maps or units of ONE tower, half of the layer's input
    own(x), other(peer)   [B, K, H', W']   [B, K]    K kernels of this tower, half of the layer's
    dL/dx, dL/d(peer)     [B, C, H, W]     [B, C]
    logits of a tower                      [B, K]    half of the classes; tower 0 has one more if their number is odd
    collect(halves)                        [B, classes]   tower 0's half first, equal in both processes

The two swaps, for one tower:

|          | sent                            | received                        | then            |
|----------|---------------------------------|---------------------------------|-----------------|
| forward  | x                               | peer                            | y needs both    |
| backward | dL/d(peer), of this tower's use | dL/dx, of the other tower's use | ADDED to dL/dx  |

The gradient of a half is the SUM of what both towers ask of it. Taking only the own part leaves every loss right
and nearly every gradient wrong, which is why the tests compare gradients.

The logits are the one exception: both towers compute the same loss from the whole of them, so each one's half
gets its gradient from the own process only. That is `collect`; it is right nowhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from twotower.distributed.transport import Swap


@dataclass
class Flight:
    """A swap that is under way: the halves of the towers that live in this process, and what is on the wire."""

    own: list[Tensor]
    token: Tensor | None = None  # ties the backward of `finish` to the backward of `start`
    forward: Swap | None = field(default=None, repr=False)
    backward: Swap | None = field(default=None, repr=False)


class Wire(Protocol):
    """What an exchange needs of a link."""

    def swap(self, mine: Tensor, shape: Sequence[int] | None = None) -> Swap:
        """As `Link.swap`."""
        ...


class Exchange(Protocol):
    """The calls that a network makes. Lists hold one tensor for each tower that lives in this process."""

    def start(self, halves: Sequence[Tensor]) -> Flight:
        """Sends the halves on their way and returns at once."""
        ...

    def finish(self, flight: Flight) -> list[Tensor]:
        """Waits for the other tower's half of each tower here; gradient flows back to where it came from."""
        ...

    def collect(self, halves: Sequence[Tensor]) -> Tensor:
        """The whole of the logits [B, classes], tower 0's half first; each process computes the same loss."""
        ...


class _Pack(torch.autograd.Function):
    """To half precision, and the gradient back from it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.dtype = x.dtype
        return x.half()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].to(ctx.dtype) / len(grads[0])


class _Unpack(torch.autograd.Function):
    """From half precision, and the gradient to it, as the sum over the batch that 2012 sent (layer_kernels.cu:456).

    Gradients of the mean are smaller by the number of images, and many would fall below the 6e-8 of float16.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return (grads[0] * len(grads[0])).half(), None


def pack(x: Tensor, precision: str) -> Tensor:
    """Returns x as it crosses: itself, or in float16 for `half` (quantF, quantB of run 170-quant)."""
    packed: Tensor = _Pack.apply(x) if precision == "half" else x
    return packed


def unpack(x: Tensor, dtype: torch.dtype, precision: str) -> Tensor:
    """The inverse of `pack`, to rounding."""
    unpacked: Tensor = _Unpack.apply(x, dtype) if precision == "half" else x
    return unpacked


class InProcessExchange:
    """All towers live here, and the exchange is a swap of two list entries. Autograd adds the gradients.

    Also of a network of one tower, which never swaps.
    """

    def __init__(self, precision: str = "single") -> None:
        self.precision = precision

    def start(self, halves: Sequence[Tensor]) -> Flight:
        return Flight(list(halves))

    def finish(self, flight: Flight) -> list[Tensor]:
        first, second = (unpack(pack(x, self.precision), x.dtype, self.precision) for x in flight.own)
        return [second, first]

    def collect(self, halves: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(halves), dim=1)


class _Start(torch.autograd.Function):
    """forward: send x. backward: wait for the other tower's request for x, which autograd adds to the own one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, flight: Flight, link: Wire) -> Tensor:
        ctx.flight = flight
        flight.forward = link.swap(x)
        return x.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        flight, ctx.flight = ctx.flight, None
        assert flight.backward is not None
        return flight.backward.wait(), None, None


class _Finish(torch.autograd.Function):
    """forward: wait for the other half. backward: send its gradient, and return at once.

    Autograd runs the youngest node first, so this backward comes right after that of other(peer) and before that
    of own(x): the own gradients are computed while the requests travel.
    """

    @staticmethod
    def forward(ctx: Any, token: Tensor, flight: Flight, link: Wire) -> Tensor:
        ctx.flight, ctx.link = flight, link
        assert flight.forward is not None
        return flight.forward.wait()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        flight, ctx.flight = ctx.flight, None
        flight.backward = ctx.link.swap(grads[0])
        return grads[0].new_empty(0), None, None


class WireExchange:
    """One tower lives here; the other one is at the far end of `link` and makes the same calls."""

    def __init__(self, link: Wire, tower: int, logits_halves: tuple[int, ...], precision: str = "single") -> None:
        self.link, self.tower, self.logits_halves, self.precision = link, tower, logits_halves, precision

    def start(self, halves: Sequence[Tensor]) -> Flight:
        (x,) = halves
        flight = Flight([x])
        flight.token = _Start.apply(pack(x, self.precision), flight, self.link)
        return flight

    def finish(self, flight: Flight) -> list[Tensor]:
        peer = _Finish.apply(flight.token, flight, self.link)
        # The token leads to the graph and the graph to the flight. Python cannot see this circle and would never
        # free it.
        flight.token = None
        return [unpack(peer, flight.own[0].dtype, self.precision)]

    def collect(self, halves: Sequence[Tensor]) -> Tensor:
        (own,) = halves
        peer = self.link.swap(own.detach(), (own.shape[0], self.logits_halves[1 - self.tower])).wait()
        return torch.cat([own, peer] if self.tower == 0 else [peer, own], dim=1)
