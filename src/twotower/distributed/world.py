"""A process among its peers, once they have found each other: sums, comparisons, and leave at the end."""

import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from twotower.config import MachineConfig
from twotower.distributed.agreement import (
    NOT_LOOKED,
    Choice,
    agree_on_attempt,
    check_same_gpus,
    deal_ranks,
    share_choice,
)
from twotower.distributed.first_contact import GLOO_HINT, open_link
from twotower.distributed.interfaces import choose_interface, find_own_address, name_network
from twotower.distributed.place import (
    Place,
    check_even,
    check_together,
    choose_device,
    stay_on_this_host,
    threads_per_process,
)
from twotower.distributed.run_ahead import RunAhead
from twotower.distributed.transport import Link, TowerLostError, TowerSilentError
from twotower.ground.devices import MEMORY_FORMATS, choose_memory_format, find_faster_format
from twotower.ground.gpu_check import check_capability, check_free
from twotower.ground.host_copies import HostCopy
from twotower.ground.memory import keep_freed_memory
from twotower.ground.precision import check_precision, set_precision
from twotower.ground.wording import counted

_WORDS_OF_TRANSPORT = ("gloo", "nccl", "connection", "socket", "timed out", "timeout")
MEETING_SECONDS = 25.0  # time to connect, for processes of which each has said already that it is there


class TowersDifferError(RuntimeError):
    """The towers were given different images, are at different steps, or have swapped in different orders."""


@dataclass(frozen=True)
class _Check:
    """Numbers that both towers must have alike, the step first, and what waits for the other tower's."""

    names: tuple[str, ...]
    mine: list[int]
    arrive: Callable[[], list[int]]


