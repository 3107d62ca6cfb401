"""The protocol of two towers on one GPU, with a file for the GPU's memory: the same steps in the same order."""

import os
import pickle
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.processes import run_processes
from helpers.towers import load_network
from twotower.distributed import first_contact, gpu_memory_link
from twotower.distributed.exchange import WireExchange
from twotower.distributed.gpu_memory_link import CannotShareError, GpuMemoryLink, Inbox
from twotower.distributed.pinned_link import PinnedBuffer, PinnedLink
from twotower.model.tower import Tower, forward

CLASSES, IMAGES = 6, 4


class FileEvent:
    """Everything that is queued is done at once, so nothing is left to wait for."""

    def record(self) -> None: ...

    def wait(self) -> None: ...


class FileInbox(Inbox):
    """Memory of one process that another one maps: as CUDA IPC gives it, in a file."""

    path: str

    @staticmethod
    def _map(path: str, num_bytes: int) -> "FileInbox":
        slots = gpu_memory_link.SLOTS
        memory = torch.from_file(path, shared=True, size=slots * num_bytes, dtype=torch.uint8).view(slots, num_bytes)
        inbox = FileInbox(memory, [FileEvent()] * slots, [FileEvent()] * slots)
        inbox.path = path
        return inbox

    @staticmethod
    def make(num_bytes: int, device: torch.device) -> "FileInbox":
        handle, path = tempfile.mkstemp(prefix="twotower-test-")
        os.close(handle)
        return FileInbox._map(path, num_bytes)

    def describe(self) -> bytes:
        return pickle.dumps((self.path, self.memory.shape[1]))

    @staticmethod
    def open(description: bytes, device: torch.device) -> "FileInbox":
        path, num_bytes = pickle.loads(description)
        inbox = FileInbox._map(path, num_bytes)
        Path(path).unlink()  # both have it mapped
        return inbox


class FileMemoryLink(GpuMemoryLink):
    inbox_class = FileInbox

    def _measure(self, wait: Any) -> None:
        wait()

    def _catch_up(self) -> None: ...


def open_file_link(world: Any) -> FileMemoryLink:
    link = world.link
    return FileMemoryLink(link.tower, link.peer, link.timeout, link.memory_format, link.messages, torch.device("cpu"))


def swap_many(world: Any, slots: int) -> int:
    """How many of many swaps, of all sizes and at an uneven pace, brought something else than what was sent."""
    gpu_memory_link.SLOTS = slots
    link, pace = open_file_link(world), random.Random(world.tower)
    wrong = 0
    for number in range(300):
        size = 1 + (number * 37) % 500 * (20 if number > 150 else 1)  # grows on the way
        swap = link.swap(torch.full((size,), 1000.0 * world.tower + number), (size + number % 2,))
        if pace.random() < 0.1:
            time.sleep(pace.random() / 200)
        came = swap.wait()
        expected = torch.full((size,), 1000.0 * (1 - world.tower) + number)
        wrong += not torch.equal(came[:size], expected)
    return wrong


def test_every_swap_brings_what_was_sent(tmp_path: Path) -> None:
    assert run_processes(swap_many, tmp_path, 2) == {0: 0, 1: 0}


def test_with_one_slot_a_half_would_be_overwritten(tmp_path: Path) -> None:
    """So the test above sees what the second slot is for."""
    assert sum(run_processes(swap_many, tmp_path, 1).values()) > 0


def train_over_both(world: Any) -> list[dict[str, Tensor]]:
    """Gradients of one step over gloo, and over the memory that both share."""
    network = load_network("alexnet_2012", width=0.0625, image_size=100)
    stream = torch.Generator().manual_seed(1)
    images = torch.randn(IMAGES, 3, 100, 100, generator=stream)
    labels = torch.randint(CLASSES, (IMAGES,), generator=stream)
    gradients = []
    for link in (world.link, open_file_link(world)):
        tower = Tower(network, CLASSES, world.tower, 0).on(world.device, world.memory_format)
        exchange = WireExchange(link, world.tower, tower.rows[-1].kernels)
        for step in range(2):
            tower.at_step(step, slice(None), IMAGES)
            F.cross_entropy(forward([tower], images, exchange), labels).backward()
        gradients.append({name: p.grad for name, p in tower.paper_named_parameters().items() if p.grad is not None})
        gradients[-1]["bytes"] = torch.tensor(link.bytes_sent)
    return gradients


def test_gradients_are_the_same_bits_as_over_gloo(tmp_path: Path) -> None:
    for over_gloo, over_memory in run_processes(train_over_both, tmp_path).values():
        assert over_gloo.keys() == over_memory.keys()
        assert len(over_gloo) > 16
        for name, gradient in over_gloo.items():
            assert torch.equal(gradient, over_memory[name]), name


class RefusingInbox(FileInbox):
    """As a driver that does not let processes share memory: in WSL2, or between containers."""

    where = "make"

    @staticmethod
    def open(description: bytes, device: torch.device) -> "FileInbox":
        raise RuntimeError("CUDA error: invalid device context\nCUDA kernel errors might be reported later")


def fall_back(world: Any, refusing_tower: int) -> tuple[str, str, list[int]]:
    class RefusedLink(FileMemoryLink):
        inbox_class = RefusingInbox if world.tower == refusing_tower else FileInbox

    try:
        first_contact.GpuMemoryLink = RefusedLink  # type: ignore[misc]
        link = world.link
        settings = (link.tower, link.peer, link.timeout, link.memory_format, link.messages)
        fallen = first_contact.open_shared_gpu(torch.device("cpu"), settings)
        reason = ""
    except CannotShareError as error:
        reason = str(error)
    return type(fallen).__name__ + reason, fallen.title, fallen.check_in([world.tower])


@pytest.mark.parametrize("refusing", [0, 1])
def test_both_towers_fall_back_where_one_cannot_share(tmp_path: Path, refusing: int) -> None:
    results = run_processes(fall_back, tmp_path, refusing)
    for tower, (kind, title, numbers) in results.items():
        assert kind == PinnedLink.__name__
        assert title.startswith("gloo through pinned memory")
        assert ("CUDA error: invalid device context" if tower == refusing else "the other tower's process") in title
        assert numbers == [1 - tower]


def post_two(world: Any) -> str:
    link = open_file_link(world)
    link.swap(torch.ones(3))
    try:
        link.swap(torch.ones(3))
    except AssertionError as error:
        return str(error)
    return "nothing"


def test_a_second_swap_under_way_is_refused(tmp_path: Path) -> None:
    """The notes vouch for one at a time only."""
    assert all("one swap at a time" in said for said in run_processes(post_two, tmp_path).values())


def test_a_pinned_buffer_is_used_by_one_swap_at_a_time() -> None:
    buffer = PinnedBuffer(torch.zeros(3))
    buffer.take()
    with pytest.raises(AssertionError, match="two swaps of one shape are under way"):
        buffer.take()
    buffer.give_back()
    assert buffer.take().shape == (3,)
