"""Keys of the schema: what a key decides, and which values it takes.

A key with a fixed set of values is a string with `choices`, and no Enum field, for three reasons. OmegaConf stores an
Enum by the name of its member, which cannot be `2012`. It reads a whole number on the command line as the value of a
member. And a run folder has to be read by programs that do not know this package.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import MISSING, dataclass, field
from typing import Any, TypeVar

from twotower.config.key_roles import Role

Group = TypeVar("Group")


@dataclass(frozen=True)
class Bounds:
    """The values that a key takes. For a list they apply to each entry, and null is allowed where the type has it.

    Attributes:
        choices: the words, or the numbers, that are allowed; none: any.
        least, most: the smallest and the largest number.
        above, below: numbers that are themselves too small and too large.
        odd: whether only odd numbers are allowed, as for a window that has a middle.
        names_files: whether a text becomes a part of file names, and so takes no slash.
        has_lines: whether a text may have several lines.
        rules: values of this group's `rule` under which the key may be set; under another one it keeps its default.
    """

    choices: tuple[Any, ...] = ()
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    odd: bool = False
    names_files: bool = False
    has_lines: bool = False
    rules: tuple[str, ...] = ()

    def describe(self) -> str:
        """The allowed numbers in words: "at least 0 and less than 1"."""
        limits = [
            f"{words} {limit if isinstance(limit, int) else format(limit, 'g')}"
            for words, limit in (
                ("at least", self.least),
                ("more than", self.above),
                ("at most", self.most),
                ("less than", self.below),
            )
            if limit is not None
        ]
        return ("an odd number of " if self.odd else "") + (" and ".join(limits) or "a finite number")

    def contain(self, number: float) -> bool:
        """Whether a number is finite and within the limits."""
        return (
            number - number == 0  # false for infinity and for what is not a number
            and (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
            and (self.below is None or number < self.below)
            and (not self.odd or number % 2 == 1)
        )


def key(
    default: Any = MISSING,
    role: Role | None = None,
    *,
    choices: Sequence[Any] = (),
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    odd: bool = False,
    names_files: bool = False,
    has_lines: bool = False,
    rules: Sequence[str] = (),
) -> Any:
    """A key of the schema.

    Args:
        default: copied for each group where it is a list or a dictionary.
        role: what the key decides; None: what its group does.
        choices, least, most, above, below, odd, names_files, has_lines, rules: see `Bounds`.
    """
    bounds = Bounds(tuple(choices), least, most, above, below, odd, names_files, has_lines, tuple(rules))
    metadata = {"role": role, "bounds": bounds}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def has_role(role: Role) -> Callable[[type[Group]], type[Group]]:
    """A decorator for a group of the schema: the role of its keys that have none of their own."""

    def mark(group: type[Group]) -> type[Group]:
        group._role = role  # type: ignore[attr-defined]
        return group

    return mark
