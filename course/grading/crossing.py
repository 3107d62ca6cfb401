"""Assignments 1 and 3: a half that crosses, and its gradient that crosses back.

The loss of a tower is sum(W * tanh(x A + peer B)). Of tower 0's half x0 the right gradient is the sum of two parts:

    own       what tower 0 itself asks of x0, through A
    request   what tower 1 asks of x0, through its B

and what tower 0 must send is `use`, its own gradient for peer. Whatever a wrong solution gives is named by the
factors with which these three are in it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from grading.threads import Link, NothingCameError, WrongShapeError, run_both
from grading.verdict import MistakeError, is_rounded, is_same, mix_of

IMAGES, UNITS, STEPS = 4, 3, 2
WIDTHS = ((5, 5), (5, 3))  # of the halves of towers 0 and 1: first alike, so that parts can be told from each other


@dataclass
class Step:
    """One step of one tower: what it is given, and what is right."""

    x: Tensor  # [IMAGES, C]
    peer: Tensor  # [IMAGES, P]
    to_own: Tensor  # A, [C, UNITS]
    to_other: Tensor  # B, [P, UNITS]
    weights: Tensor  # W, [IMAGES, UNITS]
    own: Tensor
    use: Tensor
    request: Tensor

    def lose(self, own_sum: Tensor, peer: Tensor) -> Tensor:
        return (self.weights * (own_sum + peer @ self.to_other).tanh()).sum()


def draw_steps(widths: tuple[int, int]) -> list[list[Step]]:
    """steps[tower][step]."""
    draw = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    steps: list[list[Step]] = [[], []]
    for _ in range(STEPS):
        halves = [normal(IMAGES, width) for width in widths]
        for tower in (0, 1):
            x, peer = halves[tower], halves[1 - tower]
            step = Step(x, peer, normal(x.shape[1], UNITS), normal(peer.shape[1], UNITS), normal(IMAGES, UNITS), x, x, x)
            leaves = x.clone().requires_grad_(), peer.clone().requires_grad_()
            step.own, step.use = torch.autograd.grad(step.lose(leaves[0] @ step.to_own, leaves[1]), leaves)
            steps[tower].append(step)
        for tower in (0, 1):
            steps[tower][-1].request = steps[1 - tower][-1].use
    return steps


class Mark(torch.autograd.Function):
    """Notes in the events of a link when own(x) goes backward."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, link: Link) -> Tensor:
        ctx.link = link
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.link.events.append(("own backward", None))
        return grads[0], None


# x, the awaited shape, the link, own(x) -> own(x), peer; in the order of the assignment
Way = Callable[[Tensor, tuple[int, ...], Link, Callable[[Tensor], Tensor]], tuple[Tensor, Any]]


def cross_once(module: ModuleType) -> Way:
    """As assignment 1 has it."""

    def way(x: Tensor, shape: tuple[int, ...], link: Link, own: Callable[[Tensor], Tensor]) -> tuple[Tensor, Any]:
        wait = link.post(x, shape)
        y = own(x)
        return y, module.finish(x, wait, link)

    return way


def cross_in_two(module: ModuleType) -> Way:
    """As assignment 3 has it."""

    def way(x: Tensor, shape: tuple[int, ...], link: Link, own: Callable[[Tensor], Tensor]) -> tuple[Tensor, Any]:
        begun = len(link.events)
        found = module.start(x, link, shape)
        if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Tensor)):
            raise MistakeError(f"start must return two things, token and flight; it returned {type(found).__name__}.")
        happened = [kind for kind, _ in link.events[begun:]]
        if "post" not in happened:
            raise MistakeError(
                "start does not send x.", "The half must be on its way before own(x) is computed: call link.post."
            )
        if "wait" in happened:
            raise MistakeError(
                "start waits for the other half.",
                "own(x) is computed only after that, so nothing overlaps. Leave what waits in the flight; finish calls "
                "it.",
            )
        y = own(x)
        return y, module.finish(*found)

    return way


def check_half(peer: Any, step: Step, before: Step | None) -> None:
    """Raises: MistakeError, if what `finish` returned is not the other tower's half."""
    if not isinstance(peer, Tensor):
        raise MistakeError(f"finish returns {type(peer).__name__}, and not the other tower's half.", "Return peer.")
    found = peer.detach()
    if is_same(found, step.peer) and found.dtype == step.peer.dtype:
        return
    if is_same(found, step.x):
        raise MistakeError("finish returns this tower's own half x.", "The other tower's half is what wait() returns.")
    if before is not None and is_same(found, before.peer):
        raise MistakeError(
            "finish returns the half of the step before.", "A buffer is stale: what came in this step was not taken."
        )
    if is_rounded(found, step.peer) or found.dtype != step.peer.dtype:
        raise MistakeError(
            "What crosses is rounded on its way.", f"{step.peer.dtype} was sent and must arrive, to the last digit."
        )
    if found.shape == step.peer.shape and not found.any():
        raise MistakeError("finish returns zeros.", "The half never arrived: wait() must be called, and its result returned.")
    if tuple(found.shape) != tuple(step.peer.shape):
        raise MistakeError(f"finish returns {list(found.shape)}, and peer is {list(step.peer.shape)}.")
    if is_same(found, (step.x + step.peer) / 2) or is_same(found, step.x + step.peer):
        raise MistakeError("finish mixes both halves.", "own(x) has its own weights; peer must come as it was sent.")
    raise MistakeError("finish returns something that is not the other tower's half.")


