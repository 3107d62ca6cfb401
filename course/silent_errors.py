"""Silent errors of model parallelism: each a few lines that spoil the real code of this project, and no loss tells.

`catch.py` trains with each of them and says which of the project's checks find it. An error is put in by replacing
a function or two, or a value, in both processes or in that of tower 1 alone, while training lasts.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from twotower.distributed import exchange
from twotower.distributed.exchange import Flight, WireExchange
from twotower.distributed.transport import Link, Swap
from twotower.distributed.world import World
from twotower.ground.random_streams import torch_stream
from twotower.model.layers import Dropout, LocalResponseNorm, ReadBothConv2d, ReadBothLinear
from twotower.training.optim import VelocitySGD


@dataclass(frozen=True)
class SilentError:
    """`inject(replace, world)` puts it in; `replace(owner, name, new)` lasts until training is over."""

    name: str
    title: str
    inject: Callable[[Callable[..., None], World], None]


ERRORS: list[SilentError] = []


def silent_error(title: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Enters a function in the list; its name is that of the error."""

    def enter(inject: Callable[..., None]) -> Callable[..., None]:
        ERRORS.append(SilentError(inject.__name__, title, inject))
        return inject

    return enter


def put_in(stack: ExitStack, error: SilentError, world: World) -> None:
    """Puts an error in until the stack closes."""

    def replace(owner: Any, name: str, new: Any) -> None:
        stack.enter_context(mock.patch.object(owner, name, new))

    error.inject(replace, world)


# The gradient that should cross back. Each function of autograd is replaced as a whole: there is not much in it.

START, FINISH, COLLECT = WireExchange.start, WireExchange.finish, WireExchange.collect
SWAP, AT_STEP, SET_RATE, NORM = Link.swap, Dropout.at_step, VelocitySGD.set_rate, LocalResponseNorm.forward
DROPOUT_INIT, DROPOUT = Dropout.__init__, Dropout.forward


def times(factor: float, grads_of: str) -> Any:
    """WireExchange.start whose half gets `factor` times its gradient: the request's, or that of both uses."""

    def start(self: WireExchange, halves: Any) -> Flight:
        (x,) = halves
        if grads_of == "both" and x.requires_grad:
            x.register_hook(lambda grad: factor * grad)
        return START(self, [x])

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        flight, ctx.flight = ctx.flight, None
        return factor * flight.backward.wait(), None, None

    return start if grads_of == "both" else staticmethod(backward)


@silent_error("the gradient of the received half never reaches its tower")
def no_gradient_back(replace: Any, world: World) -> None:
    replace(exchange._Start, "backward", times(0.0, "request"))


@silent_error("it overwrites the own gradient, where it must be added")
def gradient_overwritten(replace: Any, world: World) -> None:
    def start(self: WireExchange, halves: Any) -> Flight:
        flight = START(self, halves)
        flight.own = [x.detach() for x in flight.own]
        return flight

    replace(WireExchange, "start", start)


@silent_error("the gradients of both uses are averaged, where they must be summed")
def gradients_averaged(replace: Any, world: World) -> None:
    replace(WireExchange, "start", times(0.5, "both"))


@silent_error("the other tower's request is counted twice")
def request_counted_twice(replace: Any, world: World) -> None:
    replace(exchange._Start, "backward", times(2.0, "request"))


@silent_error("the logits' gradients of both towers are summed, where each has the whole loss")
def logits_gradient_summed(replace: Any, world: World) -> None:
    def collect(self: WireExchange, halves: Any) -> Tensor:
        (own,) = halves
        if own.requires_grad:
            own.register_hook(lambda grad: grad + grad)
        return COLLECT(self, [own])

    replace(WireExchange, "collect", collect)


@silent_error("layers below conv3 of tower 1 are cut off from the loss")
def tower_cut_off(replace: Any, world: World) -> None:
    def start(self: WireExchange, halves: Any) -> Flight:
        (x,) = halves
        if self.tower == 1 and x.requires_grad and x.dim() == 4:
            x.register_hook(torch.zeros_like)
        return START(self, [x])

    replace(WireExchange, "start", start)


# What crosses.


@silent_error("a stale buffer: layers read the other tower's half of the step before")
def stale_half(replace: Any, world: World) -> None:
    kept: dict[int, Tensor] = {}
    calls = [0]

    def finish(self: WireExchange, flight: Flight) -> list[Tensor]:
        (peer,) = FINISH(self, flight)
        if not torch.is_grad_enabled():
            return [peer]
        place, calls[0] = calls[0] % 4, calls[0] + 1  # four layers of the network read both towers
        late = kept.get(place, peer).detach()
        kept[place] = peer.detach()
        return [peer + (late - peer).detach()]

    replace(WireExchange, "finish", finish)


@silent_error("what crosses is rounded to bfloat16")
def rounded_on_the_way(replace: Any, world: World) -> None:
    replace(Link, "swap", lambda self, mine, shape=None: SWAP(self, mine.bfloat16().to(mine.dtype), shape))


