"""The one clock of a timeline, on which both towers' processes note when something happened.

The clock is the host's monotonic one, in nanoseconds. All processes of a host read the same one: that is assumed, and
`compare_clocks` bounds how wrong it may be by messages that both send. What a GPU does is noted by events in its
stream, and one event is noted on both clocks; that the GPU's clock runs as fast as the host's over a few steps is
assumed.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from twotower.distributed.transport import Link

ROUNDS = 200  # messages each way, of which the quickest count


class Clock(Protocol):
    """Notes moments, and tells later when they were."""

    def mark(self) -> Any:
        """Notes this moment of what computes, at once."""
        ...

    def read(self, mark: Any) -> int:
        """Nanoseconds of the host's monotonic clock at a mark; all work up to it must be done."""
        ...


class HostClock:
    """Of a tower that computes on the CPU."""

    def mark(self) -> int:
        return time.monotonic_ns()

    def read(self, mark: int) -> int:
        return mark


def _make_event() -> Any:
    return torch.cuda.Event(enable_timing=True)


class GpuClock:
    """Of a tower that computes on a GPU: marks are events in the stream, which the host does not wait for.

    Args:
        catch_up: waits until the GPU has done all that was queued.
        make_event: for tests.
    """

    def __init__(self, catch_up: Callable[[], None], make_event: Callable[[], Any] = _make_event) -> None:
        self._make_event = make_event
        catch_up()
        self._first = self.mark()
        catch_up()
        self._began = time.monotonic_ns()

    def mark(self) -> Any:
        event = self._make_event()
        event.record()
        return event

    def read(self, mark: Any) -> int:
        return self._began + round(1e6 * self._first.elapsed_time(mark))


def compare_clocks(link: Link, read: Callable[[], int] = time.monotonic_ns) -> tuple[int, int]:
    """How far this process's clock is ahead of the other tower's, and how wrong that may be, in nanoseconds.

    Both towers call this together. A message takes some time, so by what the quickest one says the clock of the tower
    that received it leads by no more; the same in the other direction is the other bound. Raises: TowerLostError.
    """
    link.check_in([0])
    delays = []
    for _ in range(ROUNDS):
        (sent,) = link.check_in([read()])
        delays.append(read() - sent)
    quickest = min(delays)
    (theirs,) = link.check_in([quickest])
    return (quickest - theirs) // 2, (quickest + theirs + 1) // 2
