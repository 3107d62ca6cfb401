"""What the grader says of a gap that is not filled, or filled wrongly."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

CALL_IT = "link.post returns a function. Call that function: it waits, and returns the other tower's tensor."
EXACT = 1e-11  # relative; all is computed in float64
ROUNDED = "What crosses is rounded on its way."


class MistakeError(Exception):
    """A mistake with its name: what was seen, then why it matters or where to look.

    Attributes:
        may_follow: whether the other tower may have made it, by what it sent.
    """

    def __init__(self, name: str, hint: str = "", may_follow: bool = False) -> None:
        super().__init__(name, hint)
        self.name, self.hint, self.may_follow = name, hint, may_follow

    def __str__(self) -> str:
        return f"{self.name}\n{self.hint}" if self.hint else self.name

    def put_tower(self, tower: int) -> None:
        """Says that this tower alone made it, if the name does not tell already."""
        if "tower 0" not in self.name.lower() and "tower 1" not in self.name.lower():
            self.name = f"Tower {tower} alone: {self.name}"


def is_same(a: Tensor, b: Tensor, tolerance: float = EXACT) -> bool:
    """Whether two tensors are equal but for the rounding of float64."""
    if a.shape != b.shape:
        return False
    return bool((a.double() - b.double()).abs().max() <= tolerance * max(1e-30, float(b.double().abs().max())))


def is_rounded(a: Tensor, b: Tensor) -> bool:
    """Whether `a` is `b` with fewer digits, as float32, float16 or bfloat16 keep them."""
    return a.shape == b.shape and not is_same(a, b) and is_same(a, b, tolerance=0.02)


def is_cut(a: Tensor, b: Tensor) -> bool:
    """Whether `a` is `b` with fewer digits, or is kept in a type that has fewer."""
    return is_rounded(a, b) or (is_same(a, b) and a.dtype != b.dtype)


def check_digits(events: Sequence[tuple[str, Any]], mine: Tensor, peer: Tensor) -> None:
    """Whether all digits were sent, and came.

    Raises: MistakeError, if not; that they did not come may be the other tower's mistake.
    """
    for kind, tensor in events:
        if kind == "post" and is_cut(tensor, mine):
            raise MistakeError(ROUNDED, f"You send fewer digits than you were given, which was {mine.dtype}.")
    for kind, tensor in events:
        if kind == "wait" and is_cut(tensor, peer):
            raise MistakeError(ROUNDED, f"The other tower sends fewer digits than it has in {peer.dtype}.", True)


def mix_of(found: Tensor, parts: Sequence[Tensor]) -> tuple[float, ...] | None:
    """The factors with which `found` is a sum of the parts; None if it is none."""
    columns = torch.stack([part.flatten() for part in parts], dim=1)
    factors = torch.linalg.lstsq(columns, found.flatten()[:, None]).solution[:, 0]
    if not is_same(columns @ factors, found.flatten(), 1e-9):
        return None
    return tuple(round(float(factor), 3) + 0.0 for factor in factors)
