"""The processes: which tower and replica this one is, on which device, over which transport, with which time-out.

Ranks 2r and 2r + 1 are towers 0 and 1 of replica r, so the towers of a replica are neighbours on one host. Of a
network of one tower, each rank is a replica.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from twotower.config import MachineConfig
from twotower.distributed.transport import LINKS, Link, NoLink, TowerLostError
from twotower.ground.devices import choose_memory_format
from twotower.ground.processes import cores as cores
from twotower.ground.processes import die_with_parent as die_with_parent
from twotower.ground.wording import counted


@dataclass(frozen=True)
class Place:
    """Where a process stands among the others, before any of them has spoken."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    num_towers: int = 2  # towers of the network

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
        )

    @property
    def tower(self) -> int:
        return self.rank % self.num_towers

    @property
    def replica(self) -> int:
        return self.rank // self.num_towers


def check_even(size: int, num_towers: int) -> None:
    """Raises: ValueError if `size` processes cannot be pairs of towers."""
    if size % num_towers:
        raise ValueError(
            f"{counted(size, 'process was', 'processes were')} started, and each replica needs two, one for each "
            "tower: use --nproc-per-node=2, or a multiple of 2 for several replicas."
        )


def check_distributed() -> None:
    """Raises: ValueError if this build of torch cannot connect processes, as some for macOS and Windows cannot."""
    if not dist.is_available() or not dist.is_gloo_available():
        missing = "gloo" if dist.is_available() else "torch.distributed"
        raise ValueError(
            f"This build of torch ({torch.__version__}) has no {missing}, over which the towers' processes talk; "
            "install one that has it, as the usual builds for Linux, macOS and Windows do. Evaluation needs none."
        )


