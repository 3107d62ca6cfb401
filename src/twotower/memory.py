"""How much memory a process has needed."""

import resource

import torch


def peak_megabytes(device: torch.device) -> float:
    """MiB at the peak so far: on a GPU what torch held there, else what the process held in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts in KiB
