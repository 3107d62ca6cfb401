"""Processes that share a host talk over loopback, others over the interface that leads to them."""

import os
import socket
import sys

import pytest

from twotower.distributed import interfaces
from twotower.distributed.interfaces import (
    INTERFACE,
    choose_interface,
    find_interface,
    find_own_address,
    name_network,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="interfaces have these names on Linux")


@pytest.fixture(autouse=True)
def nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (INTERFACE, "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # so that it is taken back
        monkeypatch.delenv(name)


@linux
def test_loopback_is_found_by_its_address() -> None:
    assert find_own_address("127.0.0.1") == "127.0.0.1"
    assert find_interface("127.0.0.1") == "lo"
    assert find_interface("192.0.2.77") is None, "kept for documentation, so no interface has it"
    assert find_interface("") is None
    assert find_own_address("no such host.invalid") == ""


def test_one_network_has_one_name() -> None:
    assert name_network() == name_network() != ""


@linux
def test_processes_on_one_host_stay_on_loopback() -> None:
    """Also those of two torchruns, which torchrun itself cannot tell from two hosts."""
    choose_interface("a", ["a", "a", "a", "a"], ["127.0.0.1"] * 4)
    assert os.environ[INTERFACE] == os.environ["NCCL_SOCKET_IFNAME"] == "lo"


@linux
@pytest.mark.parametrize("own", ["a", "b"])
def test_processes_on_two_hosts_take_the_way_between_them(monkeypatch: pytest.MonkeyPatch, own: str) -> None:
    """Host a has the store, and reaches it by loopback; host b reaches it by its own address. Never loopback."""
    ways = {"10.0.0.2": "10.0.0.1"}  # from a to b
    monkeypatch.setattr(interfaces, "find_own_address", lambda other: ways.get(other, ""))
    monkeypatch.setattr(interfaces, "find_interface", {"10.0.0.1": "eth0", "10.0.0.2": "ib0", "127.0.0.1": "lo"}.get)
    choose_interface(own, ["a", "a", "b", "b"], ["127.0.0.1", "127.0.0.1", "10.0.0.2", "10.0.0.2"])
    assert os.environ[INTERFACE] == {"a": "eth0", "b": "ib0"}[own]
    assert "NCCL_SOCKET_IFNAME" not in os.environ


def test_what_was_chosen_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INTERFACE, "ib7")
    choose_interface("a", ["a", "b"], ["", "10.0.0.2"])
    assert os.environ[INTERFACE] == "ib7"


def test_without_a_way_that_is_known_gloo_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interfaces, "find_own_address", lambda other: "")
    monkeypatch.setattr(socket, "if_nameindex", lambda: [])
    choose_interface("a", ["a", "b"], ["127.0.0.1", ""])
    assert INTERFACE not in os.environ
