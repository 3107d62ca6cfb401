"""The device that one process computes on, and the order of an image's values in its memory.

Training chooses its devices in `distributed/place.py`, because there each process has its share of the GPUs.
"""

import torch

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
