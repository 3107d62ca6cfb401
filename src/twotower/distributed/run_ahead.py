"""How far the host may run ahead of its GPU, and the only place where it waits for it.

A kernel that waits for a tower which has died never ends, and a host that blocks on such a GPU can neither say so nor
be stopped. So the host never blocks: it asks, sleeps and asks again, until a deadline.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch

POLL_SECONDS = 2e-4
# Enough to keep the GPU busy. And enough that the host comes to the numbers which the towers compare in each step: as
# those go over gloo, which notices a dead process at once, it mostly says so long before a GPU is given up.
STEPS_AHEAD = 2


class Event(Protocol):
    """What is asked of a torch.cuda.Event."""

    def record(self) -> None: ...
    def query(self) -> bool: ...


def wait_for(event: Event, seconds: float, lost: Callable[[], Exception]) -> None:
    """Waits until the GPU has reached an event.

    Args:
        seconds: after which the tower that the GPU waits for counts as lost.
        lost: makes the error to raise then.
    """
    deadline = time.monotonic() + seconds
    while not event.query():
        if time.monotonic() > deadline:
            raise lost()
        time.sleep(POLL_SECONDS)


class RunAhead:
    """The steps that the host has queued and the GPU has not done yet. On a CPU there are none.

    Args:
        device: of this process.
        seconds: `machine.timeout_seconds`.
        lost: makes the error for a GPU that does not come to an end in that time.
        make_event: for tests.
    """

    def __init__(
        self,
        device: torch.device,
        seconds: float,
        lost: Callable[[], Exception],
        make_event: Callable[[], Event] = torch.cuda.Event,
    ) -> None:
        self._is_gpu, self._seconds, self._lost = device.type == "cuda", seconds, lost
        self._make_event = make_event
        self._queued: deque[Event] = deque()

    def end_step(self) -> None:
        """Marks the end of a step, and waits until at most STEPS_AHEAD are still to be done. Raises: as `lost`."""
        self._mark()
        self._wait(STEPS_AHEAD)

    def catch_up(self) -> None:
        """Waits until the GPU has done all that was queued; needed before anything is read from it."""
        self._mark()
        self._wait(0)

    def wait_for(self, event: Event) -> None:
        """Waits until the GPU has reached an event. Raises: as `lost`."""
        wait_for(event, self._seconds, self._lost)

    def _mark(self) -> None:
        if self._is_gpu:
            event = self._make_event()
            event.record()
            self._queued.append(event)

    def _wait(self, left: int) -> None:
        while len(self._queued) > left:
            self.wait_for(self._queued[0])
            self._queued.popleft()
