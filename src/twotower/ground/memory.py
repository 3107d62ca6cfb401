"""How much memory a process has needed."""

import sys
from importlib.util import find_spec

import torch


def peak_megabytes(device: torch.device) -> float:
    """MiB at the peak so far: on a GPU what torch held there, else what the process held in all.

    0 on a CPU under Windows, which has no such count for Python.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if find_spec("resource") is None:
        return 0.0
    import resource

    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts in bytes, Linux in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
