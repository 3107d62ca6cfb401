"""Whom a training on one host can be reached by: the TCP sockets of all its processes, as the kernel lists them.

Of torchrun itself, SECURITY.md says that its stores listen on all interfaces; here nothing else does.
"""

import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest

from helpers.commands import DEADLINE, NO_WANDB, events
from helpers.marked import TRAINING, Marked
from twotower.distributed.interfaces import find_interface, find_own_address

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads sockets in /proc")

LISTENS = "0A"  # a socket's state in /proc/net/tcp
Address = IPv4Address | IPv6Address


@dataclass(frozen=True)
class Socket:
    """One end of TCP: process, own address and port, the other one's, and whether it listens."""

    pid: int
    address: Address
    port: int
    other: Address
    other_port: int
    listens: bool

    @property
    def is_local(self) -> bool:
        """Whether only this host can have to do with it."""
        return self.address.is_loopback and (self.listens or self.other.is_loopback)


def read_end(text: str) -> tuple[Address, int]:
    """`0100007F:1F90`: words of four bytes in the order of this machine, and a port."""
    words, port = text.split(":")
    content = b"".join(int(words[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(words), 8))
    address = ip_address(content)
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address, int(port, 16)


def list_sockets(pid: int) -> list[Socket]:
    owned = set()
    for descriptor in (Path("/proc") / str(pid) / "fd").iterdir():
        with suppress(OSError):  # one that was closed since
            match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(descriptor))
            owned |= {match[1]} if match else set()
    found = []
    for table in ("tcp", "tcp6"):
        for line in (Path("/proc") / str(pid) / "net" / table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[9] in owned:
                found.append(Socket(pid, *read_end(fields[1]), *read_end(fields[2]), fields[3] == LISTENS))
    return found


def look(images: Path, folder: Path, torchrun: int, variables: Mapping[str, str]) -> tuple[list[Socket], int]:
    """The sockets of all processes of a training that has made its first steps, and the number of the launcher."""
    run = Marked(
        ("two_gpu.py", *TRAINING, *NO_WANDB, f"data.root={images}", "schedule.epochs=100000", "run_dir=run"),
        folder,
        torchrun,
        variables=variables,
    )
    try:
        journal = folder / "run" / "metrics.jsonl"
        assert run.wait_until(lambda: journal.exists() and bool(events(journal.parent)), DEADLINE), run.said()
        sockets = [one for pid in run.processes() for one in list_sockets(pid)]
        assert {one.pid for one in sockets if one.listens} >= set(run.towers()), "the towers are connected"
        return sockets, run.process.pid
    finally:
        run.end()


def test_python_opens_ports_on_loopback_alone(images: Path, tmp_path: Path) -> None:
    sockets, _ = look(images, tmp_path, 0, {})
    assert [one for one in sockets if not one.is_local] == []


def test_torchrun_adds_its_stores_and_nothing_else(images: Path, tmp_path: Path) -> None:
    """The one at which its agents meet, and the one at which the processes of an attempt meet."""
    sockets, agent = look(images, tmp_path, 2, {})
    stores = {one.port for one in sockets if one.pid == agent and one.listens}
    assert len(stores) == 2
    others = [one for one in sockets if one.pid != agent or not one.listens]
    assert [one for one in others if not one.is_local and not {one.port, one.other_port} & stores] == []


def find_outer_interface() -> str | None:
    """One of this host that is not loopback, if it has an address."""
    return find_interface(find_own_address("192.0.2.1"))


@pytest.mark.skipif(sys.platform != "linux" or find_outer_interface() in (None, "lo"), reason="has loopback alone")
def test_a_port_elsewhere_is_seen(images: Path, tmp_path: Path) -> None:
    """As it would be if gloo chose by itself on a host whose name is not that of loopback."""
    interface = find_outer_interface()
    assert interface is not None
    sockets, _ = look(images, tmp_path, 0, {"GLOO_SOCKET_IFNAME": interface})
    assert [one for one in sockets if one.listens and not one.is_local]