def choose_device(machine: MachineConfig, place: Place) -> tuple[torch.device, str]:
    """The device of this process, and the transport that suits it.

    GPUs enough for all: one each, NCCL. Fewer, or no NCCL (Windows): the towers of a replica share one. None: CPU
    and gloo.

    Raises: ValueError if what is asked for is not there, or torch cannot connect processes.
    """
    check_distributed()
    gpus = torch.cuda.device_count() if machine.device != "cpu" and torch.cuda.is_available() else 0
    if machine.device == "cuda" and gpus == 0:
        raise ValueError("machine.device=cuda, but torch sees no GPU; use machine.device=cpu or auto.")
    if gpus == 0:
        device, transport = torch.device("cpu"), "gloo"
    elif gpus >= place.local_size and machine.transport != "shared_gpu" and dist.is_nccl_available():
        device, transport = torch.device("cuda", place.local_rank), "nccl"
    else:
        device, transport = torch.device("cuda", place.local_rank // place.num_towers % gpus), "shared_gpu"
    if machine.transport not in ("auto", transport):
        raise ValueError(
            f"machine.transport={machine.transport} does not fit "
            f"{counted(place.local_size, 'process', 'processes')} on {counted(gpus, 'GPU')}, "
            f"where it must be {transport}; leave it at auto."
        )
    return device, transport


def threads_per_process(machine: MachineConfig, local_size: int) -> int:
    """Threads of torch in each process: its share of the cores (torchrun's own default is 1, torch's is all)."""
    return machine.threads or max(1, cores() // local_size)


def stay_on_this_host() -> None:
    """Lets gloo talk over the loopback interface, unless another one was chosen; for processes that share a host."""
    # Windows has no such names; torch takes the host's own interface there.
    loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
    if loopback is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)


class TowersDifferError(RuntimeError):
    """The towers were given different images, or are at different steps."""


class World:
    """This process among its peers, once they have found each other. Made by `open_world`."""

    def __init__(self, machine: MachineConfig, place: Place, store: "dist.Store") -> None:
        self.place, self._store = place, store
        self.rank, self.tower, self.replica = place.rank, place.tower, place.replica
        self.num_towers = place.num_towers
        self.num_replicas = place.size // place.num_towers
        self.device, self.transport = choose_device(machine, place)
        self.threads = threads_per_process(machine, place.local_size)
        self.memory_format = choose_memory_format(self.device)
        alone, peer = self.num_towers == 1, place.rank ^ 1
        link = NoLink if alone else LINKS[self.transport]
        self.link: Link = link(self.tower, peer, machine.timeout_seconds, self.memory_format)
        # The same tower of all replicas forms a group, because these processes share weights.
        groups = [
            dist.new_group([self.num_towers * r + tower for r in range(self.num_replicas)])
            for tower in range(self.num_towers)
        ]
        self._replicas = groups[self.tower]

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes for all."""
        return self.rank == 0

    def sum_over_replicas(self, tensors: Iterable[Tensor]) -> None:
        """Adds up each tensor over the replicas of this tower, in place. Raises: TowerLostError."""
        if self.num_replicas == 1:
            return
        try:
            works = [dist.all_reduce(t, group=self._replicas, async_op=True) for t in tensors]
            for work in works:
                assert work is not None
                work.wait()
        except RuntimeError as error:
            raise TowerLostError(
                f"Tower {self.tower} of replica {self.replica} has lost a replica: {error}"
            ) from error

    def check_alike(self, step: int, **numbers: int) -> None:
        """Compares integers between the towers. Raises: TowersDifferError naming step and number, TowerLostError."""
        others = self.link.check_in([step, *numbers.values()])
        for name, mine, theirs in zip(("step", *numbers), (step, *numbers.values()), others, strict=True):
            if mine != theirs:
                raise TowersDifferError(
                    f"The towers differ at step {step}: {name} is {mine} in tower {self.tower} and {theirs} in "
                    f"tower {1 - self.tower}. They must see the same images."
                )

    def from_first(self, name: str, make: Callable[[], str]) -> str:
        """Returns in all processes what `make` returns in rank 0; the others wait for it as long as it takes.

        The time-out does not apply, since what rank 0 makes may be a data set. Each `name` is used once.
        """
        if self.is_first:
            text = make()
            self._store.set(name, text)
            return text
        while not self._store.check([name]):
            time.sleep(0.05)
        return str(self._store.get(name).decode())

    def gather(self, values: Tensor) -> list[Tensor]:
        """Each process's `values` (float64, equally many), in the order of ranks. Raises: TowerLostError."""
        found = [torch.empty_like(values) for _ in range(self.place.size)]
        try:
            dist.all_gather(found, values)
        except RuntimeError as error:
            raise self._lost(error) from error
        return found

    def barrier(self) -> None:
        """Waits until all processes are here. Raises: TowerLostError."""
        try:
            dist.all_reduce(torch.zeros(1))
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> TowerLostError:
        """The sentence for a call that all processes make."""
        if self.num_replicas == 1:
            return self.link.lost(error)
        return TowerLostError(
            f"Tower {self.tower} of replica {self.replica} has lost another process: {error}. Start again with "
            "resume=auto to go on from the last checkpoint."
        )

    def describe(self) -> str:
        """One line about what was chosen."""
        how = {"gloo": "gloo", "nccl": "NCCL", "shared_gpu": "one GPU shared by both towers (gloo)"}
        towers = counted(self.num_towers, "tower")
        replicas = f"{self.num_replicas} replicas of {towers}" if self.num_replicas > 1 else towers
        exchange = f"exchange over {how[self.transport]}" if self.num_towers == 2 else "no exchange"
        processes = counted(self.place.size, "process", "processes")
        return f"{replicas} in {processes}, {self.device.type}, {exchange}, {counted(self.threads, 'thread')} each"

    def first_contact(self) -> None:
        """Swaps a few numbers with the other tower the way activations will go. Raises: TowerLostError."""
        if self.num_towers == 1:
            return
        self.link.check_in([self.rank])
        try:
            peer = self.link.swap(torch.full((4,), float(self.tower), device=self.device)).wait()
            if float(peer[0]) != 1 - self.tower:
                raise RuntimeError(f"Tower {self.tower} sent itself a message over {self.transport}.")
        except TowerLostError:
            raise
        except RuntimeError as error:
            hint = " Two consumer cards often need NCCL_P2P_DISABLE=1." if self.transport == "nccl" else ""
            raise TowerLostError(f"The first swap over {self.transport} failed: {error}.{hint}") from error


def _meet(place: Place, rendezvous: str | None) -> "dist.Store":
    """The board on which processes leave notes for each other."""
    if rendezvous is not None:
        return dist.FileStore(rendezvous, place.size)
    store, _, _ = next(dist.rendezvous("env://", place.rank, place.size))
    # Otherwise a restarted worker would read the addresses of the processes before it.
    return dist.PrefixStore(f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


@contextmanager
def open_world(machine: MachineConfig, place: Place, rendezvous: str | None = None) -> Iterator[World]:
    """Meets the other processes, and takes leave of them.

    Args:
        rendezvous: a file that all can reach and that does not exist yet; None: as torchrun says.

    Raises: ValueError for an odd number of processes or a device that is not there, TowerLostError.
    """
    check_even(place.size, place.num_towers)
    device, transport = choose_device(machine, place)
    torch.set_num_threads(threads_per_process(machine, place.local_size))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = _meet(place, rendezvous)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if transport == "nccl" else "gloo",
        store=dist.PrefixStore("world", store),
        rank=place.rank,
        world_size=place.size,
        timeout=timedelta(seconds=machine.timeout_seconds),
    )
    world = World(machine, place, dist.PrefixStore("notes", store))
    world.first_contact()
    yield world
    # This is done only after success, because leaving a group whose other members are gone can block.
    dist.destroy_process_group()