NOT_SENT = "The gradient of the half that you received is not sent back."
MIXES = {
    (1.0, 0.0, 0.0): (
        "You drop the gradient that the other tower sends you.",
        "It is the gradient of its use of your half: return it for x.",
    ),
    (0.0, 1.0, 0.0): (
        "The gradient of your half is overwritten by what the other tower asks, where the two must be added.",
        "Both towers have used x. Return only what came, and let autograd add.",
    ),
    (0.5, 0.5, 0.0): (
        "You averaged where the halves' gradients must be summed.",
        "An average is for replicas, which see different images. Here x was used twice in one network.",
    ),
    (1.0, 0.5, 0.0): (
        "You averaged where the halves' gradients must be summed.",
        "What the other tower asks of x counts fully, and you halve it.",
    ),
    (1.0, 2.0, 0.0): ("What the other tower asks of your half is counted twice.", "Autograd adds it once by itself."),
    (2.0, 2.0, 0.0): ("Every gradient of your half is counted twice.", ""),
    (2.0, 1.0, 0.0): ("Your own use of your half is counted twice.", "Autograd adds that by itself: return only what came."),
    (1.0, -1.0, 0.0): ("What the other tower asks of your half is subtracted.", "It must be added."),
    (1.0, 0.0, 1.0): (
        "You return the gradient of the half that you received as if it were that of your own half.",
        "grad_peer belongs to the other tower: send it there, and return what comes from there.",
    ),
    (1.0, 1.0, 1.0): (
        "You add the gradient of the half that you received to that of your own half.",
        "Return only what comes from the other tower. grad_peer is a gradient of ITS half.",
    ),
}
RIGHT = (1.0, 1.0, 0.0)


def check_sent(events: list[tuple[str, Any]], step: Step) -> None:
    """What went over the link in the backward pass. Raises: MistakeError."""
    sent = [tensor for kind, tensor in events if kind == "post"]
    if not sent:
        raise MistakeError(NOT_SENT, "The other tower computed that half, and never learns what you ask of it.")
    if len(sent) > 1:
        raise MistakeError(f"{len(sent)} tensors are sent in the backward pass of one swap.", "One is enough: grad_peer.")
    if is_same(sent[0], step.use):
        if sent[0].dtype != step.use.dtype:
            raise MistakeError("What crosses is rounded on its way.", "The gradient is sent in another dtype.")
        return
    for factor, what in ((0.5, "halved"), (2.0, "doubled"), (-1.0, "negated"), (0.0, "replaced by zeros")):
        if is_same(sent[0], factor * step.use):
            name = f"The gradient that you send back is {what}."
            raise MistakeError("You averaged where the halves' gradients must be summed." if factor == 0.5 else name)
    if is_rounded(sent[0], step.use):
        raise MistakeError("What crosses is rounded on its way.", "The gradient is sent with fewer digits.")
    if is_same(sent[0], step.peer) or is_same(sent[0], step.x):
        raise MistakeError("An activation is sent back where a gradient is due.", "Send grad_peer.")
    raise MistakeError("What you send back is not the gradient of the half that you received.", "Send grad_peer.")


def check_gradient(found: Tensor | None, step: Step) -> None:
    """Raises: MistakeError, if the gradient of x is not own + request."""
    parts = [step.own, step.request]
    if step.use.shape == step.own.shape:
        parts.append(step.use)
    mix = mix_of(torch.zeros_like(step.own) if found is None else found, parts)
    mix = None if mix is None else (*mix, 0.0)[:3]
    if mix == RIGHT:
        return
    if mix is None:
        if found is not None and is_rounded(found, step.own + step.request):
            raise MistakeError("What crosses is rounded on its way.", "The gradient comes back with fewer digits.")
        raise MistakeError(
            "The gradient of x is not the sum of what both towers ask of it.", "Is it that of another step, or tensor?"
        )
    if mix in MIXES:
        raise MistakeError(*MIXES[mix])
    raise MistakeError(
        f"The gradient of x is {mix[0]:g} times your own use and {mix[1]:g} times what the other tower asks.",
        "Both must count once.",
    )


