"""Both towers on one GPU: each writes its half straight into the other process's memory there (CUDA IPC).

Each tower has an inbox on the GPU with two slots, which the other one has mapped. Swap number n, in either tower:

    post      the stream waits until slot n % 2 of the other inbox has been read, copies the half there, and records
              the event `wrote`; then an empty note goes to the other host
    finish    the host waits for the other's note n; the stream waits for the other's event `wrote`, copies the slot
              into a tensor of its own, and records the event `read`

An event of another process counts as it was last recorded when the wait is queued, so each wait needs to know that
the record came before. The notes are that knowledge: note n says that `wrote` n is recorded, and as a tower finishes
swap n - 1 before it posts swap n, also that `read` n - 1 is. With two slots, slot n % 2 was last used in swap n - 2,
whose `read` note n - 1 vouches for. That is why one swap is under way at a time. No host waits for the GPU.
"""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from twotower.distributed.run_ahead import wait_for
from twotower.distributed.stream_link import StreamLink

SLOTS = 2
_ALIGNED = 512  # bytes; so that any dtype can begin at a slot


class CannotShareError(RuntimeError):
    """The driver does not let these two processes share memory of the GPU. Raised in both towers alike."""


class Inbox:
    """Memory for what the other tower sends, and the events that say who has used it; made here or mapped from there.

    Attributes:
        memory: uint8 [SLOTS, bytes] on the GPU.
        read: event of each slot, recorded by the tower whose inbox this is, when it has copied the slot.
        wrote: event of each slot, recorded by the tower that OWNS this inbox when it has written into the other's.
    """

    def __init__(self, memory: Tensor, read: list[Any], wrote: list[Any]) -> None:
        self.memory, self.read, self.wrote = memory, read, wrote

    @staticmethod
    def make(num_bytes: int, device: torch.device) -> "Inbox":
        memory = torch.empty((SLOTS, num_bytes), dtype=torch.uint8, device=device)
        events = [[torch.cuda.Event(interprocess=True) for _ in range(SLOTS)] for _ in ("read", "wrote")]
        return Inbox(memory, *events)

    def describe(self) -> bytes:
        """What the other process needs to map it."""
        handles = [[event.ipc_handle() for event in events] for events in (self.read, self.wrote)]
        return pickle.dumps((reduce_tensor(self.memory), handles))

    @staticmethod
    def open(description: bytes, device: torch.device) -> "Inbox":
        (rebuild, arguments), handles = pickle.loads(description)
        events = [[torch.cuda.Event.from_ipc_handle(device, handle) for handle in kind] for kind in handles]
        return Inbox(rebuild(*arguments), *events)

    def slot(self, number: int, like: Tensor) -> Tensor:
        """The first bytes of a slot, as a tensor like another one."""
        num_bytes = like.numel() * like.element_size()
        return self.memory[number, :num_bytes].view(like.dtype).view(like.shape)


class GpuMemoryLink(StreamLink):
    """Both towers on one GPU, each writing into the other's memory.

    Args:
        device: the GPU.
    """

    title = "the memory of one GPU that both share (CUDA IPC)"
    inbox_class = Inbox  # a test has one without a GPU

    def __init__(
        self,
        tower: int,
        peer: int,
        timeout: float,
        memory_format: torch.memory_format,
        messages: Any = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(tower, peer, timeout, memory_format, messages)
        self._device = device or torch.device("cuda", torch.cuda.current_device())
        self._inbox: Inbox | None = None
        self._outbox: Inbox | None = None  # the other tower's inbox
        self._num_swaps, self._is_under_way = 0, False

    def reserve(self, num_bytes: int) -> None:
        """Makes room for halves of so many bytes. Both towers call this together.

        Raises: CannotShareError in both if one of them cannot, TowerLostError.
        """
        num_bytes = -(-num_bytes // _ALIGNED) * _ALIGNED
        self._catch_up()
        self.check_in([num_bytes])  # from here on neither GPU uses the memory that there was
        self._inbox = self._outbox = None
        reason, description = "", b""
        try:
            inbox = self.inbox_class.make(num_bytes, self._device)
            description = inbox.describe()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
        theirs = self._swap_bytes(description)
        if not reason and theirs:
            try:
                outbox = self.inbox_class.open(theirs, self._device)
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
        fine = bool(not reason and theirs)
        if self.check_in([int(fine)]) != [1] or not fine:
            raise CannotShareError(reason or "the other tower's process cannot")
        self._inbox, self._outbox, self._num_swaps = inbox, outbox, 0

    def _swap_bytes(self, mine: bytes) -> bytes:
        (num_theirs,) = self.check_in([len(mine)])
        # gloo sends no empty message; one byte is added.
        out, into = np.frombuffer(mine + b"\0", np.uint8).copy(), np.empty(num_theirs + 1, np.uint8)
        self._gloo(torch.from_numpy(out), torch.from_numpy(into))()
        return into[:-1].tobytes()

    def _post(self, mine: Tensor, theirs: Tensor) -> Callable[[], None]:
        assert not self._is_under_way, "one swap at a time: see the head of gpu_memory_link.py"
        # Both towers know both sizes, so both come to the same decision.
        needed = max(tensor.numel() * tensor.element_size() for tensor in (mine, theirs))
        if self._inbox is None or needed > self._inbox.memory.shape[1]:
            self.reserve(needed)
        inbox, outbox = self._inbox, self._outbox
        assert inbox is not None
        assert outbox is not None
        slot, self._num_swaps = self._num_swaps % SLOTS, self._num_swaps + 1
        outbox.read[slot].wait()
        outbox.slot(slot, mine).copy_(mine)
        inbox.wrote[slot].record()
        read_note = self.post_numbers([self._num_swaps])
        self._is_under_way = True

        def wait() -> None:
            (number,) = read_note()
            assert number == self._num_swaps, f"note {number} came for swap {self._num_swaps}"
            outbox.wrote[slot].wait()

        def finish() -> None:
            self._measure(wait)  # from when the GPU has nothing else to do, until the half is there
            theirs.copy_(inbox.slot(slot, theirs))
            inbox.read[slot].record()
            self._is_under_way = False

        return finish

    def _measure(self, wait: Callable[[], None]) -> None:
        self._waits.measure(wait)

    def _catch_up(self) -> None:
        event = torch.cuda.Event()
        event.record()
        wait_for(event, self.timeout, self._silent)
