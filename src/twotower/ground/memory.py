"""The memory of a process: what it has needed, and whether it keeps what it frees.

(It imports torch, which `processes` must not.)
"""

import ctypes
import os
import platform
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
# Parameters of mallopt, from glibc's malloc.h, and their values: no maps of their own for large blocks, nothing given
# back at the end of the heap (up to the largest int, 2 GiB), which grows by 64 MiB at a time.
_MALLOPT = {-4: 0, -1: 2**31 - 1, -2: 64 << 20}  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees, for the next step. Returns whether it could.

    glibc gives large blocks back to the kernel, which clears their pages anew at each step: a fifth of a training
    step on a CPU. Nothing happens where the C library is another one, or where its own variables are set already.
    """
    is_set = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(
        n.startswith("MALLOC_") for n in os.environ
    )
    if is_set or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return all(mallopt(parameter, value) for parameter, value in _MALLOPT.items())


def peak_megabytes(device: torch.device) -> float:
    """The peak so far, in MiB: on a GPU the memory of torch's tensors there, else the memory of the whole process.

    On a CPU under Windows it is 0, because Python has no such count there.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if find_spec("resource") is None:
        return 0.0
    import resource

    # Linux gives a new process the count of the one that started it in getrusage, and its own in this file alone.
    with suppress(OSError):
        # As bytes: the name of the process stands there, too, which may be no text at all.
        for line in _STATUS.read_bytes().splitlines():
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) / 2**10
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts in bytes, Linux in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
