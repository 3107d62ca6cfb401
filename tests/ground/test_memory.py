"""Memory that is kept: a large block that was freed comes back without the kernel clearing it anew. And its peak."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from twotower.ground.memory import keep_freed_memory, peak_megabytes

# Frees and takes 64 MB ten times, and counts the pages that the kernel had to hand out for it.
SCRIPT = """
import os, resource, sys, torch
from twotower.ground.memory import keep_freed_memory
torch.set_num_threads(1)
kept = keep_freed_memory() if sys.argv[1] == "keep" else False
for _ in range(20):  # until the heap has found its place
    torch.empty(1 << 24).fill_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.empty(1 << 24).fill_(1)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **variables: str) -> tuple[bool, int]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how],
        env=clean | variables,
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    kept, pages = done.stdout.split()
    return kept == "True", int(pages)


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults of Linux")
@pytest.mark.slow
def test_freed_memory_is_kept_for_the_next_step() -> None:
    kept, few = faults("keep")
    if not kept:
        pytest.skip("the C library is not glibc")
    assert few < 1000
    _, many = faults("as it is")
    assert many > 10 * max(few, 1), "each block would be cleared anew"


@pytest.mark.slow
def test_somebodys_own_words_to_the_allocator_are_left_alone() -> None:
    for variables in ({"GLIBC_TUNABLES": "glibc.malloc.mmap_max=10"}, {"MALLOC_ARENA_MAX": "2"}):
        kept, _ = faults("keep", **variables)
        assert not kept


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells names and peaks in one file")
def test_a_process_has_its_peak_whatever_its_name() -> None:
    """Linux cuts names after 15 bytes, within a letter too."""
    comm, device = Path("/proc/self/comm"), torch.device("cpu")
    name, before = comm.read_bytes(), peak_megabytes(device)
    try:
        comm.write_bytes("14 bytes, and é".encode()[:15])
        assert peak_megabytes(device) >= before > 10
    finally:
        comm.write_bytes(name.strip())