class World:
    """This process among its peers, once they have found each other. Made by `open_world`."""

    def __init__(
        self,
        machine: MachineConfig,
        place: Place,
        store: "dist.Store",
        device: torch.device,
        transport: str,
        choices: Sequence[Choice],
    ) -> None:
        self.place, self._store = place, store
        self._hosts = {choice.node: choice.host for choice in choices}  # in the order of ranks
        self.rank, self.tower, self.replica = place.rank, place.tower, place.replica
        self.num_towers = place.num_towers
        self.num_replicas = place.size // place.num_towers
        self.device, self.transport, self.precision = device, transport, machine.precision
        self.threads = threads_per_process(machine, place.local_size)
        self.memory_format = self._choose_format(machine.memory_format)
        self._timeout = timedelta(seconds=machine.timeout_seconds)
        self._messages: Any = dist.new_group(backend="gloo", timeout=self._timeout)
        self.link: Link = open_link(
            place,
            (self.device, self.transport, self.memory_format),
            machine.timeout_seconds,
            self._messages,
            self._pair_gpus(),
        )
        self._replicas = self._join_replicas()
        self._run_ahead = RunAhead(self.device, machine.timeout_seconds, self._stuck)
        self._checks: list[_Check] = []

    def _choose_format(self, wanted: str) -> torch.memory_format:
        """By `machine.memory_format`, the same in all processes, as halves cross in it. On a GPU rank 0 measures."""
        if wanted == "auto" and self.device.type == "cpu":
            return choose_memory_format(self.device)
        if wanted == "auto":
            wanted = self.from_first("memory format", lambda: find_faster_format(self.device, self.precision))
        return MEMORY_FORMATS[wanted]

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes for all."""
        return self.rank == 0

    @property
    def nodes(self) -> dict[int, str]:
        """The hosts by the numbers of their nodes, that of rank 0 first."""
        return self._hosts

    def _pair_gpus(self) -> Any:
        """NCCL's group of both towers of this replica; None without NCCL. All processes call this together."""
        if self.transport != "nccl" or self.num_towers == 1:
            return None
        # The host notices a silent tower itself, and says so before NCCL ends the process without a sentence.
        pairs = [
            dist.new_group([2 * r, 2 * r + 1], backend="nccl", timeout=2 * self._timeout)
            for r in range(self.num_replicas)
        ]
        return pairs[self.replica]

    def _join_replicas(self) -> Any:
        """The group of the same tower of all replicas, as these processes share weights."""
        if self.num_replicas == 1:
            return None
        backend, timeout = "gloo", self._timeout
        if self.transport == "nccl":
            backend, timeout = "cpu:gloo,cuda:nccl", 2 * self._timeout
        groups = [
            dist.new_group(
                [self.num_towers * r + tower for r in range(self.num_replicas)], backend=backend, timeout=timeout
            )
            for tower in range(self.num_towers)
        ]
        return groups[self.tower]

    def end_step(self) -> None:
        """Lets the host run at most two steps ahead of the GPU. Raises: TowerLostError instead of hanging."""
        self._run_ahead.end_step()

    def catch_up(self) -> None:
        """Waits for the GPU, without blocking; called before anything is read from it. Raises: TowerLostError."""
        self._run_ahead.catch_up()

    def _stuck(self) -> TowerLostError:
        """For a GPU that waits in vain, of which the other tower is the likely cause."""
        return self.link.lost(TimeoutError("timeout"))

    def read_later(self, number: Tensor) -> Callable[[], int]:
        """Copies an integer from the device without waiting. Returns what reads it, and waits if it is not there."""
        copy = HostCopy(number)
        return lambda: copy.read(self._run_ahead.wait_for)

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
            raise self._lost_replica(error) from error

    def copy_from_first_replica(self, tensors: Iterable[Tensor]) -> None:
        """Gives each tensor the values that it has in this tower's process of replica 0. Raises: TowerLostError."""
        if self.num_replicas == 1:
            return
        try:
            for tensor in tensors:
                values = tensor.detach().contiguous()
                dist.broadcast(values, src=self.tower, group=self._replicas)
                tensor.data.copy_(values)
        except RuntimeError as error:
            raise self._lost_replica(error) from error

    def share_gradients(self, network: nn.Module) -> nn.Module:
        """The same network, whose gradients are means over the replicas of this tower once a backward pass is over.

        They travel in buckets while the pass still runs (torch's DistributedDataParallel). All replicas call this
        together, with equal weights, and again after the choice of trained layers has changed.
        """
        if self.num_replicas == 1:
            return network
        with warnings.catch_warnings():
            # It has a new name from torch 2.13 on; without it the norms' constants would be sent at each step.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
            return DistributedDataParallel(
                network,
                process_group=self._replicas,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
                # Layers above which nothing is trained have no gradient. Besides, it keeps the buckets as they are
                # from the first step on, so that a resumed run adds in the same order.
                find_unused_parameters=True,
            )

    def go_backward(self, loss: Tensor) -> None:
        """The backward pass. Raises: TowerLostError."""
        try:
            loss.backward()
        except TowerLostError:
            raise
        except RuntimeError as error:
            if self.num_replicas == 1 or not any(word in str(error).lower() for word in _WORDS_OF_TRANSPORT):
                raise
            raise self._lost_replica(error) from error

    def _lost_replica(self, error: Exception) -> TowerLostError:
        return self._lost_one(error, "replica", "a process of it has ended")

    def _lost_one(self, error: Exception, what: str, ended: str) -> TowerLostError:
        silent = any(word in str(error).lower() for word in ("timed out", "timeout"))
        reason = f"it has not answered for {self._timeout.seconds} s" if silent else ended
        kind = TowerSilentError if silent else TowerLostError
        return kind(
            f"Tower {self.tower} of replica {self.replica} has lost another {what}: {reason}. Start again with "
            "resume=auto to go on from the last checkpoint."
        )

    def check_alike(self, step: int, **numbers: int) -> None:
        """Compares integers between the towers. Raises: TowersDifferError naming step and number, TowerLostError."""
        self.post_check(step, numbers)
        self.finish_checks()

    def post_check(self, step: int, numbers: Mapping[str, int]) -> None:
        """Sends integers that both towers must have alike; `finish_checks` compares them, a step later.

        Raises: TowerLostError.
        """
        mine = [step, *numbers.values()]
        self._checks.append(_Check(("step", *numbers), mine, self.link.post_numbers(mine)))

    def finish_checks(self) -> None:
        """Compares all that was posted. Raises: TowersDifferError naming step and number, TowerLostError."""
        checks, self._checks = self._checks, []
        for check in checks:
            for name, mine, theirs in zip(check.names, check.mine, check.arrive(), strict=True):
                if mine != theirs:
                    raise TowersDifferError(
                        f"The towers differ at step {check.mine[0]}: {name} is {mine} in tower {self.tower} and "
                        f"{theirs} in tower {1 - self.tower}. They must see the same images, and swap "
                        "the same tensors in the same order."
                    )

    def from_first(self, name: str, make: Callable[[], str]) -> str:
        """Returns in all processes what `make` returns in rank 0; the others wait for it as long as it takes.

        The time-out does not apply, since what rank 0 makes may be a data set. Each `name` is used once.
        """
        return self._from_process(self.is_first, name, make)

    def from_each_node(self, name: str, make: Callable[[], str]) -> dict[int, str]:
        """What `make` returns in the first process of each node, by the node's number; otherwise as `from_first`."""
        is_own = {node: self.place.local_rank == 0 and node == self.place.node for node in self._hosts}
        own = next((node for node, mine in is_own.items() if mine), None)
        if own is not None:  # before waiting for others, so that the nodes work side by side
            self._from_process(True, f"{name} of node {own}", make)
        return {node: self._from_process(False, f"{name} of node {node}", make) for node in self._hosts}

    def _from_process(self, is_own: bool, name: str, make: Callable[[], str]) -> str:
        try:
            if is_own:
                text = make()
                self._store.set(name, text)
                return text
            while not self._store.check([name]):
                time.sleep(0.05)
            return str(self._store.get(name).decode())
        except (dist.DistError, ConnectionError) as error:
            raise TowerLostError(
                f"Rank {self.rank} has lost the node at which the processes meet ({_first_line(error)}). Start again "
                "with resume=auto to go on from the last checkpoint."
            ) from error

    def gather(self, values: Tensor) -> list[Tensor]:
        """Each process's `values` (float64, equally many), in the order of ranks. Raises: TowerLostError."""
        found = [torch.empty_like(values) for _ in range(self.place.size)]
        try:
            dist.all_gather(found, values, group=self._messages)
        except RuntimeError as error:
            raise self._lost(error) from error
        return found

    def barrier(self) -> None:
        """Waits until all processes are here. Raises: TowerLostError."""
        try:
            dist.all_reduce(torch.zeros(1), group=self._messages)
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> TowerLostError:
        """The sentence for a call that all processes make."""
        if self.num_replicas == 1:
            return self.link.lost(error)
        return self._lost_one(error, "process", "it has ended")

    def notice_return(self) -> str | None:
        """Says that a lost node could not come back, where torchrun is to wait for it and does not know how."""
        waits = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0 and len(self._hosts) > 1
        if not waits or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return None
        return (
            "a lost node cannot come back, because torchrun keeps the store of the first attempt: start it with "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in the environment of every node"
        )

    def describe(self) -> str:
        """One line about what was chosen."""
        towers = counted(self.num_towers, "tower")
        replicas = f"{self.num_replicas} replicas of {towers}" if self.num_replicas > 1 else towers
        exchange = f"exchange over {self.link.title}" if self.num_towers == 2 else "no exchange"
        processes = counted(self.place.size, "process", "processes")
        nodes = f" on {len(self._hosts)} nodes" if len(self._hosts) > 1 else ""
        place = f"{replicas} in {processes}{nodes}, {self.device.type}, {self.precision}"
        if self.device.type == "cuda":
            place += ", NHWC" if self.memory_format == torch.channels_last else ", NCHW"
        return f"{place}, {exchange}, {counted(self.threads, 'thread')} each"


