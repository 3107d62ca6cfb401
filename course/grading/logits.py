"""Assignment 2: both towers see the whole logits, and each one's half gets the gradient of one loss."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from grading.crossing import LoadBoth, name_error, run_and_name
from grading.threads import Link, WrongShapeError
from grading.verdict import CALL_IT, MistakeError, check_digits, is_cut, is_rounded, is_same, mix_of

IMAGES = 4
HINTS = {"forward": "The other tower needs nothing but own."}
CASES = (4, 11)  # classes: halves of equal width, then of 6 and 5


def draw(num_classes: int) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """The towers' logits, the labels, and the right gradients of the towers' logits."""
    stream, first = torch.Generator().manual_seed(4), (num_classes + 1) // 2
    whole = torch.randn(IMAGES, num_classes, generator=stream, dtype=torch.float64).requires_grad_()
    labels = torch.randint(num_classes, (IMAGES,), generator=stream)
    (grad,) = torch.autograd.grad(F.cross_entropy(whole, labels), whole)
    cut = [first, num_classes - first]
    return list(whole.detach().split(cut, dim=1)), labels, list(grad.split(cut, dim=1))


def check_logits(found: object, halves: list[Tensor], link: Link) -> None:
    """Raises: MistakeError, if it is not tower 0's half and then that of tower 1."""
    if not isinstance(found, Tensor):
        hint = CALL_IT if callable(found) else ""
        raise MistakeError(f"collect returns {type(found).__name__}, and not the logits.", hint)
    tower = link.tower
    z, right = found.detach(), torch.cat(halves, dim=1)
    check_digits(link.events, halves[tower], halves[1 - tower])
    if is_same(z, right) and z.dtype == right.dtype:
        return
    if is_same(z, torch.cat(halves[::-1], dim=1)):
        raise MistakeError(
            f"Wrong order of the halves in tower {tower}: tower 1's come first.",
            "The towers then mean different classes by the same number, and the loss of each falls nevertheless. "
            "link.tower says which half is the first.",
        )
    if is_cut(z, right):
        raise MistakeError(
            f"The logits that collect returns are rounded to {str(z.dtype).removeprefix('torch.')}."
            if z.dtype != right.dtype
            else "The logits that collect returns are rounded.",
            f"What crosses is not: {right.dtype} came. A new tensor, as of torch.zeros, is float32 unless told.",
        )
    if is_same(z, torch.cat([halves[tower]] * 2, dim=1)):
        raise MistakeError(f"Tower {tower} has its own half twice.", "The other one is what link.swap returns.")
    if is_same(z, halves[tower]):
        raise MistakeError("collect returns this tower's half alone.", "A softmax needs the logits of all classes.")
    if tuple(z.shape) != tuple(right.shape):
        raise MistakeError(f"collect returns {list(z.shape)}, and the logits are {list(right.shape)}.")
    raise MistakeError("collect returns something that is not the logits of both towers.")


def check_gradient(found: Tensor | None, right: Tensor) -> None:
    """Raises: MistakeError, if it is not that of one loss."""
    if found is None or not found.any():
        raise MistakeError(
            "The own half gets no gradient.", "It was cut off, by detach or by sending; put the own tensor itself in."
        )
    mix = mix_of(found, [right])
    if mix == (1.0,):
        return
    if mix == (2.0,):
        raise MistakeError(
            "You summed the gradients of both processes, where each has computed the same loss.",
            "Everything is trained at twice the rate. Nothing has to cross in this backward pass.",
        )
    if mix == (0.5,):
        raise MistakeError("You halve the gradient of the logits.", "Each process has computed the whole loss.")
    if mix is not None:
        raise MistakeError(f"The gradient of the logits is {mix[0]:g} times that of the loss.")
    if is_rounded(found, right):
        raise MistakeError("The gradient of the own half is rounded.", "None has to cross in this backward pass.")
    raise MistakeError("The own half gets a gradient that is not its own.", "Is it that of the other classes?")


def check_towers(load_both: LoadBoth, num_classes: int, links: dict[int, Link]) -> Callable[[Link], None]:
    halves, labels, right = draw(num_classes)
    modules = load_both()

    def body(link: Link) -> None:
        links[link.tower] = link
        leaf = halves[link.tower].clone().requires_grad_()
        link.events.append(("forward", None))
        logits = modules[link.tower].collect(leaf * 1.0, link, num_classes)
        check_logits(logits, halves, link)
        if not logits.requires_grad:
            check_gradient(None, right[link.tower])
        link.events.append(("backward", None))
        F.cross_entropy(logits, labels).backward()
        check_gradient(leaf.grad, right[link.tower])
        if [kind for kind, _ in link.events][-1] != "backward":
            raise MistakeError(
                "A gradient crosses in the backward pass, and nobody needs it.",
                "The result is right. But each process has computed the whole loss, so it has its gradient already.",
            )

    return body


def name(error: Exception, links: Mapping[int, Link]) -> MistakeError | None:
    """As in the other assignments; but what comes has the width of the other tower's classes."""
    if isinstance(error, WrongShapeError):
        return MistakeError(
            f"You awaited a tensor of {list(error.expected)}, and one of {list(error.came)} came.",
            "The shape that you tell link.swap is that of what comes: [B, the number of the other tower's classes]. "
            "Of an odd number of classes tower 0 has one more.",
        )
    return name_error(error, links)


def grade(load_both: LoadBoth) -> str:
    """What is said of a solution that is right. Raises: MistakeError, or what the solution itself raises."""
    for num_classes in CASES:
        links: dict[int, Link] = {}
        run_and_name(check_towers(load_both, num_classes, links), links, HINTS, name)
    return "both towers see the same logits, of odd numbers of classes too, and each half gets its gradient once."
