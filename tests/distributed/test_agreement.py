"""Hosts that would do different things are told so before they connect; processes that do not come are named."""

import socket
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from twotower.distributed.agreement import Choice, agree_on_attempt, check_same_gpus, deal_ranks, share_choice
from twotower.distributed.place import Place, check_agent, check_together
from twotower.distributed.transport import TowerLostError

NCCL = Choice("one", "nccl", "NVIDIA A100")
SHARED = Choice("two", "shared_gpu", "NVIDIA A100")
CPU = Choice("three", "gloo", "")


def share(folder: Path, *choices: Choice, timeout: float = 20.0) -> list[list[Choice] | Exception]:
    """What each rank, in a thread of its own, gets from `share_choice`."""
    results: list[list[Choice] | Exception] = [RuntimeError("nothing")] * len(choices)

    def ask(rank: int) -> None:
        store = dist.FileStore(str(folder / "store"), len(choices))
        try:
            results[rank] = share_choice(store, Place(rank, len(choices), 0, 1), choices[rank], timeout)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=ask, args=(rank,), daemon=True) for rank in range(len(choices))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_hosts_that_are_alike_go_on(tmp_path: Path) -> None:
    choices = [NCCL, Choice("two", "nccl", "NVIDIA A100")]
    assert share(tmp_path, *choices) == [choices, choices]


@pytest.mark.parametrize("other", [SHARED, CPU])
def test_hosts_that_differ_are_refused_in_every_process(tmp_path: Path, other: Choice) -> None:
    """One with two GPUs and one with one, or with none, would each wait for the other for ever."""
    errors = share(tmp_path, NCCL, other)
    for error in errors:
        assert isinstance(error, ValueError)
        assert "rank 0 on one: nccl on NVIDIA A100" in str(error)
        assert f"rank 1 on {other.host}: {other.transport} on {other.gpu or 'the CPU'}" in str(error)
        assert "machine.transport" in str(error)


def test_a_process_that_does_not_come_is_named(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 3)
    store.set("choice2", "{}")
    with pytest.raises(TowerLostError, match=r"has waited 0\.2 s \(machine\.timeout_seconds\) for rank 0, which"):
        share_choice(store, Place(1, 3, 0, 1), CPU, 0.2)


def test_what_this_process_says_of_itself() -> None:
    own = Choice.of_this_process("gloo", torch.device("cpu"))
    assert own.host
    assert (own.transport, own.gpu) == ("gloo", "")


def test_different_gpus_decode_each_image_once() -> None:
    other = Choice("one", "nccl", "NVIDIA L40")
    check_same_gpus([NCCL, other], "auto")
    check_same_gpus([NCCL, NCCL], "no")
    with pytest.raises(
        ValueError, match=r"decode_once=no needs GPUs of one model, .* NVIDIA A100 and NVIDIA L40; leave"
    ):
        check_same_gpus([NCCL, other], "no")


def agree(store: object, ranks: range, timeout: float = 20.0) -> dict[int, str | Exception]:
    """What each of four processes, in a thread of its own, calls their attempt."""
    found: dict[int, str | Exception] = {}

    def join(rank: int) -> None:
        try:
            found[rank] = agree_on_attempt(store, Place(rank, 4, 0, 1), timeout)
        except Exception as error:
            found[rank] = error

    threads = [threading.Thread(target=join, args=(rank,), daemon=True) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def test_processes_that_come_anew_take_no_notes_of_those_before() -> None:
    """The store outlives them: once more with all, and once after an attempt to which two did not come."""
    store = dist.HashStore()
    first, second = agree(store, range(4)), agree(store, range(4))
    late = agree(store, range(2), timeout=0.5)
    third = agree(store, range(4))
    for found in (first, second, third):
        assert set(found) == set(range(4))
        assert len(set(found.values())) == 1, found
    assert len({found[0] for found in (first, second, third)}) == 3
    assert isinstance(late[0], TowerLostError)
    assert "has waited 0.5 s (machine.timeout_seconds) for rank 2, rank 3, which did not come" in str(late[0])


def test_the_node_with_the_newest_checkpoint_comes_first() -> None:
    """torchrun numbers nodes by address, so one that has just come may be before the one that keeps the run."""
    hosts = [Choice(f"host{node}", "gloo", "", node=node, kept_step=(-1, 6, 6)[node]) for node in (0, 0, 1, 1, 2, 2)]
    places = [deal_ranks(Place(rank, 6, rank % 2, 2, node=rank // 2), hosts) for rank in range(6)]
    assert [place.rank for place, _ in places] == [2, 3, 0, 1, 4, 5]
    assert [place.tower for place, _ in places] == [0, 1] * 3
    assert [place.replica for place, _ in places] == [1, 1, 0, 0, 2, 2]
    for _, choices in places:
        assert [choice.host for choice in choices] == ["host1"] * 2 + ["host0"] * 2 + ["host2"] * 2
    shared = [Choice("host", "gloo", "", node=node, kept_step=9) for node in (0, 0, 1, 1)]
    assert [deal_ranks(Place(rank, 4, rank % 2, 2), shared)[0].rank for rank in range(4)] == [0, 1, 2, 3]


def test_towers_on_two_nodes_are_refused_unless_that_is_wanted() -> None:
    apart = Place(0, 2, 0, 1)
    with pytest.raises(ValueError, match=r"1 process was started on this node, .* machine\.towers_apart=true\."):
        check_together(apart, False, "gloo")
    check_together(apart, True, "nccl")
    with pytest.raises(ValueError, match=r"machine\.transport=shared_gpu is for towers on one GPU"):
        check_together(apart, True, "shared_gpu")
    check_together(Place(0, 4, 0, 2), False, "shared_gpu")
    check_together(Place(0, 3, 0, 1, num_towers=1), False, "nccl")


def test_a_process_that_outlives_torchrun_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was started by one that has ended since; where rank 0 serves the store, nobody may listen yet."""
    with socket.create_server(("127.0.0.1", 0)) as agent:
        port = agent.getsockname()[1]
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(port))
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        check_agent()
    with pytest.raises(ConnectionError, match=rf"torchrun has ended: .* at 127\.0\.0\.1:{port}"):
        check_agent()
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    check_agent()
