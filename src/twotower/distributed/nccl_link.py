"""Two GPUs: NCCL takes the halves over NVLink or PCIe, without the host."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from twotower.distributed.stream_link import StreamLink
from twotower.distributed.transport import TowerLostError


class NcclLink(StreamLink):
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
        self._gpus = gpus

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
