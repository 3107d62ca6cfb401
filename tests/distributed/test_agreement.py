"""Hosts that would do different things are told so before they connect; processes that do not come are named."""

import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from twotower.distributed.agreement import Choice, check_same_gpus, share_choice
from twotower.distributed.place import Place
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
