"""Both towers in this process, as two threads, over a link that remembers what went over it.

The link has the calls of that of exchange.py, and a few more. It is for looking: it starts at once, gives the same
numbers as two processes, and names what waits for what instead of hanging.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from grading.verdict import MistakeError

WAIT_SECONDS = 5.0  # all else is a matter of milliseconds


class NothingCameError(RuntimeError):
    """A tower has waited for a tensor that the other one has not sent."""


class OtherEndedError(NothingCameError):
    """The other tower has ended, so nothing can come any more."""


class WrongShapeError(RuntimeError):
    """A tensor came in another shape than it was awaited in."""

    def __init__(self, expected: tuple[int, ...], came: tuple[int, ...]) -> None:
        super().__init__(f"a tensor of {list(expected)} was awaited, and one of {list(came)} came")
        self.expected, self.came = expected, came


@dataclass
class Link:
    """The way from one tower to the other.

    Attributes:
        tower: 0 or 1, the one that lives here.
        events: what happened at this end, in order: ("post", a copy of what was sent), ("await", None) when a wait
            begins, ("wait", what came), and what others append.
        seconds: after which a silent tower counts as lost.
    """

    tower: int
    inbox: "queue.SimpleQueue[Tensor | None]"
    outbox: "queue.SimpleQueue[Tensor | None]"
    events: list[tuple[str, Any]] = field(default_factory=list)
    seconds: float = WAIT_SECONDS

    def post(self, mine: Tensor, shape: Sequence[int] | None = None) -> Callable[[], Tensor]:
        """Sends `mine` on its way, and returns at once.

        Returns: a function that waits for the other tower's tensor, of `shape`, or of that of `mine`; to be called
            once.
        """
        expected = tuple(mine.shape if shape is None else shape)
        sent = mine.detach().clone()
        self.events.append(("post", sent))
        self.outbox.put(sent)

        def wait() -> Tensor:
            self.events.append(("await", None))
            try:
                came = self.inbox.get(timeout=self.seconds)
            except queue.Empty:
                raise NothingCameError(f"tower {self.tower} has waited in vain") from None
            if came is None:
                self.inbox.put(None)
                raise OtherEndedError(f"tower {self.tower} waits, and the other one has ended")
            if tuple(came.shape) != expected:
                raise WrongShapeError(expected, tuple(came.shape))
            self.events.append(("wait", came))
            return came.clone()

        return wait

    def swap(self, mine: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """The same, and waits at once."""
        return self.post(mine, shape)()

    def end(self) -> None:
        """Tells the other tower that nothing will come any more."""
        self.outbox.put(None)


def open_links() -> tuple[Link, Link]:
    """Both ends of a new wire."""
    one, two = queue.SimpleQueue[Tensor | None](), queue.SimpleQueue[Tensor | None]()
    return Link(0, one, two), Link(1, two, one)


def run_both(body: Callable[[Link], Any]) -> list[Any]:
    """What body(link) returns in each tower.

    Raises: what body raised; if both did, that of the tower which did not merely wait for the other, or compute with
        what came from there. Of a MistakeError of one tower, the name says which.
    """
    results: list[Any] = [None, None]
    errors: list[BaseException | None] = [None, None]

    def run(link: Link) -> None:
        try:
            with torch.enable_grad():
                results[link.tower] = body(link)
        except BaseException as error:
            errors[link.tower] = error
        finally:
            link.end()

    links = open_links()
    threads = [threading.Thread(target=run, args=(link,), name=f"tower {link.tower}", daemon=True) for link in links]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [(error, tower) for tower, error in enumerate(errors) if error is not None]
    found.sort(key=lambda pair: _rank(pair[0]))
    if found:
        (error, tower), *others = found
        # Equal ranks: both have a mistake of their own. Greater ranks are no more than what follows from this one.
        if isinstance(error, MistakeError) and all(_rank(other) > _rank(error) for other, _ in others):
            error.put_tower(tower)
        raise error
    return results


def _rank(error: BaseException) -> tuple[bool, bool, bool]:
    """The less, the nearer to the cause."""
    follows = isinstance(error, MistakeError) and error.may_follow
    return isinstance(error, NothingCameError), isinstance(error, OtherEndedError), follows