def open_gpu(device: torch.device) -> None:
    """Chooses the GPU of this process and the switches of what computes and sends on it. Raises: ValueError."""
    torch.cuda.set_device(device)
    check_capability(device)
    check_free(device)
    torch.backends.cudnn.benchmark = True  # all batches have one shape, so the fastest convolution is worth a search
    # NCCL's watchdog is the second to speak, and then ends the process in seconds instead of a minute.
    os.environ.setdefault("TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC", "1000")
    # A swap is ready at the same moment as the convolution that it is to overlap with, and must not wait behind it.
    os.environ.setdefault("TORCH_NCCL_HIGH_PRIORITY", "1")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _meet(place: Place, rendezvous: str | None, timeout: float) -> "dist.Store":
    """The board on which processes leave notes for each other. Raises: TowerLostError."""
    if rendezvous is not None:
        return dist.FileStore(rendezvous, place.size)
    try:
        store, _, _ = next(dist.rendezvous("env://", place.rank, place.size, timeout=timedelta(seconds=timeout)))
        return dist.PrefixStore(agree_on_attempt(store, place, timeout), store)
    except (dist.DistError, ConnectionError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise TowerLostError(
            f"Rank {place.rank} cannot talk to {where}, where the processes meet ({_first_line(error)}); this name "
            "must lead to the first node from every node (--local-addr of torchrun gives another one)."
        ) from error


@contextmanager
def open_world(
    machine: MachineConfig, place: Place, rendezvous: str | None = None, kept_step: int = NOT_LOOKED
) -> Iterator[World]:
    """Meets the other processes, and takes leave of them.

    Args:
        rendezvous: a file that all can reach and that does not exist yet; None: as torchrun says.
        kept_step: as in `Choice`. Ranks are dealt anew if another node than the first has the newest checkpoint.

    Raises: ValueError for towers that would be apart or a device that is not there, TowerLostError.
    """
    check_even(place.size, place.num_towers)
    device, transport = choose_device(machine, place)
    check_together(place, machine.towers_apart, transport)
    if place.is_alone:
        stay_on_this_host()
    torch.set_num_threads(threads_per_process(machine, place.local_size))
    keep_freed_memory()
    check_precision(machine.precision, device)
    set_precision(machine.precision)
    if device.type == "cuda":
        open_gpu(device)
    store = _meet(place, rendezvous, machine.timeout_seconds)
    address = "" if rendezvous is not None else find_own_address(os.environ.get("MASTER_ADDR", ""))
    own = replace(
        Choice.of_this_process(transport, device),
        node=place.node,
        network=name_network(),
        address=address,
        kept_step=kept_step,
    )
    choices = share_choice(dist.PrefixStore("choices", store), place, own, machine.timeout_seconds)
    choose_interface(own.network, [choice.network for choice in choices], [choice.address for choice in choices])
    place, choices = deal_ranks(place, choices)
    if place.num_towers == 2:
        check_same_gpus(choices, machine.decode_once)
    try:
        dist.init_process_group(
            "gloo",
            store=dist.PrefixStore("world", store),
            rank=place.rank,
            world_size=place.size,
            timeout=timedelta(seconds=min(machine.timeout_seconds, MEETING_SECONDS)),
        )
        world = World(machine, place, dist.PrefixStore("notes", store), device, transport, choices)
    except TowerLostError:
        raise
    except RuntimeError as error:
        reason = _first_line(error)
        raise TowerLostError(f"The processes have met, but cannot connect: {reason}. {GLOO_HINT}") from error
    yield world
    # This is done only after success, because leaving a group whose other members are gone can block.
    dist.destroy_process_group()
