"""How bytes get from one tower's process to the other's: gloo on CPU, NCCL on two GPUs, gloo through pinned memory
when both towers share one GPU.

| transport  | device        | the bytes go                                                     |
|------------|---------------|------------------------------------------------------------------|
| gloo       | cpu           | memory, loopback or network, memory                              |
| nccl       | two GPUs      | NVLink or PCIe, without the host                                 |
| shared_gpu | one GPU       | GPU, pinned memory, gloo, pinned memory, GPU (NCCL refuses this) |

Both towers post the same swaps in the same order; that is all the protocol there is.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


class TowerLostError(RuntimeError):
    """The other tower's process has ended or does not answer. Nothing in this process can go on."""


@dataclass
class Swap:
    """Two tensors under way in opposite directions. Must be waited for exactly once."""

    _arrive: Callable[[], Tensor]

    def wait(self) -> Tensor:
        """Waits for the tensor that the other tower sent. Raises: TowerLostError."""
        return self._arrive()


def _wire_view(x: Tensor) -> Tensor:
    """The same memory as a contiguous tensor, which is all that point-to-point calls accept."""
    return x if x.is_contiguous() else x.permute(0, 2, 3, 1)


class Link:
    """The way to the other tower over gloo on CPU tensors, and what the other transports build on.

    Args:
        tower: 0 or 1, the one that lives here.
        peer: global rank of the other tower's process.
        timeout: seconds after which a silent tower counts as lost; must be the process group's own.
        memory_format: of all 4-dimensional tensors, in both towers.
    """

    def __init__(self, tower: int, peer: int, timeout: float, memory_format: torch.memory_format) -> None:
        self.tower, self.peer, self.timeout, self.memory_format = tower, peer, timeout, memory_format
        self.bytes_sent = 0
        self._waited_seconds = 0.0

    def swap(self, mine: Tensor, shape: Sequence[int] | None = None) -> Swap:
        """Sends `mine` and receives a tensor of `shape` (default: that of `mine`), dtype and device the same."""
        shape = tuple(shape) if shape is not None else tuple(mine.shape)
        memory_format = self.memory_format if mine.dim() == 4 else torch.contiguous_format
        mine = mine.detach().contiguous(memory_format=memory_format)
        theirs = torch.empty(shape, dtype=mine.dtype, device=mine.device, memory_format=memory_format)
        self.bytes_sent += mine.numel() * mine.element_size()
        finish = self._post(_wire_view(mine), _wire_view(theirs))

        def arrive() -> Tensor:
            finish()
            return theirs

        return Swap(arrive)

    def swap_images(self, mine: Tensor, num_theirs: int) -> Tensor:
        """Sends decoded images [N, ...] and receives `num_theirs` like them. Raises: TowerLostError.

        Not part of the exchange, so neither its bytes nor its waiting are counted there.
        """
        sent, waited = self.bytes_sent, self._waited_seconds
        rows = mine.flatten(1)
        theirs = self.swap(rows, (num_theirs, rows.shape[1])).wait()
        self.bytes_sent, self._waited_seconds = sent, waited
        return theirs.view(num_theirs, *mine.shape[1:])

    def check_in(self, numbers: Sequence[int]) -> list[int]:
        """Swaps a few integers; both towers must give equally many. Raises: TowerLostError."""
        mine = torch.tensor(numbers, dtype=torch.int64)
        theirs = torch.empty_like(mine)
        self._gloo(mine, theirs)()
        return [int(n) for n in theirs]

    def read_waited_ms(self) -> float:
        """Milliseconds that this tower has waited for the other since the last call."""
        waited, self._waited_seconds = self._waited_seconds, 0.0
        return waited * 1e3

    def lost(self, error: Exception) -> TowerLostError:
        """The sentence for a failed swap."""
        other = 1 - self.tower
        if "timed out" in str(error).lower() or "timeout" in str(error).lower():
            reason = f"nothing came from it for {self.timeout:g} s (machine.timeout_seconds)"
        else:
            reason = "its process has ended"
        return TowerLostError(
            f"Tower {self.tower} has lost tower {other}: {reason}. Start again with resume=auto to go on from "
            "the last checkpoint."
        )

    def _post(self, mine: Tensor, theirs: Tensor) -> Callable[[], None]:
        return self._gloo(mine, theirs)

    def _gloo(self, mine: Tensor, theirs: Tensor) -> Callable[[], None]:
        try:
            # Posting the receive first saves gloo a copy; it was measured to be a fifth faster than sending first.
            works = [dist.irecv(theirs, self.peer), dist.isend(mine, self.peer)]
        except RuntimeError as error:
            raise self.lost(error) from error

        def finish() -> None:
            began = time.perf_counter()
            try:
                for work in works:
                    assert work is not None
                    work.wait()
            except RuntimeError as error:
                raise self.lost(error) from error
            self._waited_seconds += time.perf_counter() - began
            kept.clear()

        kept = [mine]  # gloo reads the tensor until the wait
        return finish


