"""How bytes get from one tower's process to the other's. This file has gloo on the CPU, which the others build on.

| transport  | device   | the bytes go                                                     | file               |
|------------|----------|------------------------------------------------------------------|--------------------|
| gloo       | cpu      | memory, loopback or network, memory                              | transport.py       |
| nccl       | two GPUs | NVLink or PCIe, without the host                                 | nccl_link.py       |
| shared_gpu | one GPU  | from the one process's memory on the GPU into the other's        | gpu_memory_link.py |
| pinned     | one GPU  | GPU, pinned memory, gloo, pinned memory, GPU                     | pinned_link.py     |

NCCL up to 2.29 refuses two processes on one GPU. `shared_gpu` falls back to `pinned` where the driver does not let
processes share memory.

Both towers post the same swaps in the same order; that is all the protocol there is, and `Link.swaps_checksum` holds
them to it.
"""

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor


class TowerLostError(RuntimeError):
    """Another process has ended or does not answer. Nothing in this process can go on."""


class TowerSilentError(TowerLostError):
    """The other process may still be there, and has not answered in time."""


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


_SWAP_TAG, _NUMBERS_TAG = 0, 1  # so that numbers and halves which are under way together are never confused


class Link:
    """The way to the other tower over gloo on CPU tensors, and what the other transports build on.

    Attributes:
        title: how the bytes go, for the first lines on the screen.
        swaps_checksum: of the shapes and dtypes of all swaps so far, in their order; equal in both towers. Where they
            differ, gloo may go on, and NCCL may wait for ever.

    Args:
        tower: 0 or 1, the one that lives here.
        peer: global rank of the other tower's process.
        timeout: seconds after which a silent tower counts as lost; must be that of `messages`.
        memory_format: of all 4-dimensional tensors, in both towers.
        messages: process group of gloo for what is on the host; None: the default group.
    """

    title = "gloo"

    def __init__(
        self, tower: int, peer: int, timeout: float, memory_format: torch.memory_format, messages: Any = None
    ) -> None:
        self.tower, self.peer, self.timeout, self.memory_format = tower, peer, timeout, memory_format
        self.messages = messages
        self.bytes_sent = 0
        self.swaps_checksum = 0
        self._waited_seconds = 0.0

    def swap(self, mine: Tensor, shape: Sequence[int] | None = None) -> Swap:
        """Sends `mine` and receives a tensor of `shape` (default: that of `mine`), dtype and device the same."""
        shape = tuple(shape) if shape is not None else tuple(mine.shape)
        memory_format = self.memory_format if mine.dim() == 4 else torch.contiguous_format
        mine = mine.detach().contiguous(memory_format=memory_format)
        theirs = torch.empty(shape, dtype=mine.dtype, device=mine.device, memory_format=memory_format)
        self.bytes_sent += mine.numel() * mine.element_size()
        shapes = (tuple(mine.shape), shape) if self.tower == 0 else (shape, tuple(mine.shape))
        self.swaps_checksum = zlib.crc32(f"{shapes} {mine.dtype}".encode(), self.swaps_checksum)
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
        return self.post_numbers(numbers)()

    def post_numbers(self, numbers: Sequence[int]) -> Callable[[], list[int]]:
        """Sends a few integers on their way. Returns what waits for those of the other tower.

        Both must give equally many. Raises: TowerLostError, then or while it waits.
        """
        mine, theirs = np.array(numbers, np.int64), np.empty(len(numbers), np.int64)
        arrive = self._gloo(torch.from_numpy(mine), torch.from_numpy(theirs), _NUMBERS_TAG)

        def read() -> list[int]:
            waited = self._waited_seconds
            arrive()
            self._waited_seconds = waited  # this is not the exchange
            return [int(number) for number in theirs]

        return read

    def read_waited_ms(self) -> float:
        """Milliseconds that this tower has waited for the other since the last call."""
        waited, self._waited_seconds = self._waited_seconds, 0.0
        return waited * 1e3

    def lost(self, error: Exception) -> TowerLostError:
        """The sentence for a failed swap."""
        other = 1 - self.tower
        kind, reason = TowerLostError, "its process has ended"
        if "timed out" in str(error).lower() or "timeout" in str(error).lower():
            kind, reason = TowerSilentError, f"nothing came from it for {self.timeout:g} s (machine.timeout_seconds)"
        return kind(
            f"Tower {self.tower} has lost tower {other}: {reason}. Start again with resume=auto to go on from "
            "the last checkpoint."
        )

    def _post(self, mine: Tensor, theirs: Tensor) -> Callable[[], None]:
        return self._gloo(mine, theirs)

    def _gloo(self, mine: Tensor, theirs: Tensor, tag: int = _SWAP_TAG) -> Callable[[], None]:
        group = self.messages
        try:
            # Posting the receive first saves gloo a copy; it was measured to be a fifth faster than sending first.
            works = [dist.irecv(theirs, self.peer, group, tag), dist.isend(mine, self.peer, group, tag)]
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

    def post_numbers(self, numbers: Sequence[int]) -> Callable[[], list[int]]:
        return lambda: list(numbers)

    def lost(self, error: Exception) -> TowerLostError:
        return TowerLostError(f"A replica has been lost: {error}. Start again with resume=auto to go on.")
