"""What is wrong with a half that arrived, with what was sent back, and with the gradient that came of it.

The loss of a tower is sum(W * tanh(x A + peer B)). Of tower 0's half x0 the right gradient is the sum of two parts:

    own       what tower 0 itself asks of x0, through A
    request   what tower 1 asks of x0, through its B

and what tower 0 must send is `use`, its own gradient for peer. Whatever a wrong solution gives is named by the
factors with which these three are in it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grading.verdict import CALL_IT, ROUNDED, MistakeError, check_digits, is_cut, is_rounded, is_same, mix_of


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


def check_half(peer: Any, events: list[tuple[str, Any]], step: Step, before: Step | None) -> None:
    """Raises: MistakeError, if what `finish` returned is not the other tower's half.

    Args:
        events: what happened on the link in this forward pass.
    """
    if not isinstance(peer, Tensor):
        hint = CALL_IT if callable(peer) else "Return peer."
        raise MistakeError(f"finish returns {type(peer).__name__}, and not the other tower's half.", hint)
    check_digits(events, step.x, step.peer)
    found = peer.detach()
    if is_same(found, step.peer) and found.dtype == step.peer.dtype:
        return
    if is_same(found, step.x):
        raise MistakeError("finish returns this tower's own half x.", "wait() returns that of the other tower.")
    if before is not None and is_same(found, before.peer):
        raise MistakeError(
            "finish returns the half of the step before.", "A buffer is stale: what came in this step was not taken."
        )
    if is_cut(found, step.peer):
        raise MistakeError(
            "The half that finish returns is rounded.", f"What crosses is not: all digits of {step.peer.dtype} came."
        )
    if found.shape == step.peer.shape and not found.any():
        raise MistakeError("finish returns zeros.", "Call wait(), and return what it returns.")
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
    (2.0, 1.0, 0.0): (
        "Your own use of your half is counted twice.",
        "Autograd adds that by itself: return only what came.",
    ),
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
    if is_same(sent[0], step.use):
        if sent[0].dtype != step.use.dtype:
            raise MistakeError(ROUNDED, "The gradient is sent in another dtype.")
        return
    for factor, what in ((0.5, "halved"), (2.0, "doubled"), (-1.0, "negated"), (0.0, "replaced by zeros")):
        if is_same(sent[0], factor * step.use):
            name = f"The gradient that you send back is {what}."
            raise MistakeError("You averaged where the halves' gradients must be summed." if factor == 0.5 else name)
    if is_rounded(sent[0], step.use):
        raise MistakeError(ROUNDED, "The gradient is sent with fewer digits.")
    if is_same(sent[0], step.peer) or is_same(sent[0], step.x):
        raise MistakeError("An activation is sent back where a gradient is due.", "Send grad_peer.")
    raise MistakeError("What you send back is not the gradient of the half that you received.", "Send grad_peer.")


def check_gradient(found: Tensor | None, events: list[tuple[str, Any]], step: Step) -> None:
    """Raises: MistakeError, if the gradient of x is not own + request.

    Args:
        events: what happened on the link in this backward pass.
    """
    parts = [step.own, step.request]
    if step.use.shape == step.own.shape:
        parts.append(step.use)
    mix = mix_of(torch.zeros_like(step.own) if found is None else found, parts)
    mix = None if mix is None else (*mix, 0.0)[:3]
    if mix == RIGHT:
        return
    if mix is None:
        if found is not None and is_rounded(found, step.own + step.request):
            check_digits(events, step.use, step.request)
            raise MistakeError(
                "The gradient that you return for x is rounded.",
                f"What crosses is not: all digits of {step.request.dtype} came.",
            )
        raise MistakeError(
            "The gradient of x is not the sum of what both towers ask of it.", "Is it that of another step?", True
        )
    if mix in MIXES:
        raise MistakeError(*MIXES[mix], may_follow=True)
    raise MistakeError(
        f"The gradient of x is {mix[0]:g} times your own use and {mix[1]:g} times what the other tower asks.",
        "Both must count once.",
        may_follow=True,
    )


def check_order(events: list[tuple[str, Any]]) -> None:
    """Whether the backward pass computes while gradients travel. Raises: MistakeError."""
    kinds = [kind for kind, _ in events]
    if kinds.index("post") > kinds.index("own backward"):
        raise MistakeError(
            "The gradient of peer is sent only after own(x) has gone backward.",
            "Send it in finish's backward. It runs before that of own(x): of the nodes that are ready, autograd runs "
            "the youngest first, and finish was called after own(x).",
        )
    if kinds.index("wait") < kinds.index("own backward"):
        raise MistakeError(
            "finish's backward waits for the other tower's gradient.",
            "The result is right, and nothing overlaps: leave what waits in the flight, for start's backward.",
        )
