"""Images that are decoded once and for all: the same batches from pixels in a file, and from those on a device."""

import errno
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.commands import NO_WANDB, SMALL, command, finish, numbers
from helpers.feeds import SMALL as INPUT
from helpers.feeds import assert_same, colourful, share, take, take_all, train_feed, val_feed
from twotower.config import DataConfig, MachineConfig, PrepareConfig, SourceConfig
from twotower.data import decoded_squares
from twotower.data.choose_loader import check_loader
from twotower.data.dataset import DataSet, DecodedPlace, FileSplit
from twotower.data.decoded_squares import check_cache, decode_squares, open_decoded
from twotower.data.device_loader import DeviceLoader
from twotower.data.feed import open_train
from twotower.data.load_data import load
from twotower.data.loader import Cutting, Encoded
from twotower.data.preparing.build_set import build

SIZE, NUM_TRAIN, NUM_VAL = 48, 11, 7
HOST, DEVICE = replace(INPUT, cache="host"), replace(INPUT, cache="device")


def draw(folder: Path, count: int, seed: int) -> FileSplit:
    folder.mkdir(parents=True)
    stream = np.random.default_rng(seed)
    names = [f"{number}.jpg" for number in range(count)]
    for name in names:
        colourful(stream, SIZE, SIZE).save(folder / name, quality=90)
    return FileSplit(folder, names, np.arange(count))


def make_set(root: Path, seed: int = 1) -> DataSet:
    train, val = draw(root / "train", NUM_TRAIN, seed), draw(root / "val", NUM_VAL, seed + 1)
    mean = np.random.default_rng(2).uniform(0, 255, (SIZE, SIZE, 3)).astype(np.float32)
    axes = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    place = DecodedPlace(root / "decoded", "0123456789ab")
    classes, variances = [str(number) for number in range(NUM_TRAIN)], np.array([90.0, 800.0, 9000.0])
    return DataSet(
        classes, train, val, mean, variances, axes, needs_resize=False, size=SIZE, decoded=place
    )  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    dataset = make_set(tmp_path_factory.mktemp("prepared"))
    decode_squares(dataset, progress=False)
    return dataset


@pytest.mark.parametrize("cached", [HOST, DEVICE])
@pytest.mark.parametrize("changes", [{}, {"mean": "central", "images_per_draw": 1}, {"flip": False}])
def test_training_from_pixels_is_training_from_files(prepared: DataSet, cached: object, changes: dict) -> None:
    """Over four epochs, for one replica and for the second of two. One other crop or one other image fails."""
    ours, usual = replace(cached, **changes), replace(INPUT, loader="torch", **changes)
    for replica, num_replicas in ((0, 1), (1, 2)):
        at = {"replica": replica, "num_replicas": num_replicas}
        assert_same(take(train_feed(prepared, ours, **at), 8), take(train_feed(prepared, usual, **at), 8))
    assert_same(take(train_feed(prepared, ours, first_step=3), 5), take(train_feed(prepared, usual), 8)[3:])


@pytest.mark.parametrize("cached", [HOST, DEVICE])
@pytest.mark.parametrize("crops", ["centre", "ten"])
def test_validation_of_pixels_is_validation_of_files(prepared: DataSet, cached: object, crops: str) -> None:
    """Every image once, with the last partial batch."""
    usual = take_all(val_feed(prepared, replace(INPUT, loader="torch"), crops=crops))
    assert [len(batch.labels) for batch in usual] == [4, 3]
    assert_same(take_all(val_feed(prepared, cached, crops=crops)), usual)


