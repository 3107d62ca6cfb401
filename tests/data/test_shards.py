"""Images in shards give the batches of the same images in files; damage is named."""

import io
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.feeds import (
    SMALL,
    assert_same,
    colourful,
    in_order,
    take,
    take_all,
    train_feed,
    val_feed,
    window,
)
from twotower.data.batch import pixel_checksum
from twotower.data.dataset import DataSet, FileSplit
from twotower.data.shards import INDEX_FILE, ShardSplit, ShardWriter, shard_name


def sharded(folder: Path, jpegs: list[bytes], labels: list[int], per_shard: int) -> ShardSplit:
    """A split in the format of launch/prepare_data.py."""
    folder.mkdir()
    indices = []
    for number, begin in enumerate(range(0, len(jpegs), per_shard)):
        writer = ShardWriter(number)
        for jpeg, label in list(zip(jpegs, labels, strict=True))[begin : begin + per_shard]:
            writer.add(f"class{label}/image{label}.jpg", jpeg, label)
        content, index, _ = writer.close()
        (folder / shard_name(number)).write_bytes(content)
        indices.append(index)
    np.save(folder / INDEX_FILE, np.concatenate(indices))
    return ShardSplit(folder, max(labels) + 1)


@dataclass
class Pair:
    """The same JPEGs as files and in shards."""

    files: DataSet
    shards: DataSet
    jpegs: list[bytes]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    root = tmp_path_factory.mktemp("pair")
    stream = np.random.default_rng(9)
    names = [f"{i}.jpg" for i in range(14)]
    for name in names:
        colourful(stream, 48, 48, 48).save(root / name)
    mean = stream.uniform(0, 255, (48, 48, 3)).astype(np.float32)
    split = FileSplit(root, names, np.arange(14))
    files = DataSet(
        ["a"], split, split, mean, np.array([90.0, 800.0, 9000.0]), np.eye(3), needs_resize=False, size=48
    )
    jpegs = [(root / name).read_bytes() for name in names]
    packed = sharded(root / "packed", jpegs, list(range(14)), per_shard=5)
    return Pair(files, replace(files, train=packed, val=packed), jpegs)


def test_shards_give_the_batches_of_the_same_files(pair: Pair) -> None:
    """Training over three epochs, the centre and ten crops, in one process and in two replicas."""
    for replica, num_replicas in ((0, 1), (1, 2)):
        at = {"replica": replica, "num_replicas": num_replicas, "batch_size": 4}
        of_files, of_shards = (take(train_feed(d, SMALL, **at), 9) for d in (pair.files, pair.shards))
        assert len({int(pixel_checksum(batch)) for batch in of_shards}) == 9
        assert_same(of_shards, of_files)
        for crops in ("centre", "ten"):
            assert_same(*(take_all(val_feed(d, SMALL, crops=crops, **at)) for d in (pair.shards, pair.files)))


def test_two_images_that_changed_places_in_a_shard_are_noticed(pair: Pair, tmp_path: Path) -> None:
    jpegs = [pair.jpegs[1], pair.jpegs[0], *pair.jpegs[2:]]
    other = replace(pair.shards, val=sharded(tmp_path / "other", jpegs, list(range(14)), 5))
    ours, theirs = (take_all(val_feed(dataset, SMALL, batch_size=14)) for dataset in (other, pair.files))
    assert torch.equal(ours[0].labels, theirs[0].labels)
    different = (ours[0].images != theirs[0].images).flatten(1).any(1)
    assert different.tolist() == [True, True] + [False] * 12


def test_images_in_shards_are_pillows_pixels(pair: Pair) -> None:
    """Each image comes once, as (crop - mean) of Pillow's pixels for the bytes that were written."""
    middle = window(pair.shards.mean_image, 4, 4, False, 40)  # type: ignore[arg-type]
    seen = dict(in_order(take_all(val_feed(pair.shards, SMALL, batch_size=5))))
    assert sorted(seen) == list(range(14))
    for label, image in seen.items():
        whole = np.asarray(Image.open(io.BytesIO(pair.jpegs[label])))
        np.testing.assert_array_equal(image, window(whole, 4, 4, False, 40) - middle)


@pytest.mark.parametrize("first_step", [1, 2, 3, 4, 7])
def test_shards_go_on_from_within_an_epoch(pair: Pair, first_step: int) -> None:
    """Three steps make an epoch, and the noise ends after two epochs."""
    config = replace(SMALL, colour_noise_epochs=2)
    through = take(train_feed(pair.shards, config), 10)
    resumed = take(train_feed(pair.shards, config, first_step=first_step, threads=2), 10 - first_step)
    assert_same(resumed, through[first_step:])


def test_a_damaged_image_in_a_shard_is_named(pair: Pair, tmp_path: Path) -> None:
    """The error names the shard and the image's name in it."""
    broken = [*pair.jpegs[:7], b"no image", *pair.jpegs[8:]]
    split = sharded(tmp_path / "val", broken, list(range(14)), 5)
    with closing(val_feed(replace(pair.shards, val=split), SMALL, batch_size=2)) as feed:
        assert len([next(feed) for _ in range(3)]) == 3
        with pytest.raises(
            RuntimeError, match=r"val/00001\.tar/class6/image6\.jpg, val/00001\.tar/class7/image7\.jpg"
        ):
            next(feed)


def test_a_shard_that_vanishes_is_named(pair: Pair, tmp_path: Path) -> None:
    split = sharded(tmp_path / "val", pair.jpegs, list(range(14)), 5)
    with closing(val_feed(replace(pair.shards, val=split), SMALL, batch_size=1)) as feed:
        next(feed)
        (tmp_path / "val" / shard_name(2)).unlink()
        with pytest.raises(FileNotFoundError, match=r"val/00002\.tar"):
            take(feed, 13)


@pytest.mark.parametrize(
    ("spoil", "kind", "named"),
    [
        (lambda content: content[:3000], OSError, r"val/00002\.tar is cut short"),
        (lambda content: bytes(len(content)), RuntimeError, r"val/00002\.tar/byte 512"),
    ],
)
def test_a_shard_that_is_spoilt_under_way_is_named(
    pair: Pair, tmp_path: Path, spoil: Any, kind: Any, named: str
) -> None:
    split = sharded(tmp_path / "val", pair.jpegs, list(range(14)), 5)
    path = tmp_path / "val" / shard_name(2)
    with closing(val_feed(replace(pair.shards, val=split), SMALL, batch_size=1)) as feed:
        next(feed)
        path.write_bytes(spoil(path.read_bytes()))
        with pytest.raises(kind, match=named):
            take(feed, 13)
