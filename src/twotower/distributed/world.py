"""A process among its peers, once they have found each other: sums, comparisons, and leave at the end."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from twotower.config import MachineConfig
from twotower.distributed.place import Place, check_even, choose_device, threads_per_process
from twotower.distributed.transport import LINKS, Link, NoLink, TowerLostError
from twotower.ground.devices import choose_memory_format
from twotower.ground.wording import counted


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
