"""Assignments 1 and 3: a half that crosses, and its gradient that crosses back."""

import re
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from grading.counts import find_surplus, name_waiting
from grading.gradients import NOT_SENT, Step, check_gradient, check_half, check_order, check_sent
from grading.threads import Link, NothingCameError, WrongShapeError, run_both
from grading.verdict import CALL_IT, MistakeError, is_same

# Gives a module of its own for each tower, anew at each call.
LoadBoth = Callable[[], Sequence[ModuleType]]

IMAGES, UNITS, STEPS = 4, 3, 2
SENT_BACK = "One is enough: grad_peer."
HINTS = {"forward": "x is on its way already when finish is called, which has only to wait.", "backward": SENT_BACK}
HINTS_IN_TWO = {"forward": "start sends x, and finish has only to wait.", "backward": SENT_BACK}
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
            both = f" of {' and '.join(type(one).__name__ for one in found)}" if isinstance(found, tuple) else ""
            raise MistakeError(
                f"start must return two things, token and flight; it returned {type(found).__name__}{both}.",
                "The token comes first, and is a tensor: return token, flight.",
            )
        link.events.append(("token", found[0]))
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


def train_steps(
    ways: Sequence[Way], steps: list[list[Step]], in_two: bool, links: dict[int, Link]
) -> Callable[[Link], None]:
    """What a tower does; every check that needs no other tower is made on the spot."""

    def body(link: Link) -> None:
        links[link.tower] = link
        came = []
        for number, step in enumerate(steps[link.tower]):
            link.events.append(("forward", None))
            begun = len(link.events)
            leaf = step.x.clone().requires_grad_()
            x = leaf * 1.0
            shape = tuple(step.peer.shape)
            y, peer = ways[link.tower](x, shape, link, lambda x, step=step: Mark.apply(x @ step.to_own, link))
            before = steps[link.tower][number - 1] if number else None
            check_half(peer, link.events[begun:], step, before)
            if not is_same(x.detach(), step.x):
                raise MistakeError("x is changed in place.", "It is on its way to the other tower at that moment.")
            came.append(peer)
            link.events.append(("peer", peer))
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
            check_gradient(leaf.grad, events, step)
            if in_two:
                check_order(events)
        if not is_same(came[0].detach(), steps[link.tower][0].peer):
            raise MistakeError(
                "The half of the first step has changed when that of the second came.",
                "Both are in one buffer, which autograd may still need.",
            )

    return body


def name_error(error: Exception, links: Mapping[int, Link]) -> MistakeError | None:
    """The mistake behind an error of the link or of autograd; None if it is the reader's own."""
    if isinstance(error, NothingCameError):
        return name_waiting(links)
    if isinstance(error, WrongShapeError):
        return MistakeError(
            f"You awaited a tensor of {list(error.expected)}, and one of {list(error.came)} came.",
            "Forward, peer has another width than x. Backward it is the other way round: you send a gradient of "
            "peer's shape, and one of x's shape comes.",
        )
    text = str(error)
    kept = any(_count(link, "post") > _count(link, "await") for link in links.values())
    if kept and isinstance(error, RuntimeError | TypeError | AttributeError) and IS_FUNCTION.search(text):
        return MistakeError("A function stands where a tensor is due.", CALL_IT)
    if not isinstance(error, RuntimeError):
        return None
    if wrong := WRONG_SHAPE.search(text):
        return name_shape(*wrong.groups(), links)
    if "incorrect number of gradients" in text:
        return MistakeError(
            "backward returns another number of values than forward has arguments.",
            "One for each: the gradient of a tensor, and None for what is no tensor.",
        )
    if "a gradient different than None" in text:
        return MistakeError(
            "backward returns a gradient for an argument that is no tensor.",
            "The values come in the order of forward's arguments: that of the tensor first, None for the others.",
        )
    return None


def _count(link: Link, event: str) -> int:
    return sum(kind == event for kind, _ in link.events)


# As torch says them.
IS_FUNCTION = re.compile(r"(?:got |not |')(?:function|method|functools\.partial)\b")
WRONG_SHAPE = re.compile(r"unction (\w+) returned an invalid gradient at index 0 - got (\[.*?\]) .* (\[.*?\])")


def name_shape(node: str, got: str, expected: str, links: Mapping[int, Link]) -> MistakeError:
    """Whose gradient has a wrong shape: that of x, or the one that finish's backward returns for the token."""
    events = [event for link in links.values() for event in link.events]
    has_token = any(kind == "token" for kind, _ in events)
    if has_token and any(kind == "peer" and type(peer.grad_fn).__name__ == node for kind, peer in events):
        return MistakeError(
            f"The gradient that finish's backward returns for the token is {got}, and the token is {expected}.",
            "It carries no numbers, but it must have the token's shape. Is the token x itself? Make it one of its "
            "own in start's Function, e.g. x.new_empty(0).",
        )
    return MistakeError(
        f"The gradient that you return for x has not the shape of x: it is {got}, and x is {expected}.",
        "grad_peer has the shape of peer; it is for the other tower. What comes from there has that of x.",
    )


def run_and_name(
    body: Callable[[Link], Any],
    links: Mapping[int, Link],
    hints: Mapping[str, str],
    name: Callable[[Exception, Mapping[int, Link]], MistakeError | None] = name_error,
) -> None:
    """Runs both towers. Raises: MistakeError; or what the reader's code raises, if it has no name.

    What is sent or awaited too often is named first, even where all numbers are right.
    """
    try:
        run_both(body)
    except (MistakeError, NothingCameError, WrongShapeError) as error:
        mistake = find_surplus(links, hints)
        if mistake is None and isinstance(error, MistakeError):
            raise
        raise mistake or name(error, links) or error from error
    except Exception as error:
        raise name(error, links) or error from error
    mistake = find_surplus(links, hints)
    if mistake is not None:
        raise mistake


def grade(load_both: LoadBoth, in_two: bool = False) -> str:
    """What is said of a solution that is right. Raises: MistakeError, or what the solution itself raises."""
    for widths in WIDTHS:
        links: dict[int, Link] = {}
        ways = [cross_in_two(module) if in_two else cross_once(module) for module in load_both()]
        body = train_steps(ways, draw_steps(widths), in_two, links)
        run_and_name(body, links, HINTS_IN_TWO if in_two else HINTS)
    said = "halves arrive, gradients go back and are summed, for halves of equal and of unequal width."
    return f"{said} In both passes own(x) is computed while they travel." if in_two else said


def grade_in_two(load_both: LoadBoth) -> str:
    """As `grade`, for assignment 3."""
    return grade(load_both, in_two=True)
