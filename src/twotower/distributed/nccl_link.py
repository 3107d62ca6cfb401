"""Two GPUs: NCCL takes the halves over NVLink or PCIe, without the host."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
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


class NcclLink(Link):
    """Two GPUs. The host never waits: the stream does, and CUDA events measure how long.

    Args:
        gpus: process group of NCCL with both towers.
    """

    title = "NCCL"

    def __init__(
        self,
        tower: int,
        peer: int,
        timeout: float,
        memory_format: torch.memory_format,
        messages: Any = None,
        gpus: Any = None,
    ) -> None:
        super().__init__(tower, peer, timeout, memory_format, messages)
        self._gpus, self._waits = gpus, StreamWaits()

    def lost(self, error: Exception) -> TowerLostError:
        """The sentence for a failed swap; what NCCL says is shown, as its reasons are many."""
        if isinstance(error, dist.DistBackendError):
            first_line = str(error).strip().splitlines()[0]
            return TowerLostError(
                f"Tower {self.tower} has lost tower {1 - self.tower}: NCCL says: {first_line}. NCCL_DEBUG=INFO "
                "tells more; start again with resume=auto to go on from the last checkpoint."
            )
        return super().lost(error)

    def _post(self, mine: Tensor, theirs: Tensor) -> Callable[[], None]:
        # Both directions go into one group, because two ungrouped sends that face each other can block for ever.
        try:
            works = dist.batch_isend_irecv(
                [
                    dist.P2POp(dist.irecv, theirs, self.peer, self._gpus),
                    dist.P2POp(dist.isend, mine, self.peer, self._gpus),
                ]
            )
        except RuntimeError as error:
            raise self.lost(error) from error

        def wait() -> None:
            try:
                for work in works:
                    work.wait()
            except RuntimeError as error:
                raise self.lost(error) from error

        def finish() -> None:
            self._waits.measure(wait)
            kept.clear()

        kept = [mine]  # NCCL reads the tensor until the wait
        return finish

    def swap_images(self, mine: Tensor, num_theirs: int) -> Tensor:
        mark = self._waits.mark()
        theirs = super().swap_images(mine, num_theirs)
        self._waits.forget_since(mark)
        return theirs

    def read_waited_ms(self) -> float:
        return self._waits.read_ms(self.timeout, self._silent) + super().read_waited_ms()

    def _silent(self) -> TowerLostError:
        return self.lost(TimeoutError("timeout"))
