"""Input that is refused or breaks later: an error names it, and no thread stays."""

import gc
import os
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.feeds import (
    FULL,
    PLAIN,
    SMALL,
    Known,
    all_at_once,
    assert_same,
    colourful,
    take,
    take_all,
    train_feed,
    val_feed,
    val_only,
)
from twotower.config import InputConfig
from twotower.data.batch import Batch, Feed
from twotower.data.crops import check_crops


def test_crops_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Both the check before a run and the feeds refuse it. The largest crop that fits is accepted."""
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    dataset = all_at_once(tmp_path, ["a.png"], 32, needs_resize=False)
    config = InputConfig(crop_size=24, offsets=9)
    check_crops(config, 32)
    assert take(train_feed(dataset, config, batch_size=1), 1)[0].images.shape == (1, 3, 24, 24)
    with pytest.raises(ValueError, match=r"input\.offsets=10 is more than the 9 positions.*at most 9"):
        check_crops(replace(config, offsets=10), 32)
    with pytest.raises(ValueError, match=r"input\.offsets=10 .*at most 9"):
        train_feed(dataset, replace(config, offsets=10), batch_size=1)
    centred = replace(config, offsets=10, random_crop=False)  # nothing is ever drawn from it
    check_crops(centred, 32)
    assert take(train_feed(dataset, centred, batch_size=1), 1)[0].images.shape == (1, 3, 24, 24)
    large = replace(config, crop_size=33, offsets=1)
    opens: list[Callable[[], Any]] = [
        lambda: check_crops(large, 32),
        lambda: train_feed(dataset, large, batch_size=1),
        lambda: val_feed(dataset, large),
        lambda: val_feed(dataset, large, crops="ten"),
    ]
    for open_feed in opens:
        with pytest.raises(ValueError, match=r"network\.image_size=33 is more than the 32 pixels"):
            open_feed()


def test_decoding_on_a_gpu_that_is_not_used_is_refused(known: Known) -> None:
    for open_feed in (train_feed, val_feed):
        with pytest.raises(ValueError, match=r"machine\.loader_device=gpu.*machine\.loader_device=auto"):
            open_feed(known.dataset, PLAIN, loader_device="gpu")


def test_auto_decodes_where_the_towers_are(known: Known) -> None:
    auto = take(train_feed(known.dataset, FULL), 2)
    assert_same(auto, take(train_feed(known.dataset, FULL, loader_device="cpu"), 2))


def test_a_set_without_a_whole_batch_is_refused(known: Known) -> None:
    with pytest.raises(ValueError, match=r"11 images.*batch_size=6 x 2 replicas"):
        train_feed(known.dataset, PLAIN, batch_size=6, num_replicas=2)


def test_a_file_that_breaks_later_is_named(tmp_path: Path) -> None:
    for name in ("good.png", "broken.png"):
        Image.new("RGB", (256, 256), "red").save(tmp_path / name)
    dataset = val_only([tmp_path / "good.png", tmp_path / "broken.png"])
    content = (tmp_path / "broken.png").read_bytes()
    (tmp_path / "broken.png").write_bytes(content[: len(content) // 2])
    with closing(val_feed(dataset)) as feed, pytest.raises(RuntimeError, match=r"broken\.png"):
        next(feed)


def vanish(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def become_text(path: Path) -> None:
    path.write_text("This was a photograph.")


def be_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:900])


def shrink(path: Path) -> None:
    Image.new("RGB", (20, 20)).save(path)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("change", [vanish, empty, become_text, be_cut, shrink])
def test_a_file_that_changes_under_way_is_named(tmp_path: Path, change: Any, training: bool) -> None:
    """The batches before it are right, and the error blames neither the batch before nor the one after."""
    stream = np.random.default_rng(6)
    names = [f"{i}.jpg" for i in range(24)]
    for name in names:
        colourful(stream, 48, 48).save(tmp_path / name)
    dataset = all_at_once(tmp_path, names, 48, needs_resize=False)

    def opened() -> Feed:
        if training:
            return train_feed(dataset, SMALL, batch_size=2)
        return val_feed(dataset, SMALL, batch_size=2)

    usual = take(opened(), 12)
    late = usual[8].labels[1].item()
    batches: list[Batch] = []

    def go_on(feed: Feed) -> None:
        while len(batches) < 12:
            batches.append(next(feed))

    with closing(opened()) as feed:
        batches.append(next(feed))
        change(tmp_path / f"{late}.jpg")
        with pytest.raises((OSError, RuntimeError), match=rf"(\D|^){late}\.jpg") as raised:
            go_on(feed)
    assert 4 < len(batches) <= 8
    assert_same(batches, usual[: len(batches)])
    if change is vanish:
        assert isinstance(raised.value, FileNotFoundError)
    else:
        assert str(raised.value).count(".jpg") == 2


@pytest.mark.slow
def test_closed_feeds_leave_no_threads(known: Known, tmp_path: Path) -> None:
    """No threads stay, neither Python's readers nor DALI's decoders, whether a feed is used up, left or broken."""

    def readers() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("read")]

    def natives() -> int:
        return len(os.listdir("/proc/self/task"))

    def once() -> None:
        with closing(train_feed(known.dataset, FULL)) as feed:
            next(feed)
            assert readers()
            feed.close()  # closing twice is allowed
        take_all(val_feed(known.dataset))
        train_feed(known.dataset, FULL).close()  # nothing was taken
        Image.new("RGB", (256, 256)).save(tmp_path / "a.png")
        broken = val_only([tmp_path / "a.png"])
        vanish(tmp_path / "a.png")
        with closing(val_feed(broken)) as feed, pytest.raises(FileNotFoundError):
            next(feed)
        with pytest.raises(ValueError, match="fewer than one step"):
            train_feed(known.dataset, FULL, batch_size=50)
        gc.collect()

    assert not readers()
    once()  # torch and DALI start some threads that stay
    assert not readers()
    before = natives()
    for _ in range(3):
        once()
    assert not readers()
    assert natives() <= before + 4  # one feed has about eight
