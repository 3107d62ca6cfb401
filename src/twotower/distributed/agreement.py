"""What the processes must agree on before they connect: how they will exchange, told over the store they meet at.

Each process chooses by what its own host has. Two hosts that differ would open different backends, and each would
wait for a peer that never comes; so each leaves a note with its choice, and reads those of all others.

The store may outlive processes: torchrun starts new ones after a failure, also on a node that has just come, and
their notes must not be mistaken for those of the processes before. So all first agree on a name for their attempt.
"""

import json
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch

from twotower.distributed.place import Place
from twotower.distributed.transport import TowerLostError

POLL_SECONDS = 0.05
NOT_LOOKED = -3  # the step of a process that leaves the look at checkpoints to the first one of its node


@dataclass(frozen=True)
class Choice:
    """What one process has chosen by itself.

    Attributes:
        transport: gloo, nccl, shared_gpu or pinned.
        gpu: the model of its GPU, empty on a CPU.
        node: number of the torchrun that started the process.
        network, address: see `interfaces`.
        kept_step: of the newest checkpoint that the process's host has of the run that is to go on; -1: none;
            -2: none, as another host keeps it.
    """

    host: str
    transport: str
    gpu: str
    node: int = 0
    network: str = ""
    address: str = ""
    kept_step: int = NOT_LOOKED

    @staticmethod
    def of_this_process(transport: str, device: torch.device) -> "Choice":
        gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        return Choice(socket.gethostname(), transport, gpu)

    def describe(self) -> str:
        return f"{self.transport} on {self.gpu or 'the CPU'}"


def _wait_longer(deadline: float, sentence: str) -> None:
    """Raises: TowerLostError with the sentence once the deadline is over."""
    if time.monotonic() > deadline:
        raise TowerLostError(sentence)
    time.sleep(POLL_SECONDS)


def agree_on_attempt(store: Any, place: Place, timeout: float) -> str:
    """A name that exactly these processes share, whatever earlier ones have left in the store.

    Each process leaves a number of its own; rank 0 writes a list of those that it sees, with the attempt's name, and
    again while they change. Who finds its own number in the list takes the name, and says so.

    Raises: TowerLostError naming who has not come.
    """
    own, deadline = uuid4().hex, time.monotonic() + timeout
    store.set(f"hello{place.rank}", own)
    waiting = list(range(place.size))
    while waiting:
        if place.rank == 0:
            came = [rank for rank in range(place.size) if store.check([f"hello{rank}"])]
            store.set("roster", json.dumps({str(rank): store.get(f"hello{rank}").decode() for rank in came}))
        roster = json.loads(store.get("roster")) if store.check(["roster"]) else {}
        if roster.get(str(place.rank)) == own:
            store.set(f"joined{place.rank}", roster["0"])
            if place.rank != 0:
                return str(roster["0"])
        if place.rank == 0:
            joined = [rank for rank in waiting if store.check([f"joined{rank}"])]
            waiting = [r for r in waiting if r not in joined or store.get(f"joined{r}").decode() != own]
        if waiting:
            late = waiting if place.rank == 0 else [0]
            _wait_longer(deadline, _say_missing(place, socket.gethostname(), timeout, late))
    return own


def _say_missing(place: Place, host: str, timeout: float, missing: Sequence[int]) -> str:
    return (
        f"Rank {place.rank} on {host} has waited {timeout:g} s (machine.timeout_seconds) for "
        f"{', '.join(f'rank {rank}' for rank in sorted(missing))}, which did not come; look at what those "
        "processes have printed."
    )


def deal_ranks(place: Place, choices: Sequence[Choice]) -> tuple[Place, list[Choice]]:
    """The node that holds the newest checkpoint comes first, because rank 0 goes on from it; others keep their order.

    torchrun numbers the nodes by their addresses, so a node that joins later may come before the one that has kept
    the run so far. On a disk that all share nothing changes.

    Returns the place with its new rank, and the choices by new rank.
    """
    newest = max(choice.kept_step for choice in choices)
    first = next(choice.node for choice in choices if choice.kept_step == newest)
    order = sorted(range(len(choices)), key=lambda rank: (choices[rank].node != first, rank))
    return replace(place, rank=order.index(place.rank)), [choices[rank] for rank in order]


def share_choice(store: Any, place: Place, own: Choice, timeout: float) -> list[Choice]:
    """Tells all other processes what this one has chosen. Returns the choices of all, by rank.

    Args:
        store: of torch.distributed; keys are used once.
        timeout: seconds that the others may take to come.

    Raises: ValueError if they differ, in every process alike; TowerLostError naming who has not come.
    """
    store.set(f"choice{place.rank}", json.dumps(asdict(own)))
    deadline = time.monotonic() + timeout
    waiting = set(range(place.size))
    while waiting := {rank for rank in waiting if not store.check([f"choice{rank}"])}:
        _wait_longer(deadline, _say_missing(place, own.host, timeout, sorted(waiting)))
    store.set_timeout(timedelta(seconds=timeout))
    choices = [Choice(**json.loads(store.get(f"choice{rank}"))) for rank in range(place.size)]
    if len({choice.transport for choice in choices}) > 1:
        found = "; ".join(f"rank {rank} on {c.host}: {c.describe()}" for rank, c in enumerate(choices))
        raise ValueError(
            f"The processes would exchange in different ways ({found}), and all must use one; give every host as "
            "many GPUs as it has processes, or choose by machine.transport and machine.device what all of them can."
        )
    return choices


def check_same_gpus(choices: list[Choice], decode_once: str) -> None:
    """Raises: ValueError if both towers would decode every image, on GPUs whose decoders may differ in a bit."""
    models = sorted({choice.gpu for choice in choices})
    if decode_once == "no" and len(models) > 1:
        raise ValueError(
            f"machine.decode_once=no needs GPUs of one model, as decoders of different ones differ in single bits, "
            f"and these are {' and '.join(models)}; leave machine.decode_once at auto."
        )