@pytest.mark.parametrize("cached", [HOST, DEVICE])
def test_each_tower_cuts_what_it_decoded(prepared: DataSet, cached: object) -> None:
    """From a file each tower cuts half of a batch, as it decoded half; on devices each cuts all of it."""

    class Other:
        tower, asked = 1, 0

        def swap_images(self, mine: torch.Tensor, num_theirs: int) -> torch.Tensor:
            self.asked += 1
            return torch.zeros(num_theirs, *mine.shape[1:], dtype=torch.uint8)

    other = Other()
    with closing(open_train(prepared, cached, share(partner=other), seed=3, first_step=0)) as feed:
        batches = list(islice(feed, 3))
    whole = take(train_feed(prepared, INPUT), 3)
    own = slice(2, 4) if cached is HOST else slice(0, 4)
    assert other.asked == (3 if cached is HOST else 0)
    for ours, theirs in zip(batches, whole, strict=True):
        assert torch.equal(ours.images[own], theirs.images[own])


def test_a_wrong_crop_is_seen(prepared: DataSet) -> None:
    """The check on pixels of a device rejects a mirror that is left out, and an offset that is swapped."""
    split = open_decoded(prepared).train
    offsets, flips, rows = np.array([[1, 3], [0, 8]]), np.array([1, 0]), np.array([4, 2])
    cutting = Cutting(40, SIZE, resize=False, mirrors=True)

    def cut(offsets: np.ndarray, flips: np.ndarray) -> np.ndarray:
        loader = DeviceLoader(lambda number: Encoded([], offsets, flips), split, cutting, share())
        return loader.run(rows).numpy()

    images = [np.asarray(Image.open(prepared.train.root / prepared.train.name(int(row)))) for row in rows]
    expected = np.stack([images[0][1:41, 3:43][:, ::-1], images[1][0:40, 8:48]])
    assert np.abs(cut(offsets, flips).astype(int) - expected).max() <= 1  # Pillow may decode another digit
    assert np.abs(cut(offsets, 1 - flips).astype(int) - expected).max() > 50
    assert np.abs(cut(offsets[:, ::-1], flips).astype(int) - expected).max() > 50


def test_images_are_decoded_once(prepared: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(content: bytes) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(decoded_squares, "decode_image", refuse)
    decode_squares(prepared, progress=False)
    files = sorted(os.listdir(prepared.decoded.folder))
    assert files == ["train-0123456789ab.npy", "val-0123456789ab.npy"]
    size = (prepared.decoded.folder / files[0]).stat().st_size
    assert size - NUM_TRAIN * SIZE * SIZE * 3 < 200  # nothing but the pixels and a header


def test_another_set_has_other_files(tmp_path: Path) -> None:
    """A set that is prepared anew in the same folder is decoded anew."""
    first = make_set(tmp_path)
    decode_squares(first, progress=False)
    second = replace(
        make_set(tmp_path / "second", seed=8), decoded=DecodedPlace(tmp_path / "decoded", "ba9876543210")
    )
    decode_squares(second, progress=False)
    assert len(os.listdir(tmp_path / "decoded")) == 4
    assert not np.array_equal(open_decoded(first).train.squares, open_decoded(second).train.squares)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def shrink(path: Path) -> None:
    np.save(path, np.zeros((3, SIZE, SIZE, 3), np.uint8))


def hide_an_object(path: Path) -> None:
    np.save(path, np.array([{}], object), allow_pickle=True)


@pytest.mark.parametrize(
    ("change", "told"),
    [(damage, "is damaged"), (shrink, r"is damaged \(it holds uint8 \[3, 48"), (hide_an_object, "is damaged")],
)
def test_another_file_is_refused(tmp_path: Path, change: Callable[[Path], None], told: str) -> None:
    dataset = make_set(tmp_path)
    decode_squares(dataset, progress=False)
    change(tmp_path / "decoded" / "train-0123456789ab.npy")
    for use in (decode_squares, open_decoded):
        with pytest.raises(ValueError, match=f"train-0123456789ab.npy {told}.*delete it, and the images"):
            use(dataset)


def test_too_little_room_is_told_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded_squares.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match=r"would take [\d,]+ bytes for pixels, and 1,000 are free there; choose"):
        decode_squares(make_set(tmp_path))
    assert not os.listdir(tmp_path / "decoded")


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(decoded_squares.np.lib.format, "write_array_header_1_0", fill)
    with pytest.raises(
        ValueError,
        match=r"cannot be written \(No space left on device\): it takes [\d,]+ bytes, and [\d,]+ are free .*another",
    ):
        decode_squares(make_set(tmp_path))
    assert not os.listdir(tmp_path / "decoded")


