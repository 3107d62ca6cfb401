"""Silent errors of model parallelism: each a few lines that spoil the real code of this project, and no loss tells.

`catch.py` trains with each of them and says which of the project's checks find it. An error is put in by replacing
a function or two, or a value, in both processes or in that of tower 1 alone, while training lasts.
"""

import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from twotower.data import feed
from twotower.data.augment import Changes, draw_changes
from twotower.distributed import exchange
from twotower.distributed.exchange import Flight, WireExchange
from twotower.distributed.transport import Link, Swap
from twotower.distributed.world import World
from twotower.ground.random_streams import torch_stream
from twotower.model.layers import Dropout, LocalResponseNorm, ReadBothConv2d, ReadBothLinear
from twotower.training import trainer
from twotower.training.identity import count_steps
from twotower.training.optim import VelocitySGD


@dataclass(frozen=True)
class SilentError:
    """`inject(replace, world)` puts it in; `replace(owner, name, new)` lasts until the stack of `put_in` closes."""

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


def put_in(stack: ExitStack, error: SilentError | None, world: World) -> None:
    """Puts an error in until the stack closes; None: nothing."""

    def replace(owner: Any, name: str, new: Any) -> None:
        stack.enter_context(mock.patch.object(owner, name, new))

    if error is not None:
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


@silent_error("the gradient of the received half never reaches its tower: sliced, where it must be summed")
def no_gradient_back(replace: Any, world: World) -> None:
    """The same as an all-gather whose backward takes the own slice of the own gradient; a test shows it."""
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


@silent_error("of large tensors the end does not arrive: nothing beyond 24 KiB")
def large_tensors_cut(replace: Any, world: World) -> None:
    def swap(self: Link, mine: Tensor, shape: Any = None) -> Swap:
        swapped = SWAP(self, mine, shape)

        def arrive() -> Tensor:
            came = swapped.wait()
            in_order = came if came.is_contiguous() else came.permute(0, 2, 3, 1)
            in_order.view(-1)[(24 << 10) // came.element_size() :] = 0
            return came

        return Swap(arrive)

    replace(Link, "swap", swap)


# The order in which it crosses. Both lead to a deadlock elsewhere: with larger layers, and over NCCL.


@dataclass
class Socket:
    """A way to the other tower whose sends return once the bytes are in its buffers, as small ones of MPI do."""

    link: Link
    ends: list[socket.socket] = field(default_factory=list)

    def open(self) -> socket.socket:
        if not self.ends and self.link.tower == 0:
            with socket.create_server(("127.0.0.1", 0)) as server:
                self.link.check_in([server.getsockname()[1]])
                self.ends.append(server.accept()[0])
        elif not self.ends:
            self.ends.append(socket.create_connection(("127.0.0.1", self.link.check_in([0])[0])))
        return self.ends[0]

    def post(self, mine: Tensor, theirs: Tensor) -> Callable[[], None]:
        end = self.open()
        end.settimeout(2.0)
        try:
            end.sendall(mine.view(torch.uint8).numpy())
        except OSError as error:
            self.ends.pop().close()
            raise self.link.lost(TimeoutError("timeout")) from error
        came = theirs.view(torch.uint8).view(-1)
        return lambda: self.receive(end, came)

    def receive(self, end: socket.socket, came: Tensor) -> None:
        end.settimeout(self.link.timeout)
        while len(came):
            came = came[end.recv_into(came.numpy()) :]


@silent_error("both towers send before they receive, which goes on while the buffers between them hold what is sent")
def both_send_first(replace: Any, world: World) -> None:
    """Over a socket, as gloo has no such buffers: two of its blocking sends that face each other wait at once."""
    way = Socket(world.link)
    replace(Link, "_post", lambda self, mine, theirs: way.post(mine, theirs))


@silent_error("tower 1 swaps in another order than tower 0, and gloo finds what belongs together by its tags")
def other_order(replace: Any, world: World) -> None:
    """A half crosses in two parts. NCCL has no tags: there one tower's first part would meet the other's last."""

    def swap(self: Link, mine: Tensor, shape: Any = None) -> Swap:
        if mine.dim() != 4:
            return SWAP(self, mine, shape)
        parts = dict(enumerate((mine[:1], mine[1:])))
        swaps = {part: SWAP(self, parts[part]) for part in ((1, 0) if self.tower else (0, 1))}
        layout = self.memory_format
        return Swap(lambda: torch.cat([swaps[0].wait(), swaps[1].wait()]).contiguous(memory_format=layout))

    replace(Link, "swap", swap)
    replace(Link, "_post", lambda self, mine, theirs: self._gloo(mine, theirs, 2 + len(mine)))


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


@silent_error("tower 1 cuts and mirrors its images by draws of its own")
def other_images(replace: Any, world: World) -> None:
    def draw(*settings: Any, seed: int, **place: Any) -> Changes:
        return draw_changes(*settings, seed=seed + world.tower, **place)

    replace(feed, "draw_changes", draw)


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
    calls = [0]

    def finish(self: WireExchange, flight: Flight) -> list[Tensor]:
        (peer,) = FINISH(self, flight)
        if not torch.is_grad_enabled():
            return [peer]
        place, calls[0] = calls[0] % 4, calls[0] + 1
        if place < 2:  # conv3 and fc6; after them come fc7 and fc8, which read units that were dropped
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
    replace(trainer, "count_steps", lambda config, per_epoch: count_steps(config, per_epoch) + world.tower)
