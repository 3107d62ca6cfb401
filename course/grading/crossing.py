"""Assignments 1 and 3: a half that crosses, and its gradient that crosses back."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from grading.gradients import NOT_SENT, Step, check_gradient, check_half, check_order, check_sent
from grading.threads import Link, NothingCameError, WrongShapeError, run_both
from grading.verdict import MistakeError, is_same

IMAGES, UNITS, STEPS = 4, 3, 2
WIDTHS = ((5, 5), (5, 3))  # of the halves of towers 0 and 1: first alike, so that parts can be told from each other


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
            step = Step(
                x, peer, normal(x.shape[1], UNITS), normal(peer.shape[1], UNITS), normal(IMAGES, UNITS), x, x, x
            )
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
                "own(x) is computed only after that, so nothing overlaps. Leave what waits in the flight, for "
                "finish to call.",
            )
        y = own(x)
        return y, module.finish(*found)

    return way


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
            "Forward, peer has another width than x. Backward it is the other way round: you send a gradient of "
            "peer's shape, and one of x's shape comes.",
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
            "The values come in the order of forward's arguments: that of the tensor first, None for the others.",
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
