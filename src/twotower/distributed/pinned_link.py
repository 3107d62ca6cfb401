"""Both towers on one GPU, by way of pinned memory and gloo: slower than gpu_memory_link.py, and works everywhere."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from twotower.distributed.run_ahead import wait_for
from twotower.distributed.transport import Link, TowerLostError


class PinnedBuffer:
    """Host memory that a GPU reads or writes, for one swap at a time.

    Two swaps of one shape that are under way together would overwrite each other without any sign of it, so a buffer
    is taken and given back.
    """

    def __init__(self, like: Tensor) -> None:
        self.tensor = torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)
        self._is_taken = False

    def take(self) -> Tensor:
        assert not self._is_taken, "two swaps of one shape are under way at a time, and there is one buffer for them"
        self._is_taken = True
        return self.tensor

    def give_back(self) -> None:
        self._is_taken = False


class PinnedLink(Link):
    """Both towers on one GPU, which NCCL up to 2.29 refuses: through pinned memory and gloo.

    The copy to the host is queued behind the kernels that compute the half. The host sends it in `wait`, by when
    the kernels of the own half are queued too, so the GPU computes while the bytes travel.
    """

    title = "gloo through pinned memory, on one GPU that both share"

    def __init__(
        self, tower: int, peer: int, timeout: float, memory_format: torch.memory_format, messages: Any = None
    ) -> None:
        super().__init__(tower, peer, timeout, memory_format, messages)
        self._buffers: dict[tuple[str, torch.Size, torch.dtype], PinnedBuffer] = {}

    def _buffer(self, way: str, like: Tensor) -> PinnedBuffer:
        key = (way, like.shape, like.dtype)
        if key not in self._buffers:
            self._buffers[key] = PinnedBuffer(like)
        return self._buffers[key]

    def _reach(self) -> None:
        """Waits until the GPU has done what was queued, asking and sleeping. Raises: TowerLostError."""
        event = torch.cuda.Event()
        event.record()
        self._reach_event(event)

    def _reach_event(self, event: torch.cuda.Event) -> None:
        wait_for(event, self.timeout, self._stuck)

    def _stuck(self) -> TowerLostError:
        return TowerLostError(
            f"The GPU of tower {self.tower} has done nothing for {self.timeout:g} s (machine.timeout_seconds); "
            "nvidia-smi and dmesg may say why. Start again with resume=auto to go on from the last checkpoint."
        )

    def _post(self, mine: Tensor, theirs: Tensor) -> Callable[[], None]:
        buffers = [self._buffer("out", mine), self._buffer("in", theirs)]
        outbound, inbound = (buffer.take() for buffer in buffers)
        outbound.copy_(mine, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

        def finish() -> None:
            self._reach_event(copied)  # waits for the own GPU, so it is not counted as waiting for the other tower
            self._gloo(outbound, inbound)()
            theirs.copy_(inbound, non_blocking=True)
            # The next swap of this shape writes into the buffer, so this copy must have read it by then.
            self._reach()
            for buffer in buffers:
                buffer.give_back()

        return finish