def check_order(events: list[tuple[str, Any]]) -> None:
    """Whether the backward pass computes while gradients travel. Raises: MistakeError."""
    kinds = [kind for kind, _ in events]
    if kinds.index("post") > kinds.index("own backward"):
        raise MistakeError(
            "The gradient of peer is sent only after own(x) has gone backward.",
            "Send it in finish's backward, which runs first because finish was called last.",
        )
    if kinds.index("wait") < kinds.index("own backward"):
        raise MistakeError(
            "finish's backward waits for the other tower's gradient.",
            "The result is right, and nothing overlaps: leave what waits in the flight, and call it in start's backward.",
        )


def train_steps(way: Way, steps: list[list[Step]], in_two: bool, links: dict[int, Link]) -> Callable[[Link], None]:
    """What a tower does; every check that needs no other tower is made on the spot."""

    def body(link: Link) -> None:
        links[link.tower] = link
        came = []
        for number, step in enumerate(steps[link.tower]):
            link.events.clear()
            leaf = step.x.clone().requires_grad_()
            x = leaf * 1.0
            y, peer = way(x, tuple(step.peer.shape), link, lambda x, step=step: Mark.apply(x @ step.to_own, link))
            check_half(peer, step, steps[link.tower][number - 1] if number else None)
            if not is_same(x.detach(), step.x):
                raise MistakeError("x is changed in place.", "It is on its way to the other tower at that moment.")
            came.append(peer)
            if not peer.requires_grad:
                raise MistakeError(
                    NOT_SENT,
                    "What finish returns hangs on nothing in the graph, so its backward is never called."
                    + (" The token must need a gradient." if in_two else " Is it made by Finish.apply(x, ...)?"),
                )
            link.events.append(("backward", None))
            begun = len(link.events)
            step.lose(y, peer).backward()
            events = link.events[begun:]
            check_sent(events, step)
            check_gradient(leaf.grad, step)
            if in_two:
                check_order(events)
        if not is_same(came[0].detach(), steps[link.tower][0].peer):
            raise MistakeError(
                "The half of the first step has changed when that of the second came.",
                "Both are in one buffer, which autograd may still need.",
            )

    return body


def name_error(error: Exception, links: dict[int, Link]) -> MistakeError | None:
    """The mistake behind an error of the link or of autograd; None if it is the reader's own."""
    backward = any(("backward", None) in link.events for link in links.values())
    if isinstance(error, NothingCameError):
        counts = [sum(kind == "post" for kind, _ in link.events) for link in links.values()]
        if len(set(counts)) > 1:
            return MistakeError("One tower sends more often than the other.", "Both must make the same calls.")
        where = "In the backward pass" if backward else "In the forward pass"
        return MistakeError(
            f"{where} both towers wait, and neither has sent: they would wait for ever.",
            "A function that waits may be called once; for each tensor that comes, one must have been sent.",
        )
    if isinstance(error, WrongShapeError):
        return MistakeError(
            f"You awaited a tensor of {list(error.expected)}, and one of {list(error.came)} came.",
            "Forward, peer has another width than x. Backward it is the other way round: you send a gradient of peer's "
            "shape, and one of x's shape comes.",
        )
    text = str(error)
    if isinstance(error, RuntimeError) and "invalid gradient at index 0" in text:
        return MistakeError(
            "The gradient that you return for x has not the shape of x.",
            "grad_peer has the shape of peer; it is for the other tower. What comes from there has that of x.",
        )
    if isinstance(error, RuntimeError) and "incorrect number of gradients" in text:
        return MistakeError(
            "backward returns another number of values than forward has arguments.",
            "One for each: the gradient of a tensor, and None for what is no tensor.",
        )
    if isinstance(error, RuntimeError) and "a gradient different than None" in text:
        return MistakeError(
            "backward returns a gradient for an argument that is no tensor.",
            "The values come in the order of forward's arguments: first that of the tensor, then None for the others.",
        )
    return None


def grade(module: ModuleType, in_two: bool = False) -> str:
    """What is said of a solution that is right. Raises: MistakeError, or what the solution itself raises."""
    for widths in WIDTHS:
        links: dict[int, Link] = {}
        way = cross_in_two(module) if in_two else cross_once(module)
        try:
            run_both(train_steps(way, draw_steps(widths), in_two, links))
        except MistakeError:
            raise
        except Exception as error:
            mistake = name_error(error, links)
            if mistake is None:
                raise
            raise mistake from None
    said = "halves arrive, gradients go back and are summed, for halves of equal and of unequal width."
    return f"{said} In both passes own(x) is computed while they travel." if in_two else said
