"""The host never blocks on a GPU: with events of a GPU that is slow, or that never comes to an end."""

import time

import pytest
import torch

from twotower.distributed import first_contact
from twotower.distributed.first_contact import make_contact
from twotower.distributed.run_ahead import STEPS_AHEAD, RunAhead, wait_for
from twotower.distributed.transport import Swap, TowerLostError


class FakeEvent:
    """Reached when it has been asked so often; None: never."""

    made: list["FakeEvent"] = []  # noqa: RUF012

    def __init__(self, looks: int | None = 3) -> None:
        self.looks, self.is_recorded = looks, False
        FakeEvent.made.append(self)

    def record(self) -> None:
        self.is_recorded = True

    def query(self) -> bool:
        assert self.is_recorded
        if self.looks is None:
            return False
        self.looks -= 1
        return self.looks < 0

    def synchronize(self) -> None:
        raise AssertionError("the host blocks")


class NeverReached(FakeEvent):
    def __init__(self) -> None:
        super().__init__(None)


@pytest.fixture(autouse=True)
def _no_events() -> None:
    FakeEvent.made = []


def lost() -> Exception:
    return TowerLostError("Tower 0 has lost tower 1")


def open_run_ahead(event: type[FakeEvent], seconds: float = 5.0, device: str = "cuda") -> RunAhead:
    return RunAhead(torch.device(device), seconds, lost, event)


def test_a_slow_gpu_is_waited_for() -> None:
    event = FakeEvent(10)
    event.record()
    wait_for(event, 5.0, lost)
    assert event.looks is not None
    assert event.looks < 0


def test_a_gpu_that_never_ends_is_named_in_time() -> None:
    event = NeverReached()
    event.record()
    began = time.perf_counter()
    with pytest.raises(TowerLostError, match="Tower 0 has lost tower 1"):
        wait_for(event, 0.3, lost)
    assert 0.25 < time.perf_counter() - began < 10


def test_the_host_runs_ahead_by_two_steps_and_no_more() -> None:
    ahead = open_run_ahead(FakeEvent)
    for _ in range(5):
        ahead.end_step()
    done = [event.looks is not None and event.looks < 0 for event in FakeEvent.made]
    assert done == [True] * (5 - STEPS_AHEAD) + [False] * STEPS_AHEAD
    ahead.catch_up()
    assert all(event.looks is not None and event.looks < 0 for event in FakeEvent.made)


def test_a_step_that_never_ends_stops_the_next_but_one() -> None:
    ahead = open_run_ahead(NeverReached, 0.2)
    for _ in range(STEPS_AHEAD):
        ahead.end_step()
    with pytest.raises(TowerLostError):
        ahead.end_step()


def test_nothing_is_read_from_a_gpu_that_never_ends() -> None:
    ahead = open_run_ahead(NeverReached, 0.2)
    ahead.end_step()
    with pytest.raises(TowerLostError):
        ahead.catch_up()


def test_on_a_cpu_there_is_nothing_to_wait_for() -> None:
    ahead = open_run_ahead(NeverReached, device="cpu")
    ahead.end_step()
    ahead.catch_up()
    assert not FakeEvent.made


class HungLink:
    """Two cards whose board loses what they send each other: the swap is posted and never ends."""

    tower, bytes_sent = 0, 0

    def check_in(self, numbers: list[int]) -> list[int]:
        return numbers

    def swap(self, mine: torch.Tensor) -> Swap:
        self.num_bytes = mine.numel() * mine.element_size()
        return Swap(lambda: torch.ones_like(mine))


@pytest.mark.parametrize(("transport", "hint"), [("nccl", "NCCL_P2P_DISABLE=1"), ("shared_gpu", "transport=pinned")])
def test_a_first_swap_that_never_ends_says_what_to_try(
    monkeypatch: pytest.MonkeyPatch, transport: str, hint: str
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", NeverReached)
    full = torch.full
    monkeypatch.setattr(torch, "full", lambda *args, device: full(*args))  # there is no GPU
    link = HungLink()
    began = time.perf_counter()
    with pytest.raises(TowerLostError, match=rf"over {transport} has not ended after 0\.3 s\. .*{hint}"):
        make_contact(link, torch.device("cuda"), transport, 0.3)  # type: ignore[arg-type]
    assert time.perf_counter() - began < 20
    assert link.num_bytes == first_contact.CONTACT_BYTES >= 128 * 128 * 13 * 13 * 4


def test_a_first_swap_that_brings_garbage_says_what_to_try() -> None:
    class Scrambled(HungLink):
        def swap(self, mine: torch.Tensor) -> Swap:
            came = torch.ones_like(mine)
            came[-7:] = 3.0
            return Swap(lambda: came)

    with pytest.raises(TowerLostError, match=r"failed: 7 of 4194304 numbers came wrong\. .*GLOO_SOCKET_IFNAME"):
        make_contact(Scrambled(), torch.device("cpu"), "gloo")  # type: ignore[arg-type]
