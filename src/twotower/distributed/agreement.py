"""What the processes must agree on before they connect: how they will exchange, told over the store they meet at.

Each process chooses by what its own host has. Two hosts that differ would open different backends, and each would
wait for a peer that never comes; so each leaves a note with its choice, and reads those of all others.
"""

import json
import socket
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch

from twotower.distributed.place import Place
from twotower.distributed.transport import TowerLostError

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Choice:
    """What one process has chosen by itself.

    Attributes:
        transport: gloo, nccl, shared_gpu or pinned.
        gpu: the model of its GPU, empty on a CPU.
    """

    host: str
    transport: str
    gpu: str

    @staticmethod
    def of_this_process(transport: str, device: torch.device) -> "Choice":
        gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        return Choice(socket.gethostname(), transport, gpu)

    def describe(self) -> str:
        return f"{self.transport} on {self.gpu or 'the CPU'}"


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
        if time.monotonic() > deadline:
            raise TowerLostError(
                f"Rank {place.rank} on {own.host} has waited {timeout:g} s (machine.timeout_seconds) for "
                f"{', '.join(f'rank {rank}' for rank in sorted(waiting))}, which did not come; look at what those "
                "processes have printed."
            )
        time.sleep(POLL_SECONDS)
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