@pytest.mark.parametrize(
    ("content", "told"), [(b"<html>", "val/3.jpg|3.jpg cannot be decoded any more: "), (None, "48 x 48 pixels")]
)
def test_an_image_that_has_changed_is_named(tmp_path: Path, content: bytes | None, told: str) -> None:
    dataset = make_set(tmp_path)
    if content is None:
        colourful(np.random.default_rng(1), 40, SIZE).save(tmp_path / "val" / "3.jpg")
    else:
        (tmp_path / "val" / "3.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=told):
        decode_squares(dataset, progress=False)
    assert os.listdir(tmp_path / "decoded") == ["train-0123456789ab.npy"]


def test_images_that_are_not_prepared_are_refused(prepared: DataSet) -> None:
    for use in (decode_squares, open_decoded):
        with pytest.raises(ValueError, match=r"input\.cache is for a set that launch/prepare_data\.py has made"):
            use(replace(prepared, decoded=None))


def test_a_folder_is_refused_before_it_is_examined(tmp_path: Path) -> None:
    folder = DataConfig(kind="folder", root=str(tmp_path))
    for cache in ("host", "device"):
        with pytest.raises(ValueError, match=r"input\.cache is for a set that launch/prepare_data\.py has made"):
            check_cache(cache, folder)
    check_cache("none", folder)
    check_cache("host", DataConfig(kind="synthetic"))


def test_a_device_is_a_gpu() -> None:
    with pytest.raises(ValueError, match=r"input\.cache=device is for GPUs.*use input\.cache=host"):
        check_loader("auto", MachineConfig(device="cpu"), "device")
    check_loader("auto", MachineConfig(device="cpu"), "host")


def test_a_gpu_without_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_set(tmp_path)
    decode_squares(dataset, progress=False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    split, gpu = open_decoded(dataset).train, share(device=torch.device("cuda"))
    with pytest.raises(ValueError, match=r"would take 0\.0 GB of cuda for train-.*use input\.cache=host"):
        DeviceLoader(lambda number: None, split, Cutting(40, SIZE, resize=False), gpu)


@pytest.mark.slow
def test_two_towers_train_the_same_from_pixels(here: None, tmp_path: Path) -> None:
    """Every loss and error of a run from a prepared set is the same to the last bit with its pixels in a file."""
    pictures = tmp_path / "pictures"
    for split in ("train", "val"):
        for label in range(7):
            draw(pictures / split / f"c{label}", 2, seed=label + 7 * (split == "val"))
    source = SourceConfig(name="folder", kind="tree", root=str(pictures), splits={"train": "train", "val": "val"})
    build(PrepareConfig(source=source, output=str(tmp_path / "set"), workers=1), lambda line: None)
    short = ["schedule.epochs=2", "schedule.drop_epochs=[]", "optim.batch_size=4", "network.image_size=64"]
    outputs = {}
    for name in ("none", "host"):
        process = command(
            *SMALL, "data.root=set", f"data.cache={tmp_path / 'pixels'}", *NO_WANDB, *short, f"input.cache={name}",
            f"run_dir={name}", cwd=tmp_path,
        )  # fmt: skip
        status, outputs[name] = finish(process)
        assert status == 0, outputs[name]
    assert ", images decoded once\n" in outputs["host"]
    assert len(os.listdir(tmp_path / "pixels")) == 2
    assert numbers(tmp_path / "host") == numbers(tmp_path / "none")
    assert load(DataConfig(kind="folder", root=str(tmp_path / "set"))).decoded.folder == tmp_path / "set" / "decoded"