class NoLink(Link):
    """Link of a network of one tower: there is no peer, and nothing is exchanged."""

    def check_in(self, numbers: Sequence[int]) -> list[int]:
        return list(numbers)

    def lost(self, error: Exception) -> TowerLostError:
        return TowerLostError(f"A replica has been lost: {error}. Start again with resume=auto to go on.")


class NcclLink(Link):
    """Two GPUs. The host never waits: the stream does, and CUDA events measure how long."""

    def __init__(self, tower: int, peer: int, timeout: float, memory_format: torch.memory_format) -> None:
        super().__init__(tower, peer, timeout, memory_format)
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def _post(self, mine: Tensor, theirs: Tensor) -> Callable[[], None]:
        # Both directions go into one group, because two ungrouped sends that face each other can block for ever.
        works = dist.batch_isend_irecv(
            [dist.P2POp(dist.irecv, theirs, self.peer), dist.P2POp(dist.isend, mine, self.peer)]
        )

        def finish() -> None:
            before = torch.cuda.Event(enable_timing=True)
            after = torch.cuda.Event(enable_timing=True)
            before.record()
            for work in works:
                work.wait()
            after.record()
            self._events.append((before, after))
            kept.clear()

        kept = [mine]  # NCCL reads the tensor until the wait
        return finish

    def swap_images(self, mine: Tensor, num_theirs: int) -> Tensor:
        num_events = len(self._events)
        theirs = super().swap_images(mine, num_theirs)
        del self._events[num_events:]
        return theirs

    def read_waited_ms(self) -> float:
        events, self._events = self._events, []
        if events:
            events[-1][1].synchronize()
        return sum(before.elapsed_time(after) for before, after in events) + super().read_waited_ms()


class SharedGpuLink(Link):
    """Both towers on one GPU, which NCCL up to 2.29 refuses: through pinned memory and gloo.

    The copy to the host is queued behind the kernels that compute the half. The host sends it in `wait`, by when
    the kernels of the own half are queued too, so the GPU computes while the bytes travel.
    """

    def __init__(self, tower: int, peer: int, timeout: float, memory_format: torch.memory_format) -> None:
        super().__init__(tower, peer, timeout, memory_format)
        self._pinned: dict[tuple[str, torch.Size, torch.dtype], Tensor] = {}

    def _buffer(self, way: str, like: Tensor) -> Tensor:
        key = (way, like.shape, like.dtype)
        if key not in self._pinned:
            self._pinned[key] = torch.empty(like.shape, dtype=like.dtype, pin_memory=True)
        return self._pinned[key]

    def _post(self, mine: Tensor, theirs: Tensor) -> Callable[[], None]:
        outbound, inbound = self._buffer("out", mine), self._buffer("in", theirs)
        outbound.copy_(mine, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

        def finish() -> None:
            copied.synchronize()  # this waits for the own GPU, so it is not counted as waiting for the other tower
            self._gloo(outbound, inbound)()
            theirs.copy_(inbound, non_blocking=True)
            # The next swap of this shape writes into the buffer, so this copy must have read it by then.
            torch.cuda.current_stream().synchronize()

        return finish


LINKS = {"gloo": Link, "nccl": NcclLink, "shared_gpu": SharedGpuLink}
