"""Copies between host and GPU that nobody waits for."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. Sent from pinned memory, so that the host does not wait for the GPU's queue.

    torch keeps pinned memory until the copy has read it, and hands it out again then.
    """
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class HostCopy:
    """An integer on its way from a device to the host, which does not wait until it is asked for.

    Args:
        number: int64 tensor without dimensions.
    """

    def __init__(self, number: Tensor) -> None:
        on_gpu = number.is_cuda
        self._host = (
            np.empty(1, np.int64) if not on_gpu else torch.empty(1, dtype=torch.int64, pin_memory=True).numpy()
        )
        torch.from_numpy(self._host).copy_(number.reshape(1), non_blocking=True)
        self._event = torch.cuda.Event() if on_gpu else None
        if self._event is not None:
            self._event.record()

    def read(self, wait: Callable[[torch.cuda.Event], None]) -> int:
        """Args: wait: returns when the GPU has reached an event."""
        if self._event is not None:
            wait(self._event)
        return int(self._host[0])
