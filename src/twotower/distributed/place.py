"""The place of a process before any of them has spoken: its tower and replica, its device, its share of the cores.

Ranks 2r and 2r + 1 are towers 0 and 1 of replica r, so the towers of a replica are neighbours on one node, the
processes that one torchrun has started. Of a network of one tower, each rank is a replica.
"""

import os
import socket
import sys
from dataclasses import dataclass

import torch
import torch.distributed as dist

from twotower.config import MachineConfig
from twotower.ground.gpu_check import check_seen, explain_unseen
from twotower.ground.processes import cores
from twotower.ground.wording import counted

AGENT_SECONDS = 5.0


@dataclass(frozen=True)
class Place:
    """Where a process stands among the others, before any of them has spoken."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    num_towers: int = 2  # towers of the network
    node: int = 0  # number of the torchrun that started this process

    @staticmethod
    def from_torchrun() -> "Place | None":
        """Reads the place from torchrun's environment variables; None if this is not one of its workers."""
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return None
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        return Place(
            rank,
            size,
            int(os.environ.get("LOCAL_RANK", rank)),
            int(os.environ.get("LOCAL_WORLD_SIZE", size)),
            node=int(os.environ.get("GROUP_RANK", 0)),
        )

    @property
    def tower(self) -> int:
        return self.rank % self.num_towers

    @property
    def replica(self) -> int:
        return self.rank // self.num_towers

    @property
    def is_alone(self) -> bool:
        """Whether all processes are on this node."""
        return self.local_size == self.size


def check_agent() -> None:
    """Notices that torchrun has ended, which opened its store before this process and serves it to its end.

    A process that outlives it would wait for the store as long as it may wait for a tower.

    Raises: ConnectionError.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return  # rank 0 serves the store, perhaps later than others ask for it
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        socket.create_connection((address, port), timeout=AGENT_SECONDS).close()
    except ConnectionRefusedError as error:
        raise ConnectionError(
            f"torchrun has ended: nothing listens at {address}:{port} any more, where it serves its processes; start "
            "it again."
        ) from error
    except OSError:  # of a slow network, for which the first contact has its own patience and words
        return


def check_even(size: int, num_towers: int) -> None:
    """Raises: ValueError if `size` processes cannot be pairs of towers."""
    if size % num_towers:
        raise ValueError(
            f"{counted(size, 'process was', 'processes were')} started, and each replica needs two, one for each "
            "tower: use --nproc-per-node=2, or a multiple of 2 for several replicas."
        )


def check_together(place: Place, may_be_apart: bool, transport: str) -> None:
    """Refuses a replica whose towers would be on two nodes.

    Args:
        may_be_apart: `machine.towers_apart`.

    Raises: ValueError, on each node with an odd number of processes.
    """
    is_apart = place.local_size % place.num_towers != 0
    if is_apart and may_be_apart and transport == "shared_gpu":
        raise ValueError(
            "machine.transport=shared_gpu is for towers on one GPU, and machine.towers_apart=true puts those of a "
            "replica on two nodes; give each process a GPU, or use machine.transport=pinned."
        )
    if is_apart and not may_be_apart:
        raise ValueError(
            f"{counted(place.local_size, 'process was', 'processes were')} started on this node, so the towers of a "
            "replica would be on two nodes, and everything that they exchange at each layer would cross the network; "
            "use --nproc-per-node=2, or a multiple of 2, on every node, or allow it by machine.towers_apart=true."
        )


def check_distributed() -> None:
    """Raises: ValueError if this build of torch cannot connect processes, as some for macOS and Windows cannot."""
    if not dist.is_available() or not dist.is_gloo_available():
        missing = "gloo" if dist.is_available() else "torch.distributed"
        raise ValueError(
            f"This build of torch ({torch.__version__}) has no {missing}, over which the towers' processes talk; "
            "install one that has it, as the usual builds for Linux, macOS and Windows do. Evaluation needs none."
        )


def check_room(size: int) -> None:
    """Raises: ValueError if so many processes of torch would only fill this host."""
    most = max(64, 8 * cores())
    if size > most:
        raise ValueError(
            f"machine.replicas would start {counted(size, 'process', 'processes')} on this host, which has "
            f"{counted(cores(), 'core')}; give as many replicas as take {most} at most."
        )


NEEDS = {
    "gloo": "is for towers on the CPU",
    "nccl": "needs NCCL and a GPU for each process",
    "shared_gpu": "needs a GPU",
    "pinned": "needs a GPU",
}


def choose_device(machine: MachineConfig, place: Place) -> tuple[torch.device, str]:
    """The device of this process, and the transport that suits it.

    GPUs enough for all: one each, NCCL. Fewer, or no NCCL (Windows): the towers of a replica share one. None: CPU
    and gloo, unless there is a GPU that torch cannot use.

    Raises: ValueError if what is asked for is not there, or torch cannot connect processes.
    """
    check_distributed()
    gpus = torch.cuda.device_count() if machine.device != "cpu" and torch.cuda.is_available() else 0
    if gpus == 0 and machine.device == "cuda":
        reason = explain_unseen()
        if reason is not None:
            raise ValueError(f"{reason}; or use machine.device=cpu.")
        raise ValueError(
            "machine.device=cuda, but there is no NVIDIA GPU here that may be used; use machine.device=cpu, or "
            "leave it at auto."
        )
    if gpus == 0 and machine.device == "auto":
        check_seen("machine.device")
    if gpus == 0:
        device, transport = torch.device("cpu"), "gloo"
    elif gpus >= place.local_size and machine.transport not in ("shared_gpu", "pinned") and dist.is_nccl_available():
        device, transport = torch.device("cuda", place.local_rank), "nccl"
    else:
        device, transport = torch.device("cuda", place.local_rank // place.num_towers % gpus), "shared_gpu"
        transport = "pinned" if machine.transport == "pinned" else transport
    if machine.transport not in ("auto", transport):
        raise ValueError(
            f"machine.transport={machine.transport} {NEEDS[machine.transport]}, and here are "
            f"{counted(place.local_size, 'process', 'processes')} and {counted(gpus, 'GPU')} for them"
            f"{' (machine.device=cpu)' if machine.device == 'cpu' else ''}; leave it at auto, which is {transport}."
        )
    return device, transport


def threads_per_process(machine: MachineConfig, local_size: int) -> int:
    """Threads of torch in each process: its share of the cores (torchrun's own default is 1, torch's is all)."""
    return machine.threads or max(1, cores() // local_size)


def stay_on_this_host() -> None:
    """Lets gloo and NCCL open ports on the loopback interface alone, unless another interface was chosen.

    For processes that share a host.
    """
    # Windows has no such names; torch takes the host's own interface there.
    loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
    if loopback is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    if sys.platform == "linux":
        # NCCL only meets there; the halves go from GPU to GPU.
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