@silent_error("tower 1 reads the bytes in another order than they were sent in (NCHW for NHWC)")
def order_of_bytes(replace: Any, world: World) -> None:
    formats = (torch.channels_last, torch.contiguous_format)
    replace(world.link, "memory_format", formats[world.tower])


@silent_error("of large tensors the end does not arrive: nothing beyond 8 MiB")
def large_tensors_cut(replace: Any, world: World) -> None:
    def swap(self: Link, mine: Tensor, shape: Any = None) -> Swap:
        swapped = SWAP(self, mine, shape)

        def arrive() -> Tensor:
            came = swapped.wait()
            if came.dim() == 1:
                came[(8 << 20) // came.element_size() :] = 0
            elif came.numel() * came.element_size() > 8 << 20:
                came.view(-1)[(8 << 20) // came.element_size() :] = 0
            return came

        return Swap(arrive)

    replace(Link, "swap", swap)


# What a layer computes from both halves.


@silent_error("the fully-connected layers of tower 1 read the halves in swapped order")
def halves_swapped(replace: Any, world: World) -> None:
    if world.tower == 1:
        replace(ReadBothLinear, "own", lambda self, x: F.linear(x, self.weight_other, self.bias))
        replace(ReadBothLinear, "other", lambda self, peer, y: y + F.linear(peer, self.weight_own))


@silent_error("the bias of a layer that reads both towers is added to each half")
def bias_added_twice(replace: Any, world: World) -> None:
    conv, linear = ReadBothConv2d.other, ReadBothLinear.other
    replace(ReadBothConv2d, "other", lambda self, peer, y: conv(self, peer, y + self.bias[:, None, None]))
    replace(ReadBothLinear, "other", lambda self, peer, y: linear(self, peer, y + self.bias))


@silent_error("the response norm runs across the cut between the towers")
def norm_across_the_cut(replace: Any, world: World) -> None:
    def forward(self: LocalResponseNorm, x: Tensor) -> Tensor:
        peer = world.link.swap(x).wait()
        whole = torch.cat([x, peer] if world.tower == 0 else [peer, x], dim=1)
        both = LocalResponseNorm(whole.shape[1], self.n, self.k, self.scale, False, self.beta).to(x.dtype)
        return NORM(both, whole).chunk(2, dim=1)[world.tower]

    replace(LocalResponseNorm, "forward", forward)


@silent_error("dropout of tower 1 does not scale at test")
def test_not_scaled(replace: Any, world: World) -> None:
    if world.tower == 1:
        replace(Dropout, "forward", lambda self, x: DROPOUT(self, x) if self.training else x)


# What is drawn.


@silent_error("tower 1 sees its images mirrored")
def other_images(replace: Any, world: World) -> None:
    import catch

    draw = catch.draw_batch
    if world.tower == 1:
        replace(catch, "draw_batch", lambda: (draw()[0].flip(3), draw()[1]))


@silent_error("both towers start from the same weights")
def weights_alike(replace: Any, world: World) -> None:
    from twotower.model import tower

    replace(tower, "torch_stream", lambda what, seed, number, layer: torch_stream(what, seed, 0, layer))


@silent_error("both towers drop the same units")
def one_mask_for_both(replace: Any, world: World) -> None:
    def init(self: Dropout, keep: float, seed: int, tower: int, layer: str, rescale: bool = False) -> None:
        DROPOUT_INIT(self, keep, seed, 0, layer, rescale)

    replace(Dropout, "__init__", init)


@silent_error("the receiver draws a mask of its own for units that the sender has dropped already")
def second_mask(replace: Any, world: World) -> None:
    def finish(self: WireExchange, flight: Flight) -> list[Tensor]:
        (peer,) = FINISH(self, flight)
        if not torch.is_grad_enabled() or peer.shape[1] != 128:  # the units of fc6 and fc7
            return [peer]
        draw = torch.Generator().manual_seed(self.tower)
        return [peer * (torch.rand(peer.shape, generator=draw) < 0.5)]

    replace(WireExchange, "finish", finish)


@silent_error("the same units are dropped at every step")
def mask_of_step_0(replace: Any, world: World) -> None:
    replace(Dropout, "at_step", lambda self, step, rows, batch: AT_STEP(self, 0, rows, batch))


# What is updated.


@silent_error("tower 1 learns at half the rate")
def other_rate(replace: Any, world: World) -> None:
    if world.tower == 1:
        replace(VelocitySGD, "set_rate", lambda self, rate: SET_RATE(self, rate / 2))


@silent_error("tower 1 is never updated")
def one_tower_not_updated(replace: Any, world: World) -> None:
    def step(self: VelocitySGD) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    if world.tower == 1:
        replace(VelocitySGD, "step", step)


@silent_error("tower 1 takes one step more than tower 0, and waits in it for ever")
def one_step_more(replace: Any, world: World) -> None:
    """Last of all, because nothing can cross any more after it."""
    import catch

    replace(catch, "ADDITIONAL_STEPS", world.tower)
