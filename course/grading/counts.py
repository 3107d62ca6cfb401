"""How often a solution sends and waits in a pass, which is asked before any numbers are compared.

One tensor too many takes the place of the next one, and whatever is computed from then on is wrong for a reason
that no number tells.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from grading.threads import Link
from grading.verdict import MistakeError

ONCE = "A function that waits may be called once; for each tensor that comes, one must have been sent."
TIMES = {2: "twice"}


def split_passes(link: Link) -> list[tuple[str, list[str]]]:
    """The kind of each pass of a tower, in order, and what happened in it. Passes begin where the grader noted it."""
    passes: list[tuple[str, list[str]]] = []
    for kind, _ in link.events:
        if kind in ("forward", "backward"):
            passes.append((kind, []))
        elif passes:
            passes[-1][1].append(kind)
    return passes


def find_surplus(links: Mapping[int, Link], hints: Mapping[str, str]) -> MistakeError | None:
    """The first pass in which a tower sends more than one tensor, or waits for more than one.

    Args:
        links: of each tower.
        hints: what is said if too much is sent, by the kind of pass; other kinds are not looked at.
    """
    passes = {tower: split_passes(link) for tower, link in links.items()}
    for number in range(max(map(len, passes.values()), default=0)):
        those = {tower: of[number] for tower, of in passes.items() if number < len(of)}
        kind = next(kind for kind, _ in those.values())
        for event in ("post", "await") if kind in hints else ():
            counts = {tower: happened.count(event) for tower, (_, happened) in those.items()}
            most = max(counts.values())
            if most < 2:
                continue
            guilty = [tower for tower, count in counts.items() if count > 1]
            if event == "post":
                who = "You send" if len(guilty) > 1 else f"Tower {guilty[0]} sends"
                return MistakeError(f"{who} {most} tensors in one {kind} pass, and one is due.", hints[kind])
            who = "You wait" if len(guilty) > 1 else f"Tower {guilty[0]} waits"
            times = TIMES.get(most, f"{most} times")
            return MistakeError(f"{who} {times} in one {kind} pass, and one tensor comes.", ONCE)
    return None


def name_waiting(links: Mapping[int, Link]) -> MistakeError:
    """Why a tower has waited in vain, when nothing is sent or awaited too often."""
    passes = {tower: split_passes(link) for tower, link in links.items()}
    waiting = [tower for tower, of in passes.items() if of and _waits(of[-1][1])]
    kinds = {passes[tower][-1][0] for tower in waiting}
    if len(waiting) != 1 and len(kinds) == 1:
        return MistakeError(
            f"In the {kinds.pop()} pass both towers wait, and neither has sent: they would wait for ever.", ONCE
        )
    tower = waiting[0] if waiting else 0
    kind = passes[tower][-1][0] if passes[tower] else "forward"
    return MistakeError(
        f"Tower {tower} waits in the {kind} pass for a tensor that tower {1 - tower} does not send.",
        "Both must make the same calls.",
    )


def _waits(happened: Sequence[Any]) -> bool:
    return happened.count("await") > happened.count("wait")
