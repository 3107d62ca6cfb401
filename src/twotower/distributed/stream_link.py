"""What the links have in common in which the GPU's stream waits for the other tower, and not the host."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from twotower.distributed.run_ahead import wait_for
from twotower.distributed.transport import Link, TowerLostError


class StreamWaits:
    """How long a GPU's stream has waited for the other tower, measured by events around each wait."""

    def __init__(self) -> None:
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def measure(self, wait: Callable[[], None]) -> None:
        """Calls `wait`, which lets the stream wait and returns at once."""
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        wait()
        after.record()
        self._events.append((before, after))

    def mark(self) -> int:
        return len(self._events)

    def forget_since(self, mark: int) -> None:
        del self._events[mark:]

    def read_ms(self, timeout: float, lost: Callable[[], Exception]) -> float:
        """Milliseconds since the last call. Raises: as `lost`, if the GPU still waits after `timeout` seconds."""
        events, self._events = self._events, []
        if events:
            wait_for(events[-1][1], timeout, lost)
        return sum(before.elapsed_time(after) for before, after in events)


class StreamLink(Link):
    """A link that returns before the bytes are there; CUDA events measure how long the stream waits for them."""

    def __init__(
        self, tower: int, peer: int, timeout: float, memory_format: torch.memory_format, messages: Any = None
    ) -> None:
        super().__init__(tower, peer, timeout, memory_format, messages)
        self._waits = StreamWaits()

    def swap_images(self, mine: Tensor, num_theirs: int) -> Tensor:
        mark = self._waits.mark()
        theirs = super().swap_images(mine, num_theirs)
        self._waits.forget_since(mark)
        return theirs

    def read_waited_ms(self) -> float:
        return self._waits.read_ms(self.timeout, self._silent) + super().read_waited_ms()

    def _silent(self) -> TowerLostError:
        return self.lost(TimeoutError("timeout"))
