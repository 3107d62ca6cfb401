"""The device that one process computes on, and the order of an image's values in its memory.

Training chooses its devices in `distributed/world.py`, because there each process has its share of the GPUs.
"""

import torch

DEVICES = ("auto", "cpu", "cuda")


def choose_device(wanted: str = "auto") -> torch.device:
    """The GPU if there is one, else the CPU; `cpu` and `cuda` choose by hand.

    Raises: ValueError for another word, or for `cuda` without a GPU.
    """
    if wanted not in DEVICES:
        raise ValueError(f"device={wanted} is not known; choose one of {', '.join(DEVICES)}.")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda, but torch sees no GPU; use device=cpu or auto.")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def choose_memory_format(device: torch.device) -> torch.memory_format:
    """channels_last on a CPU: with one thread the towers' convolutions and pools take 0.7 times as long as in NCHW.

    On a GPU it is torch's usual format, because neither has been measured there yet.
    """
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format
