"""The device that one process computes on, the order of values in its memory, and copies that nobody waits for.

Training chooses its devices in `distributed/world.py`, because there each process has its share of the GPUs.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from twotower.ground.gpu_check import check_capability, check_free, check_seen, explain_unseen

DEVICES = ("auto", "cpu", "cuda")


def choose_device(wanted: str = "auto") -> torch.device:
    """The GPU if there is one, else the CPU; `cpu` and `cuda` choose by hand.

    Raises: ValueError for another word, or for a GPU that is not there or cannot be used.
    """
    if wanted not in DEVICES:
        raise ValueError(f"device={wanted} is not known; choose one of {', '.join(DEVICES)}.")
    if wanted == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if wanted == "cuda":
            raise ValueError(f"{explain_unseen() or 'device=cuda, but torch sees no GPU'}; or use device=cpu.")
        check_seen("device")
        return torch.device("cpu")
    device = torch.device("cuda")
    check_capability(device)
    check_free(device)
    return device


def choose_memory_format(device: torch.device) -> torch.memory_format:
    """channels_last on a CPU: with one thread the towers' convolutions and pools take 0.7 times as long as in NCHW.

    On a GPU it is torch's usual format, because neither has been measured there yet.
    """
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


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
