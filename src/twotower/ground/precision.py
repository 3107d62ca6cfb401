"""The precision of a network's arithmetic: what can be had on a device, and the switches of torch that give it.

| precision | convolutions and products         | weights, velocities, norms, loss | where                      |
|-----------|----------------------------------|----------------------------------|----------------------------|
| fp32      | IEEE float32, no shortcuts       | float32                          | everywhere                 |
| tf32      | float32, factors of 11 bits      | float32                          | GPUs from Ampere on        |
| bf16      | bfloat16, sums in float32        | float32                          | where the processor has it |

What a layer hands to the next one, and to the other tower, is bfloat16 under bf16: half the bytes.
"""

import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

LEAST_TF32 = (8, 0)  # compute capability of Ampere, the first with TF32 and bfloat16 in its tensor cores


def _cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself; to emulate it takes longer than float32."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def check_precision(precision: str, device: torch.device, setting: str = "machine.precision") -> None:
    """Refuses what a device does not have.

    Args:
        precision: fp32, tf32 or bf16.
        setting: the key that chooses it.

    Raises: ValueError.
    """
    if precision == "fp32":
        return
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) < LEAST_TF32:
            raise ValueError(
                f"{setting}={precision} needs a GPU of compute capability 8.0 (Ampere) or newer, and {device} is a "
                f"{torch.cuda.get_device_name(device)}; use {setting}=fp32."
            )
    elif precision == "tf32":
        raise ValueError(f"{setting}=tf32 is for GPUs, and this computes on the CPU; use {setting}=fp32.")
    elif not _cpu_has_bf16():
        raise ValueError(
            f"{setting}=bf16 needs a processor that multiplies bfloat16 (avx512_bf16 or amx_bf16 among the flags of "
            f"/proc/cpuinfo), and this one does not; use {setting}=fp32."
        )


def set_precision(precision: str) -> None:
    """Sets torch's switches for this process. By default its convolutions on GPUs would be TF32."""
    # The older ones of torch's two sets of switches: its exporter still reads them, and refuses where both are used.
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def in_precision(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """The context in which a network computes; sums of squares and the like leave it by `in_full_precision`."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def in_full_precision(device: torch.device) -> Iterator[None]:
    """The context of arithmetic that stays IEEE and in the type of its tensors, whatever surrounds it."""
    if device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = True
    elif torch.is_autocast_enabled(device.type):
        with torch.autocast(device.type, enabled=False):
            yield
    else:
        yield
