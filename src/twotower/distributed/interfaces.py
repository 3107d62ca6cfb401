"""The network interface that gloo talks over: loopback within one host, else the way to the other hosts.

gloo itself takes the interface of the host's own name, which on many machines is loopback, where no other host is.
"""

import os
import socket
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from twotower.distributed.place import stay_on_this_host

INTERFACE = "GLOO_SOCKET_IFNAME"
_GET_ADDRESS = 0x8915  # SIOCGIFADDR of Linux: the IPv4 address of an interface


def name_network() -> str:
    """Two processes with the same name here share a loopback interface: one kernel, and one network within it."""
    if sys.platform != "linux":
        return socket.gethostname()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/net').st_ino}"
    except OSError:
        return socket.gethostname()


def find_own_address(other: str) -> str:
    """This host's IPv4 address on the way to another one; empty if there is no way. Nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((other, 9))  # any port will do
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def find_interface(address: str) -> str | None:
    """The name of the interface with this IPv4 address; None where that cannot be found, as on other systems."""
    if sys.platform != "linux" or not address:
        return None
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), _GET_ADDRESS, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has no address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def choose_interface(own_network: str, networks: Sequence[str], addresses: Sequence[str]) -> None:
    """Sets GLOO_SOCKET_IFNAME, unless it is set: loopback if all processes share it, else the way to the others.

    Args:
        networks: `name_network` of every process.
        addresses: those at which the processes reached the store; loopback or empty on the store's own host.
    """
    if os.environ.get(INTERFACE):
        return
    if set(networks) == {own_network}:
        stay_on_this_host()
        return
    for network, address in zip(networks, addresses, strict=True):
        if network != own_network and address and not address.startswith("127."):
            interface = find_interface(find_own_address(address))
            if interface is not None and interface != "lo":
                os.environ[INTERFACE] = interface
                return
    # The other processes are on the store's host, which is where this one's own address leads.
    own = {address for network, address in zip(networks, addresses, strict=True) if network == own_network}
    for address in sorted(own):
        interface = find_interface(address)
        if interface is not None and interface != "lo":
            os.environ[INTERFACE] = interface
            return
