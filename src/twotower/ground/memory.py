"""Measures the memory that a process has needed. (It imports torch, which `processes` must not.)"""

import sys
from importlib.util import find_spec

import torch


def peak_megabytes(device: torch.device) -> float:
    """The peak so far, in MiB: on a GPU the memory that torch held there, else the memory of the whole process.

    On a CPU under Windows it is 0, because Python has no such count there.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if find_spec("resource") is None:
        return 0.0
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts in bytes, Linux in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
