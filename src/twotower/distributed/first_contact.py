"""The first swap of two processes, as large as those of training: what cannot work fails here, with what to try."""

from typing import Any

import torch

from twotower.distributed.gpu_memory_link import CannotShareError, GpuMemoryLink
from twotower.distributed.nccl_link import NcclLink
from twotower.distributed.pinned_link import PinnedLink
from twotower.distributed.place import Place
from twotower.distributed.run_ahead import wait_for
from twotower.distributed.transport import Link, NoLink, TowerLostError, TowerSilentError

CONTACT_BYTES = 16 << 20  # more than the largest swap of the paper's network, 11 MB before conv3 at 128 images
CONTACT_SECONDS = 20.0

GLOO_HINT = (
    "Where processes are on several machines, name the network interface that connects them, as ip address shows it: "
    "GLOO_SOCKET_IFNAME=NAME."
)
HINTS = {
    "gloo": GLOO_HINT,
    "nccl": (
        "Try in this order: NCCL_P2P_DISABLE=1 (boards that let two cards talk and then lose it); in a container "
        "--ipc=host or --shm-size=1g; with several network cards NCCL_SOCKET_IFNAME=NAME. NCCL_DEBUG=INFO tells what "
        "NCCL does."
    ),
    "shared_gpu": "Try machine.transport=pinned, which goes through the host.",
    "pinned": "nvidia-smi and dmesg may say why.",
}


Way = tuple[torch.device, str, torch.memory_format]  # device, transport, order of an image's values in memory


def open_link(place: Place, way: Way, timeout: float, messages: Any, gpus: Any) -> Link:
    """The link to the other tower, over which a swap has gone well. Both towers call this together.

    Args:
        timeout: `machine.timeout_seconds`.
        messages: process group of gloo.
        gpus: process group of NCCL, if that is the transport.

    Raises: TowerLostError with what to try.
    """
    device, transport, memory_format = way
    settings = (place.tower, place.rank ^ 1, timeout, memory_format, messages)
    if place.num_towers == 1:
        return NoLink(*settings)
    link: Link
    if transport == "nccl":
        link = NcclLink(*settings, gpus)
    elif transport == "pinned":
        link = PinnedLink(*settings)
    elif transport == "shared_gpu":
        link = open_shared_gpu(device, settings)
    else:
        link = Link(*settings)
    make_contact(link, device, transport)
    return link


def open_shared_gpu(device: torch.device, settings: tuple[int, int, float, torch.memory_format, Any]) -> Link:
    """Through the GPU's memory if the driver lets two processes share it, else through the host."""
    direct = GpuMemoryLink(*settings, device)
    try:
        direct.reserve(CONTACT_BYTES)
    except CannotShareError as error:
        link = PinnedLink(*settings)
        link.title = f"{PinnedLink.title}, as the driver lets no processes share its memory ({error})"
        return link
    return direct


def make_contact(link: Link, device: torch.device, transport: str, seconds: float = CONTACT_SECONDS) -> None:
    """Swaps CONTACT_BYTES the way halves will go, and looks at what came.

    Args:
        seconds: that a GPU may take.

    Raises: TowerLostError with what to try.
    """
    link.check_in([link.tower])  # both hosts are here, so what fails from here on is the way itself

    def silent() -> TowerLostError:
        return TowerSilentError(
            f"The first swap over {transport} has not ended after {seconds:g} s. {HINTS[transport]}"
        )

    sent = link.bytes_sent
    try:
        came = link.swap(torch.full((CONTACT_BYTES // 4,), float(link.tower), device=device)).wait()
        num_wrong = (came != 1 - link.tower).sum()
        if device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
            wait_for(event, seconds, silent)
        if int(num_wrong):
            raise RuntimeError(f"{int(num_wrong)} of {came.numel()} numbers came wrong")
    except TowerLostError:
        raise
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise TowerLostError(f"The first swap over {transport} failed: {reason}. {HINTS[transport]}") from error
    link.bytes_sent = sent
    link.read_waited_ms()
