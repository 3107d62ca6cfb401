"""The device that one process computes on, and the order of an image's values in its memory.

Training chooses its devices in `distributed/place.py`, because there each process has its share of the GPUs.
"""

from typing import Any, TypeVar

import torch
from torch import nn

from twotower.ground.gpu_check import check_capability, check_free, check_seen, explain_unseen
from twotower.ground.precision import in_precision

AnyModule = TypeVar("AnyModule", bound=nn.Module)
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


MEMORY_FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def choose_memory_format(device: torch.device) -> torch.memory_format:
    """channels_last on a CPU: with one thread the towers' convolutions and pools take 0.7 times as long as in NCHW.

    On a GPU it is torch's usual format; a training measures both: see `find_faster_format`.
    """
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def find_faster_format(device: torch.device, precision: str) -> str:
    """`nchw` or `nhwc`: that in which conv2 and conv4 of a tower go faster forward and backward on a GPU."""
    seconds = {
        name: _time_convolutions(device, precision, memory_format) for name, memory_format in MEMORY_FORMATS.items()
    }
    return min(seconds, key=lambda name: seconds[name])


def in_memory_format(module: AnyModule, memory_format: torch.memory_format) -> AnyModule:
    """The module, whose weights of four dimensions now have that memory format."""
    to: Any = module.to  # whose types know of the format in some releases of torch
    to(memory_format=memory_format)
    return module


def _time_convolutions(device: torch.device, precision: str, memory_format: torch.memory_format) -> float:
    """Milliseconds of both convolutions at 64 images, after three times that are not timed."""
    layers = [(torch.nn.Conv2d(48, 128, 5, padding=2), 27), (torch.nn.Conv2d(192, 192, 3, padding=1), 13)]
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for times in (3, 10):
        begin.record()
        for layer, side in layers:
            layer = in_memory_format(layer.to(device), memory_format)
            x = torch.randn(64, layer.in_channels, side, side, device=device)
            x = x.contiguous(memory_format=memory_format).requires_grad_()
            for _ in range(times):
                with in_precision(precision, device):
                    y = layer(x)
                y.backward(torch.ones_like(y))
        end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))
