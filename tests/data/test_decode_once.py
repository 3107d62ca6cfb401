"""Each tower decodes half of a batch and gets the other half from its partner: the batches must stay bit-identical.

Between threads, where every case is quick, and between processes over gloo, as in a run.
"""

import io
import queue
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from helpers.processes import run_processes
from twotower.config import InputConfig, MachineConfig
from twotower.data.batch import Batch, Feed, Partner, Share, pixel_checksum
from twotower.data.dataset import DataSet
from twotower.data.feed import open_train, open_validation
from twotower.distributed.transport import TowerLostError
from twotower.training.trainer import Trainer

CPU = torch.device("cpu")
SIZE, CROP = 32, 24
CONFIG = InputConfig(crop_size=CROP, offsets=9, mean="aligned", colour_noise="2012")
PATIENCE = 20.0  # seconds that a thread waits for its partner


@dataclass
class Held:
    """Encoded images in memory; the class records which of them are read."""

    encoded: list[bytes]
    labels: NDArray[np.int64]
    asked: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.encoded)

    def read(self, index: int) -> NDArray[np.uint8]:
        self.asked.append(index)
        return np.frombuffer(self.encoded[index], np.uint8)

    def name(self, index: int) -> str:
        return f"image {index}"


def jpegs(count: int, size: int, seed: int) -> list[bytes]:
    """Images of noise: any two differ everywhere."""
    stream, encoded = np.random.default_rng(seed), []
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(stream.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(file, "JPEG", quality=90)
        encoded.append(file.getvalue())
    return encoded


def small_set(num_train: int = 23, num_val: int = 7, size: int = SIZE) -> DataSet:
    """A prepared set in which the label names the image."""
    stream = np.random.default_rng(4)
    splits = [Held(jpegs(count, size, count), np.arange(count)) for count in (num_train, num_val)]
    mean = stream.uniform(0, 255, (size, size, 3)).astype(np.float32)
    axes = np.linalg.qr(stream.normal(size=(3, 3)))[0]
    eigenvalues = np.array([90.0, 800.0, 9000.0])
    return DataSet(["a"], splits[0], splits[1], mean, eigenvalues, axes, needs_resize=False, size=size)


@dataclass
class Neighbour:
    """The other tower is another thread of this process."""

    tower: int
    outbox: "queue.Queue[Tensor]"
    inbox: "queue.Queue[Tensor]"
    sent: list[Tensor] = field(default_factory=list)

    def swap_images(self, mine: Tensor, num_theirs: int) -> Tensor:
        self.sent.append(mine.clone())
        self.outbox.put(self.sent[-1])
        theirs = self.inbox.get(timeout=PATIENCE)
        assert theirs.shape == (num_theirs, *mine.shape[1:])
        assert theirs.dtype == mine.dtype
        return theirs


class Reversing(Neighbour):
    """Wrong: gives the other tower's images in reverse order."""

    def swap_images(self, mine: Tensor, num_theirs: int) -> Tensor:
        return super().swap_images(mine, num_theirs).flip(0)


class Echoing(Neighbour):
    """Wrong: gives this tower's own images."""

    def swap_images(self, mine: Tensor, num_theirs: int) -> Tensor:
        super().swap_images(mine, num_theirs)
        return mine[:num_theirs]


class Mirroring(Neighbour):
    """Wrong: gives images whose rows are columns."""

    def swap_images(self, mine: Tensor, num_theirs: int) -> Tensor:
        return super().swap_images(mine, num_theirs).transpose(-2, -3)


class Exchanging(Neighbour):
    """Wrong: puts the images of the first half of a batch into the second, and the other way round."""

    def swap_images(self, mine: Tensor, num_theirs: int) -> Tensor:
        theirs = super().swap_images(mine, num_theirs)
        own = mine.clone()
        mine.copy_(theirs)
        return own


def neighbours(kind: type[Neighbour] = Neighbour) -> list[Neighbour]:
    there: queue.Queue[Tensor] = queue.Queue()
    back: queue.Queue[Tensor] = queue.Queue()
    return [kind(0, there, back), kind(1, back, there)]


def share(partner: Partner | None = None, **options: Any) -> Share:
    usual: dict[str, Any] = {"batch_size": 4, "replica": 0, "num_replicas": 1, "device": CPU, "threads": 1}
    return Share(**(usual | options), partner=partner)


def batches_of(feed: Feed, count: int | None = None) -> list[Batch]:
    with closing(feed):
        return list(islice(feed, count))


def in_both_towers(take: Callable[[Partner], list[Batch]], partners: list[Any]) -> list[list[Batch]]:
    """The results of `take` for each partner, both at the same time."""
    results: list[Any] = [None, None]

    def run(tower: int) -> None:
        try:
            results[tower] = take(partners[tower])
        except BaseException as error:
            results[tower] = error

    threads = [threading.Thread(target=run, args=(tower,), daemon=True) for tower in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
        assert not thread.is_alive(), "the towers wait for each other"
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def alike(ours: list[Batch], theirs: list[Batch]) -> bool:
    assert ours, "nothing to compare"
    return len(ours) == len(theirs) and all(
        torch.equal(a.labels, b.labels) and torch.equal(a.images, b.images) for a, b in zip(ours, theirs, strict=True)
    )


# Between threads


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize(("replica", "num_replicas"), [(0, 1), (1, 2)])
def test_training_batches_are_the_same_bits(batch_size: int, replica: int, num_replicas: int) -> None:
    """Batches over the end of an epoch and from its middle, in both towers."""
    dataset = small_set()
    at = {"batch_size": batch_size, "replica": replica, "num_replicas": num_replicas}
    per_epoch = 23 // (batch_size * num_replicas)
    first, count = per_epoch // 2, per_epoch + 2

    def take(partner: Partner | None) -> list[Batch]:
        feed = open_train(dataset, CONFIG, share(partner, **at), seed=3, first_step=first)
        return batches_of(feed, count)

    alone = take(None)
    assert len({int(pixel_checksum(batch)) for batch in alone}) == count
    for tower in in_both_towers(take, neighbours()):
        assert alike(tower, alone)


@pytest.mark.parametrize("crops", ["centre", "ten"])
@pytest.mark.parametrize(
    ("num_val", "batch_size", "num_replicas"),
    [(6, 5, 1), (7, 5, 1), (7, 7, 1), (3, 8, 1), (1, 4, 1), (4, 1, 1), (8, 3, 1), (9, 4, 2), (7, 2, 3), (2, 2, 3)],
)
def test_validation_batches_are_the_same_bits(crops: str, num_val: int, batch_size: int, num_replicas: int) -> None:
    """Last batches of one and of two images as well; each image comes once, in both towers."""
    dataset = small_set(num_val=num_val)
    seen: list[list[int]] = [[], []]
    for replica in range(num_replicas):
        at = {"batch_size": batch_size, "replica": replica, "num_replicas": num_replicas}

        def take(partner: Partner | None, at: dict[str, int] = at) -> list[Batch]:
            return batches_of(open_validation(dataset, CONFIG, share(partner, **at), crops=crops))

        alone = take(None)
        towers = in_both_towers(take, neighbours())
        for tower, labels in zip(towers, seen, strict=True):
            assert len(tower) == len(alone)
            assert not alone or alike(tower, alone)
            labels += [label for batch in tower for label in batch.labels.tolist()]
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(num_val))


def test_large_images_that_are_resized_are_the_same_bits() -> None:
    """Images of ImageNet's size, from files that are not squares of it."""
    held = Held(jpegs(6, 300, 8), np.arange(6))
    dataset = replace(small_set(size=256), train=held, val=held, needs_resize=True)
    config = replace(CONFIG, crop_size=224, offsets=33)

    def take(partner: Partner | None) -> list[Batch]:
        at = share(partner, batch_size=3)
        trained = batches_of(open_train(dataset, config, at, seed=3, first_step=0), 3)
        return trained + batches_of(open_validation(dataset, config, at))

    alone = take(None)
    for tower in in_both_towers(take, neighbours()):
        assert alike(tower, alone)


def test_training_and_validation_take_turns() -> None:
    """The next epoch's batches are decoded ahead while the validation uses the same link."""
    dataset = small_set()

    def take(partner: Partner | None) -> list[Batch]:
        at, seen = share(partner, batch_size=5), []
        with closing(open_train(dataset, CONFIG, at, seed=3, first_step=0)) as feed:
            for _ in range(3):
                seen += list(islice(feed, 3))
                seen += batches_of(open_validation(dataset, CONFIG, at))
        return seen

    alone = take(None)
    for tower in in_both_towers(take, neighbours()):
        assert alike(tower, alone)


@pytest.mark.parametrize("wrong", [Reversing, Echoing, Mirroring])
def test_wrong_partners_give_other_batches(wrong: type[Neighbour]) -> None:
    """The comparison above fails for each of these wrong partners."""
    dataset = small_set()

    def take(partner: Partner | None) -> list[Batch]:
        return batches_of(open_train(dataset, CONFIG, share(partner), seed=3, first_step=0), 2)

    alone = take(None)
    for tower in in_both_towers(take, neighbours(wrong)):
        assert all(torch.equal(a.labels, b.labels) for a, b in zip(tower, alone, strict=True))
        assert not any(torch.equal(a.images, b.images) for a, b in zip(tower, alone, strict=True))


def test_halves_in_the_wrong_order_give_other_batches() -> None:
    """Both towers get every image undamaged: only their order, against the labels, is wrong."""
    dataset = small_set(num_val=8)
    config = replace(CONFIG, mean="central")  # the same for each row, because there is no noise either

    def take(partner: Partner | None) -> list[Batch]:
        return batches_of(open_validation(dataset, config, share(partner, batch_size=4)))

    alone = take(None)
    for tower in in_both_towers(take, neighbours(Exchanging)):
        for ours, wanted in zip(tower, alone, strict=True):
            assert not torch.equal(ours.images, wanted.images)
            assert torch.equal(ours.images[[2, 3, 0, 1]], wanted.images)


def test_each_image_is_decoded_in_one_tower() -> None:
    """Tower 0 reads the first half of each batch and tower 1 the rest. Both read a single image."""
    splits = [Held(jpegs(11, SIZE, 11), np.arange(11)) for _ in (0, 1)]
    partners = neighbours()

    def take(partner: Partner) -> list[Batch]:
        dataset = replace(small_set(), val=splits[partner.tower])
        return batches_of(open_validation(dataset, CONFIG, share(partner, batch_size=5)))

    in_both_towers(take, partners)
    assert sorted(splits[0].asked) == [0, 1, 2, 5, 6, 7, 10]
    assert sorted(splits[1].asked) == [3, 4, 8, 9, 10]
    assert [len(images) for images in partners[0].sent] == [3, 3]
    assert [len(images) for images in partners[1].sent] == [2, 2]
    assert {images.dtype for partner in partners for images in partner.sent} == {torch.uint8}


def test_a_lost_tower_is_not_taken_for_a_broken_file() -> None:
    class Lost:
        tower = 1

        def swap_images(self, mine: Tensor, num_theirs: int) -> Tensor:
            raise TowerLostError("Tower 1 has lost tower 0")

    feed = open_train(small_set(), CONFIG, share(Lost()), seed=3, first_step=0)
    with closing(feed), pytest.raises(TowerLostError, match="lost tower 0"):
        next(feed)


def test_only_the_own_half_is_blamed_for_a_broken_file() -> None:
    dataset = small_set(num_val=4)
    assert isinstance(dataset.val, Held)
    dataset.val.encoded[3] = dataset.val.encoded[3][:100]
    feed = open_validation(dataset, CONFIG, share(neighbours()[1]))
    with closing(feed), pytest.raises(RuntimeError, match=r"decode: image 2, image 3$"):
        next(feed)


@pytest.mark.parametrize(
    ("choice", "transport", "shared"),
    [
        ("auto", "gloo", True),
        ("auto", "nccl", True),
        ("auto", "shared_gpu", False),
        ("auto", "pinned", False),
        ("yes", "shared_gpu", True),
        ("no", "gloo", False),
        ("no", "nccl", False),
        ("yes", "gloo", True),
    ],
)
def test_decoding_is_shared_where_it_was_chosen(choice: str, transport: str, shared: bool) -> None:
    """Two GPUs may decode one image differently, so there each is decoded by one of them."""
    config = SimpleNamespace(machine=MachineConfig(decode_once=choice))
    world = SimpleNamespace(transport=transport, link="the link", num_towers=2)
    trainer: Any = SimpleNamespace(config=config, world=world)
    assert Trainer._partner(trainer) == ("the link" if shared else None)
    world.num_towers = 1
    assert Trainer._partner(trainer) is None


# Between processes


def _feeds(world: Any, dataset: DataSet) -> dict[str, Any]:
    """Compares the batches here, where the images are, and returns checksums to compare between the processes."""
    link = world.link
    before = link.bytes_sent
    link.read_waited_ms()
    checksums: list[list[int]] = []
    same: list[bool] = []

    def take(at: Share) -> list[Batch]:
        trained = batches_of(open_train(dataset, CONFIG, at, seed=3, first_step=1), 4)
        centre, ten = (batches_of(open_validation(dataset, CONFIG, at, crops=crops)) for crops in ("centre", "ten"))
        return trained + centre + ten

    for batch_size, replica, num_replicas in ((1, 0, 1), (2, 0, 1), (5, 0, 1), (5, 0, 2), (5, 1, 2)):
        at = share(None, batch_size=batch_size, replica=replica, num_replicas=num_replicas)
        once, alone = take(replace(at, partner=link)), take(at)
        same.append(alike(once, alone))
        checksums.append([int(pixel_checksum(batch)) for batch in once])
    waited = link.read_waited_ms()
    counted = link.bytes_sent - before

    class Backwards:
        """Wrong: gives the other tower's images in reverse order."""

        tower = link.tower

        def swap_images(self, mine: Tensor, num_theirs: int) -> Tensor:
            return link.swap_images(mine, num_theirs).flip(0)

    wrong = alike(take(replace(at, partner=Backwards())), alone)

    # One tower is late, and the other one waits. That time counts for a swap of the exchange only.
    uneven = torch.arange(3 - link.tower, dtype=torch.uint8)[:, None, None] + torch.zeros(1, 2, 5, dtype=torch.uint8)
    late: dict[str, tuple[float, int]] = {}
    for kind in ("images", "exchange"):
        link.check_in([0])
        link.read_waited_ms()
        before = link.bytes_sent
        time.sleep(0.5 if link.tower == 1 else 0.0)
        if kind == "images":
            received = link.swap_images(uneven, 2 + link.tower)
        else:
            link.swap(uneven.float(), (2 + link.tower, 2, 5)).wait()
        late[kind] = (link.read_waited_ms(), link.bytes_sent - before)
    return {
        "tower": link.tower,
        "same": same,
        "wrong": wrong,
        "checksums": checksums,
        "counted": (counted, waited),
        "late": late,
        "received": received,
    }


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_over_gloo_batches_are_the_same_bits_and_the_exchange_counts_none_of_it(tmp_path: Path) -> None:
    """Odd batches, last ones of one and of two images, ten crops, two replicas. A wrong order fails."""
    dataset = small_set(num_train=41, num_val=12)  # 5 + 5 + 2 images, or 5 + 1 in each of two replicas
    seen = run_processes(_feeds, tmp_path, dataset, size=2, timeout=30, deadline=90)
    assert [one["tower"] for one in seen.values()] == [0, 1]
    for tower, one in seen.items():
        assert one["same"] == [True] * 5
        assert not one["wrong"]
        assert one["counted"] == (0, 0)
        assert one["late"]["images"] == (0, 0)
        waited, sent = one["late"]["exchange"]
        assert sent == (3 - tower) * 2 * 5 * 4
        assert tower == 1 or waited > 100
        theirs = torch.arange(2 + tower, dtype=torch.uint8)
        assert torch.equal(one["received"], theirs[:, None, None].expand(-1, 2, 5))
    assert seen[0]["checksums"] == seen[1]["checksums"]
    assert len({tuple(checksums) for checksums in seen[0]["checksums"]}) == 5
