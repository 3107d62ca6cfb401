"""launch/prepare_data.py: the set made of each kind of source, its values, interruptions, errors, checks."""

import contextlib
import errno
import hashlib
import http.server
import io
import json
import os
import random
import re
import resource
import runpy
import signal
import subprocess
import sys
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image

from helpers import archives
from helpers.archives import Here, contents, prepare_here
from helpers.paths import ROOT
from twotower.config import DataConfig, DownloadConfig, PrepareConfig, SourceConfig, register_schemas
from twotower.data.dataset import DataSet
from twotower.data.decode import cut_square, decode_image
from twotower.data.prepared_set import load_prepared
from twotower.data.preparing.build_set import build
from twotower.data.preparing.first_use import prepare
from twotower.data.preparing.verify_set import verify
from twotower.data.sources import archives as reading
from twotower.data.sources.download import download
from twotower.ground.files import write_whole

SIZE = 64


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes shards in this process, because starting another one costs seconds. Tests of commands use processes."""
    monkeypatch.setattr("twotower.data.preparing.convert_set.ProcessPoolExecutor", Here)
    monkeypatch.setattr("twotower.data.preparing.verify_set.ProcessPoolExecutor", Here)


def made(source: SourceConfig, output: Path, **options: Any) -> DataSet:
    prepare_here(source, output, **{"size": SIZE, "quality": 100, **options})
    return load_prepared(output)


def stored(dataset: DataSet, split: str = "train") -> dict[str, tuple[str, NDArray[np.uint8]]]:
    """Class and pixels of each image by its name in the shard, decoded by Pillow."""
    part = getattr(dataset, split)
    found = {}
    for i, label in enumerate(part.labels):
        image = np.asarray(opened(part.read(i).tobytes()))
        found[part.name(i).rpartition("/")[2]] = (dataset.classes[label], image)
    assert len(found) == len(part)
    return found


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def pillow_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The oracle: the centre square and the triangle filter by Pillow, which share no code with the package."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    part = image.convert("RGB").crop((left, top, left + side, top + side))
    return np.asarray(part.resize((size, size), Image.Resampling.BILINEAR))


def difference(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# The set made of each kind of source


@pytest.fixture(scope="module")
def mini2010(tmp_path_factory: pytest.TempPathFactory) -> tuple[SourceConfig, DataSet]:
    folder = tmp_path_factory.mktemp("ilsvrc2010")
    source = archives.ilsvrc(folder / "source", 2010)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twotower.data.preparing.convert_set.ProcessPoolExecutor", Here)
        return source, made(source, folder / "set")


def test_classes_are_sorted_by_wordnet_id_and_have_their_words(mini2010: tuple[SourceConfig, DataSet]) -> None:
    """The labels follow neither the order of the archive nor the ids of the devkit."""
    _, dataset = mini2010
    assert dataset.classes == sorted(archives.WNIDS)
    assert list(archives.WNIDS) != sorted(archives.WNIDS) != sorted(archives.WNIDS, key=archives.IDS.__getitem__)
    content = json.loads((dataset.train.folder.parent / "dataset.json").read_text())  # type: ignore[attr-defined]
    assert [(one["name"], one["words"]) for one in content["classes"]] == sorted(archives.WORDS.items())
    for one in content["classes"]:
        assert one["train"] == 4
        assert one["val"] == sum(wnid == one["name"] for _, wnid in archives.numbered("val", 5))
        assert one["test"] == sum(wnid == one["name"] for _, wnid in archives.numbered("test", 4))
    assert {split: part["images"] for split, part in content["splits"].items()} == {"train": 12, "val": 5, "test": 4}


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_each_image_has_its_label_by_its_name_and_its_own_pixels(
    mini2010: tuple[SourceConfig, DataSet], split: str
) -> None:
    """The labels of val and test follow the number in the name, though the archives are not in order."""
    _, dataset = mini2010
    if split == "train":
        expected = {f"{wnid}_{n}.jpg": (wnid, n) for wnid in archives.WNIDS for n in range(4)}
    else:
        images = archives.numbered(split, {"val": 5, "test": 4}[split])
        assert images != sorted(images)
        assert [wnid for _, wnid in images] != [wnid for _, wnid in sorted(images)], "else the order would not show"
        expected = {f"ILSVRC2010_{split}_{n:08d}.jpg": (wnid, n) for n, wnid in images}
    found = stored(dataset, split)
    assert found.keys() == expected.keys()
    for name, (wnid, number) in expected.items():
        assert found[name][0] == wnid
        seed = archives.seed_of(split, wnid, number)
        square = pillow_square(opened(archives.picture(seed)), SIZE)
        # rounding makes 2 levels, and a JPEG of quality 100 with halved colours the rest
        assert np.abs(found[name][1].astype(int) - square).mean() < 2, name
        others = [image for other, (_, image) in found.items() if other != name]
        assert min(np.abs(other.astype(int) - square).mean() for other in others) > 6, "another would be noticed"


def test_2012_has_no_test_split_and_takes_folders_in_the_training_archive(tmp_path: Path) -> None:
    """Class tars and folders of classes give the same bytes, apart from the record of their source."""
    source = archives.ilsvrc(tmp_path / "source", 2012, train=2)
    tars = made(source, tmp_path / "tars")
    assert tars.test is None
    assert (len(tars.train), len(tars.val)) == (6, 5)
    files = [
        (f"train/{wnid}/{wnid}_{n}.JPEG", archives.picture(archives.seed_of("train", wnid, n)))
        for wnid in archives.WNIDS
        for n in range(2)
    ]
    (tmp_path / "source" / "images_train.tar").write_bytes(archives.tar_bytes(files))
    made(source, tmp_path / "folders")
    one, other = contents(tmp_path / "tars"), contents(tmp_path / "folders")
    assert one.pop("dataset.json") != other.pop("dataset.json")
    assert one == other


def test_a_class_tar_may_be_larger_than_any_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit counts for images only, because class tars of ILSVRC come close to it."""
    source = archives.ilsvrc(tmp_path / "source", 2012)
    largest = max(len(archives.picture(archives.seed_of("train", w, n))) for w in archives.WNIDS for n in range(4))
    monkeypatch.setattr(reading, "MAX_IMAGE_BYTES", largest)
    assert len(made(source, tmp_path / "set").train) == 12


@pytest.mark.parametrize("ending", ["tar", "tgz", "tar.bz2", "tar.xz"])
def test_an_archive_of_a_tree_is_the_folder_it_packs(tmp_path: Path, ending: str) -> None:
    """Archives of every kind, not sorted, give the same images with the same labels as the folder."""
    files = [*archives.tree_files(), ("set/readme.md", b"x"), ("set/train/cat/.hidden.jpg", b"x")]
    mode = {"tar": "w", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}[ending]
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / f"one.{ending}").write_bytes(archives.tar_bytes(files[::-1], mode))
    dataset = made(archives.tree_source(packed, "*.t*"), tmp_path / "a")
    folder = made(archives.write_tree(tmp_path / "folder", files), tmp_path / "b")
    assert dataset.classes == folder.classes == ["cat", "dog"]
    for split in ("train", "val"):
        one, other = archives.by_name(dataset, split), archives.by_name(folder, split)
        assert one == other
        assert len(one) == {"train": 6, "val": 4}[split]


def test_several_archives_make_one_set_some_of_them_compressed(tmp_path: Path) -> None:
    """Shards that span a plain and a compressed archive are read rightly from both."""
    files = archives.tree_files()
    for number, mode in enumerate(("w", "w:gz", "w")):
        (tmp_path / f"part{number}.tar").write_bytes(archives.tar_bytes(files[number::3], mode))
    dataset = made(archives.tree_source(tmp_path, "part*.tar"), tmp_path / "a", images_per_shard=100)
    folder = made(archives.write_tree(tmp_path / "folder", files), tmp_path / "b")
    assert archives.by_name(dataset, "train") == archives.by_name(folder, "train")
    assert archives.by_name(dataset, "val") == archives.by_name(folder, "val")


def test_a_plain_archive_that_begins_with_a_name_in_bz(tmp_path: Path) -> None:
    """A file that begins with the letters BZ need not be bzip2."""
    files = [(f"BZ{name}", content) for name, content in archives.tree_files()]
    (tmp_path / "one.tar").write_bytes(archives.tar_bytes(files))
    assert len(made(archives.tree_source(tmp_path, "one.tar"), tmp_path / "set").train) == 6


def test_cifar10_keeps_labels_and_pixels(tmp_path: Path) -> None:
    """Classes are sorted by name, as everywhere. With squares of 32 pixels nothing is resized."""
    archives.write_cifar10(tmp_path / "cifar-10-binary.tar.gz")
    source = archives.tree_source(tmp_path, "cifar*10*.tar.gz")
    source.splits = {"train": "train", "test": "val"}
    source.expected = {"train": 40, "val": 10}
    dataset = made(source, tmp_path / "set", size=32)
    assert dataset.classes == sorted(archives.CIFAR_NAMES)
    for split, batches in (("train", {1: "data_batch_1", 2: "data_batch_2"}), ("val", {9: "test_batch"})):
        found = {}
        part = getattr(dataset, split)
        for i, label in enumerate(part.labels):
            found[i] = (dataset.classes[label], np.asarray(opened(part.read(i).tobytes())))
        records = [record for batch in batches for record in archives.cifar_records(batch, 20 if batch < 9 else 10)]
        assert len(found) == len(records)
        for i, (label, image) in enumerate(records):
            assert found[i][0] == archives.CIFAR_NAMES[label]
            assert np.abs(found[i][1].astype(int) - image).mean() < 3
            assert np.abs(found[i][1].astype(int) - image.transpose(1, 0, 2)).mean() > 3, "turned would be noticed"
    names = {dataset.train.name(i).rpartition("/")[2] for i in range(40)}
    assert names == {f"data_batch_{batch}_{i:05d}.jpg" for batch in (1, 2) for i in range(20)}
    pixels = np.stack([image for batch in (1, 2) for _, image in archives.cifar_records(batch, 20)]).astype(np.int64)
    assert dataset.mean_image is not None
    np.testing.assert_array_equal(dataset.mean_image, (pixels.sum(0) / 40).astype(np.float32), strict=True)


def test_a_folder_may_hold_links_and_other_files(tmp_path: Path) -> None:
    """Linked class folders are read, broken links are rejects, hidden folders and other files are ignored."""
    source = archives.write_tree(tmp_path / "folder", archives.tree_files())
    train = tmp_path / "folder" / "train"
    (train / "dog").rename(tmp_path / "elsewhere")
    (train / "dog").symlink_to(tmp_path / "elsewhere")
    (train / "cat" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (train / "cat" / "notes.txt").write_text("x")
    (train / "cat" / "deeper").mkdir()
    (train / "loop").symlink_to(train / "loop")
    (train / ".ipynb_checkpoints").mkdir()
    (train / ".ipynb_checkpoints" / "0.jpg").write_bytes(archives.picture(1))
    os.mkfifo(train / "cat" / "pipe.jpg")
    dataset = made(source, tmp_path / "set", max_rejects=1)
    assert dataset.classes == ["cat", "dog"]
    assert len(dataset.train) == 6
    assert dataset.rejects == {"train: train/cat/gone.jpg": "it is a broken link"}
    assert json.loads((tmp_path / "set" / "dataset.json").read_text())["files_passed_over"] == 5


def test_names_that_are_no_text_are_made_harmless(tmp_path: Path) -> None:
    """A file's name may be any bytes; names are written and printed as text without control characters."""
    source = archives.write_tree(tmp_path / "folder", archives.tree_files())
    odd = os.fsencode(tmp_path / "folder" / "train" / "cat") + b"/\x1b[31m\xff\n.jpg"
    Path(os.fsdecode(odd)).write_bytes(b"no image")
    Path(os.fsdecode(odd.replace(b"31m", b"32m"))).write_bytes(archives.picture(5))
    with pytest.raises(ValueError, match=r"train: train/cat/�\[31m��\.jpg: no image") as caught:
        made(source, tmp_path / "set")
    assert "\x1b" not in str(caught.value)
    assert "31m" in (tmp_path / "set" / "work" / "rejects.txt").read_text()
    assert len(made(source, tmp_path / "set", max_rejects=0.5).train) == 7


# Values


@pytest.mark.parametrize("shape", [(300, 200), (200, 301), (64, 64), (63, 90), (41, 40), (1, 7), (1000, 65)])
def test_the_square_is_that_of_pillow(shape: tuple[int, int]) -> None:
    """Within 2 levels, though the filters are different code. A square that is a pixel off fails."""
    image = archives.pixels(3, *shape)
    square = cut_square(image, SIZE)
    assert square.shape == (SIZE, SIZE, 3)
    assert difference(square, pillow_square(Image.fromarray(image), SIZE)) <= 2
    if min(shape) > 50:
        moved = pillow_square(Image.fromarray(np.roll(image, 2, axis=(0, 1))), SIZE)
        assert difference(square, moved) > 2


def test_mean_and_colour_axes_are_those_of_exact_sums(mini2010: tuple[SourceConfig, DataSet]) -> None:
    """The sums are those of NumPy's integers over the squares before they became JPEGs. One image less fails."""
    _, dataset = mini2010
    squares = np.stack(
        [
            cut_square(decode_image(archives.picture(archives.seed_of("train", wnid, n))), SIZE)
            for wnid in archives.WNIDS
            for n in range(4)
        ]
    ).astype(np.int64)
    mean = (squares.sum(0) / len(squares)).astype(np.float32)
    assert dataset.mean_image is not None
    np.testing.assert_array_equal(dataset.mean_image, mean, strict=True)
    assert not np.array_equal(dataset.mean_image, (squares[1:].sum(0) / (len(squares) - 1)).astype(np.float32))
    flat = squares.reshape(-1, 3)
    count = len(flat)
    sums, products = flat.sum(0), flat.T @ flat  # these are whole numbers
    covariance = (count * products - np.outer(sums, sums)) / count**2
    np.testing.assert_allclose(
        dataset.eigenvectors @ np.diag(dataset.eigenvalues) @ dataset.eigenvectors.T, covariance, rtol=1e-9
    )
    np.testing.assert_allclose(dataset.eigenvalues, np.linalg.eigvalsh(covariance), rtol=1e-9)
    for column in dataset.eigenvectors.T:
        assert column[np.abs(column).argmax()] > 0
    content = json.loads((dataset.train.folder.parent / "dataset.json").read_text())  # type: ignore[attr-defined]
    np.testing.assert_allclose(content["channel_means"], sums / count, rtol=1e-7)
    np.testing.assert_allclose(content["standard_deviations"], np.sqrt(dataset.eigenvalues), rtol=1e-12)


def test_any_tar_tool_finds_in_the_shards_what_the_index_says(tmp_path: Path) -> None:
    """Members are in the order of the index, 3 images a shard, in a folder for each class, with the same bytes."""
    dataset = made(archives.ilsvrc(tmp_path / "source", 2012), tmp_path / "set", images_per_shard=3)
    for split in ("train", "val"):
        part = getattr(dataset, split)
        place = 0
        paths = sorted((tmp_path / "set" / split).glob("*.tar"))
        assert len(paths) == {"train": 4, "val": 2}[split]
        for path in paths:
            with tarfile.open(path) as tar:
                for member in tar:
                    file = tar.extractfile(member)
                    assert file is not None
                    assert file.read() == part.read(place).tobytes()
                    assert part.name(place) == f"{split}/{path.name}/{member.name}"
                    assert member.name.partition("/")[0] == dataset.classes[part.labels[place]]
                    place += 1
        assert place == len(part)


def test_a_set_has_more_shards_than_a_process_may_hold_open(tmp_path: Path) -> None:
    """All of ILSVRC-2012 has 1,301 shards, and 1,024 open files are a common limit."""
    made(
        archives.write_tree(tmp_path / "folder", archives.tree_files(train=20)), tmp_path / "set", images_per_shard=1
    )
    dataset = load_prepared(tmp_path / "set")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 10, before[1]))
        dataset = load_prepared(tmp_path / "set")
        assert all(dataset.train.read(i)[:2].tobytes() == b"\xff\xd8" for i in range(40))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# A finished set, a begun one, another process


def test_a_finished_set_is_not_touched(tmp_path: Path) -> None:
    """The same command does nothing; one with other settings is refused."""
    source = archives.write_tree(tmp_path / "folder", archives.tree_files())
    made(source, tmp_path / "set")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    said = prepare_here(source, tmp_path / "set", size=SIZE, quality=100)
    assert said == [f"{tmp_path / 'set'} is finished already, from mini; verify=true checks it."]
    with pytest.raises(ValueError, match=r"output=\S*set is finished with size=64, not 32; choose another output"):
        made(source, tmp_path / "set", size=32)
    with pytest.raises(ValueError, match=r"is finished with quality=100, not 95"):
        made(source, tmp_path / "set", quality=95)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")} == before


def test_a_begun_set_goes_on_only_with_its_own_settings_and_archives(tmp_path: Path) -> None:
    (tmp_path / "one.tar").write_bytes(archives.tar_bytes([*archives.tree_files(), ("set/val/cat/9.jpg", b"x")]))
    source = archives.tree_source(tmp_path, "one.tar")
    with pytest.raises(ValueError, match="1 of 11 images cannot be used"):
        made(source, tmp_path / "set")
    with pytest.raises(ValueError, match="was begun with images_per_shard=1024, not 5"):
        made(source, tmp_path / "set", images_per_shard=5)
    with (tmp_path / "one.tar").open("ab") as file:
        file.write(bytes(512))
    with pytest.raises(ValueError, match=r"was begun with archives=\[.*one\.tar.*\], not \["):
        made(source, tmp_path / "set", max_rejects=1)


def test_two_processes_do_not_build_in_one_folder(tmp_path: Path) -> None:
    """The second one is refused while the first one is at work. A lock that was left behind does not count."""
    source = archives.write_tree(tmp_path / "folder", archives.tree_files())

    def second(*args: Any) -> None:
        made(source, tmp_path / "set")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twotower.data.preparing.build_set.convert_set", second)
        with pytest.raises(ValueError, match=r"is being built by another process \(.+\); wait for it or stop it"):
            made(source, tmp_path / "set")
    assert (tmp_path / "set" / "work" / "lock").exists()
    assert len(made(source, tmp_path / "set").train) == 6


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    source = archives.write_tree(tmp_path / "folder", archives.tree_files())
    before = contents(tmp_path / "folder")
    with pytest.raises(ValueError, match="folder holds something else; give a new or empty folder"):
        made(source, tmp_path / "folder")
    assert contents(tmp_path / "folder") == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file cannot be written"):
        made(source, tmp_path / "file")


# Interruptions


class Command:
    """launch/prepare_data.py in a session of its own, with a mark in its environment that finds all its processes."""

    def __init__(self, *overrides: str, folder: Path, largest_file: int = resource.RLIM_INFINITY) -> None:
        self.mark = f"PREPARE_SET_TEST={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "launch" / "prepare_data.py"), *overrides],
            cwd=folder,
            env={**os.environ, name: value, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file)),
        )

    def finish(self, timeout: float = 60) -> tuple[int, str, str]:
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise
        return self.process.returncode, out, err

    def processes(self) -> dict[int, str]:
        """Number and command line of each of its processes."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (path / "environ").read_bytes().split(b"\0"):
                    found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def wait_for(self, ready: Callable[[], bool], timeout: float = 60) -> None:
        """Waits until it is ready, or has ended."""
        end = time.monotonic() + timeout
        while self.process.poll() is None and not ready():
            assert time.monotonic() < end, "waited too long"
            time.sleep(0.002)

    def kill(self) -> None:
        """Kills the first process alone, and waits until the others have ended by themselves."""
        self.process.kill()
        self.process.communicate(timeout=30)
        end = time.monotonic() + 30
        while left := self.processes():
            assert time.monotonic() < end, f"outlived the one that was killed: {left}"
            time.sleep(0.02)


def overrides_of(source: SourceConfig, output: Path, *more: str) -> list[str]:
    names = [f"source.{key}={getattr(source, key)}" for key in ("root", "train", "val", "devkit")]
    counts = [f"source.expected.{split}={count}" for split, count in source.expected.items()]
    return ["source=ilsvrc2012", f"output={output}", *names, *counts, "size=64", "images_per_shard=2", *more]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> SourceConfig:
    """Ninety images, which are 45 shards of two."""
    return archives.ilsvrc(tmp_path_factory.mktemp("many"), 2012, train=24, val=18)


@pytest.fixture(scope="module")
def whole(many: SourceConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The bytes of an uninterrupted run in one process, with the command's settings."""
    output = tmp_path_factory.mktemp("whole") / "set"
    register_schemas()
    with (
        pytest.MonkeyPatch.context() as patch,
        initialize_config_dir(str(ROOT / "conf"), version_base="1.3"),
    ):
        patch.setattr("twotower.data.preparing.convert_set.ProcessPoolExecutor", Here)
        config = OmegaConf.to_object(compose("prepare_data", overrides_of(many, output)))
        assert isinstance(config, PrepareConfig)
        build(config, lambda line: None)
    return contents(output)


@pytest.mark.timeout(240)
def test_killed_and_interrupted_at_random_moments_it_ends_with_the_same_bytes(
    many: SourceConfig, whole: dict[str, str], tmp_path: Path
) -> None:
    """kill -9 while workers start, a file that cannot be written, three more kills, Ctrl-C, then to the end.

    One or two workers, the bytes of all files, even of the picture, are those of one go in one process; another byte
    would be noticed. No worker outlives the process that was killed. Ctrl-C, which a terminal sends to all processes,
    is answered with one line and a status that is not 0.
    """
    output, stream = tmp_path / "set", random.Random(0)

    def command(workers: int, **options: Any) -> Command:
        return Command(*overrides_of(many, output, f"workers={workers}"), folder=tmp_path, **options)

    def done() -> int:
        return len(list(output.glob("work/*-*.npz")))

    first = command(1)
    first.wait_for(lambda: any("spawn_main" in line for line in first.processes().values()))
    first.kill()
    assert (output / "work" / "plan.json").exists()
    assert done() == 0
    status, _, err = command(1, largest_file=40_000).finish()  # enough for the shards of val, which come first
    assert status == 1
    assert err == (
        f"error: output={output} cannot be written (File too large). Nothing is lost: the same command goes on from "
        "here.\n"
    )
    assert done() == 9
    interrupted = 0
    for _ in range(3):
        before, wanted = done(), done() + stream.randint(1, 4)
        run = command(stream.choice((1, 2)))
        run.wait_for(lambda wanted=wanted: done() >= wanted)  # type: ignore[misc]
        time.sleep(stream.uniform(0, 0.02))
        run.kill()
        assert done() > before or (output / "dataset.json").exists()
        interrupted += not (output / "dataset.json").exists()
    assert interrupted >= 2, "otherwise this shows little"

    with pytest.raises(ValueError, match=r"is not finished; run launch/prepare_data\.py for it again"):
        prepare(DataConfig(kind="folder", root=str(output)), progress=False)
    last = command(2)
    last.wait_for(lambda: any("spawn_main" in line for line in last.processes().values()))
    time.sleep(0.7)  # now the workers are importing, and an unhandled Ctrl-C would print a traceback
    os.killpg(last.process.pid, signal.SIGINT)
    status, _, err = last.finish()
    assert status != 0
    assert err == "stopped; the same command goes on from here\n"
    assert not last.processes()
    status, out, err = command(2).finish()
    assert status == 0, err
    assert re.search(r"going on: \d+ of 90 images were done before", out)
    assert out.splitlines()[-1] == f"3 classes, 0 rejects, listed in {output / 'dataset.json'}"
    assert len(whole) == 45 + 2 + 3
    assert contents(output) == whole
    status, out, err = Command(f"output={output}", "verify=true", "workers=1", folder=tmp_path).finish()
    assert (status, err) == (0, "")
    assert out == f"{output}: 90 images, all checksums are right and every image can be decoded.\n"
    with (output / "train" / "00000.tar").open("r+b") as file:
        file.seek(700)
        file.write(b"xy")
    assert contents(output) != whole


@pytest.mark.parametrize("state", ["plan", "sums"])
def test_what_was_half_written_counts_for_nothing(tmp_path: Path, state: str) -> None:
    """A plan or a shard without its last file, as a power cut leaves it, is made again."""
    source = archives.ilsvrc(tmp_path / "source", 2012)
    made(source, tmp_path / "whole", images_per_shard=3)
    stopped = ValueError("stopped here")

    def stop(path: Path, content: Any) -> None:
        if path.name == ("plan.json" if state == "plan" else "train-00001.npz"):
            path.with_name(f".{path.name}.pending").write_bytes(bytes(content)[:100])
            raise stopped
        write_whole(path, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twotower.data.preparing.build_set.write_whole", stop)
        patch.setattr("twotower.data.preparing.shard_worker.write_whole", stop)
        with pytest.raises(ValueError, match="stopped here"):
            made(source, tmp_path / "set", images_per_shard=3)
    made(source, tmp_path / "set", images_per_shard=3)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


@pytest.mark.parametrize("name", ["00002.tar", "train-00001.npz", "plan.json", "mean_image.npy", "dataset.json"])
def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A full disk at any file gives one sentence, and the same command goes on to the same bytes."""
    source = archives.ilsvrc(tmp_path / "source", 2012)
    made(source, tmp_path / "whole", images_per_shard=3)
    full = True

    def write(path: Path, content: Any, shared: bool = False) -> None:
        if full and path.name == name:
            path.with_name(f".{path.name}.pending").write_bytes(bytes(content)[:50])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_whole(path, content)

    for module in (
        "ground.files",
        "data.preparing.build_set",
        "data.preparing.finish_set",
        "data.preparing.shard_worker",
    ):
        monkeypatch.setattr(f"twotower.{module}.write_whole", write)
    sentence = (
        r"output=\S*set cannot be written \(No space left on device\). Nothing is lost: the same command goes on"
    )
    with pytest.raises(OSError, match=sentence):
        made(source, tmp_path / "set", images_per_shard=3)
    full = False
    made(source, tmp_path / "set", images_per_shard=3)
    assert contents(tmp_path / "set") == contents(tmp_path / "whole")


# Errors


@pytest.fixture
def mini(tmp_path: Path) -> SourceConfig:
    return archives.ilsvrc(tmp_path / "source", 2012, train=2, val=3)


def _missing_archive(source: SourceConfig, root: Path) -> None:
    (root / "images_val.tar").unlink()
    source.page = "https://example.org/"


def _swapped(source: SourceConfig, root: Path) -> None:
    source.train, source.val = source.val, source.train


def _val_as_train(source: SourceConfig, root: Path) -> None:
    source.train = source.val


def _fewer(source: SourceConfig, root: Path) -> None:
    source.expected = {"train": 1_281_167, "val": 50_000}


def _unknown_class(source: SourceConfig, root: Path) -> None:
    (root / "images_train.tar").write_bytes(archives.tar_bytes([("n99999999.tar", archives.tar_bytes([]))]))


def _no_devkit(source: SourceConfig, root: Path) -> None:
    (root / "devkit.tar.gz").write_bytes(archives.tar_bytes([("a/readme.txt", b"x")], "w:gz"))


def _bad_meta(source: SourceConfig, root: Path) -> None:
    files = [("a/data/meta.mat", b"nonsense" * 99), ("a/data/x_validation_ground_truth.txt", b"1\n")]
    (root / "devkit.tar.gz").write_bytes(archives.tar_bytes(files, "w:gz"))


def _short_truth(source: SourceConfig, root: Path) -> None:
    archives.write_devkit(root / "devkit.tar.gz", 2012, b"1\n2\n")


def _odd_truth(source: SourceConfig, root: Path) -> None:
    archives.write_devkit(root / "devkit.tar.gz", 2012, b"1\n4\n2\n")


def _new_class_in_val(source: SourceConfig, root: Path) -> None:
    wnid = archives.WNIDS[0]
    only = [(f"{wnid}.tar", archives.tar_bytes([(f"{wnid}_1.JPEG", archives.picture(1))]))]
    (root / "images_train.tar").write_bytes(archives.tar_bytes(only))
    source.expected = {}


def _no_train(source: SourceConfig, root: Path) -> None:
    (root / "images_train.tar").write_bytes(archives.tar_bytes([]))
    source.expected = {}


def _test_without_truth(source: SourceConfig, root: Path) -> None:
    source.test = source.val


def _no_archive_named(source: SourceConfig, root: Path) -> None:
    source.devkit = None


def _unknown_kind(source: SourceConfig, root: Path) -> None:
    source.kind = "lmdb"


def _no_root(source: SourceConfig, root: Path) -> None:
    source.root = None


def _absent_root(source: SourceConfig, root: Path) -> None:
    source.root = str(root / "absent")


SENTENCES = {
    "missing archive": (
        _missing_archive,
        r"images_val\.tar is not there \(source\.val\); get it from https://example\.org/\.$",
    ),
    "train and val swapped": (_swapped, r"images_train\.tar is the training archive: it holds n02102040\.tar\. Give"),
    "val given as train": (
        _val_as_train,
        r"images_val\.tar is not the training archive: it holds val/ILSVRC2012_val_",
    ),
    "fewer than expected": (
        _fewer,
        r"train has 6 images, not the 1,281,167 of mini2012.* source\.expected\.train=null",
    ),
    "class unknown to the devkit": (_unknown_class, r"holds class n99999999, which the devkit does not know"),
    "devkit that is none": (_no_devkit, r"devkit\.tar\.gz is no ILSVRC devkit"),
    "meta.mat damaged": (_bad_meta, r"its meta\.mat cannot be read \(.*\); get the devkit again"),
    "ground truth too short": (_short_truth, r"holds val/\S+, but the ground truth has 2 lines; do both belong"),
    "ground truth of another kind": (_odd_truth, r"line 2 of the ground truth is '4', which is no class"),
    "class of val not in train": (_new_class_in_val, r"Class n\d+ is in val but not in train"),
    "no training image": (_no_train, r"holds no images for train"),
    "test without its truth": (_test_without_truth, r"source\.test and source\.test_truth belong together"),
    "no name of an archive": (_no_archive_named, r"source\.devkit must be given"),
    "unknown kind": (_unknown_kind, r"source\.kind=lmdb is not known; choose one of ilsvrc, tree"),
    "no root": (_no_root, r"source=mini2012 needs source\.root=DIR"),
    "absent root": (_absent_root, r"source\.root=\S*absent does not exist or is no folder"),
}


@pytest.mark.parametrize("what", SENTENCES)
def test_a_wrong_source_is_named_in_a_sentence(tmp_path: Path, mini: SourceConfig, what: str) -> None:
    """It is refused before any shard is written."""
    spoil, sentence = SENTENCES[what]
    spoil(mini, tmp_path / "source")
    with pytest.raises(ValueError, match=sentence) as caught:
        made(mini, tmp_path / "set")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "set").rglob("*.tar"))


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("size", 7, "8 and 4096"),
        ("quality", 101, "1 and 100"),
        ("images_per_shard", 0, "1 and 65536"),
        ("max_rejects", 1.5, "0 and 1"),
        ("workers", -1, "0 and 1024"),
    ],
)
def test_values_out_of_range_are_refused(
    tmp_path: Path, mini: SourceConfig, key: str, value: Any, allowed: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{key}={value} is not between {allowed}\.$"):
        made(mini, tmp_path / "set", **{key: value})
    assert not (tmp_path / "set").exists()


def test_an_unknown_split_is_refused(tmp_path: Path) -> None:
    source = archives.write_tree(tmp_path / "folder", archives.tree_files())
    source.splits = {"train": "train", "val": "validation"}
    with pytest.raises(
        ValueError, match=r"source\.splits\.val=validation is not known; choose one of train, val, test"
    ):
        made(source, tmp_path / "set")


def test_pickles_are_refused(tmp_path: Path) -> None:
    """CIFAR-10's Python version is refused, because it runs code when it is read."""
    files = [("cifar-10-batches-py/data_batch_1", b"\x80\x02}."), ("cifar-10-batches-py/test_batch", b"\x80\x02}.")]
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(archives.tar_bytes(files, "w:gz"))
    with pytest.raises(ValueError, match=r"holds Python pickles, which can run code; get the binary version instead"):
        made(archives.tree_source(tmp_path, "cifar*10*.tar.gz"), tmp_path / "set")


def test_a_pattern_without_archives_names_what_is_wanted(tmp_path: Path) -> None:
    source = archives.tree_source(tmp_path, "imagenette*.t*")
    source.downloads = [DownloadConfig("a", "http://127.0.0.1/a", "md5:0")]
    with pytest.raises(
        ValueError, match=r"imagenette\*\.t\* is not there .* let it be downloaded with download=true"
    ):
        made(source, tmp_path / "set")


def test_too_many_rejects_stop_it_with_a_list(tmp_path: Path) -> None:
    """The list is in the message and in a file. With a larger max_rejects the same command goes on."""
    files = [*archives.tree_files(), *((f"set/train/cat/bad{n}.jpg", b"no image") for n in range(25))]
    source = archives.write_tree(tmp_path / "folder", files)
    with pytest.raises(ValueError, match=r"25 of 35 images cannot be used, more than max_rejects=0\.001") as caught:
        made(source, tmp_path / "set")
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[1] == "  train: train/cat/bad0.jpg: no image that can be decoded: cannot identify image file"
    listed = (tmp_path / "set" / "work" / "rejects.txt").read_text().splitlines()
    assert len(listed) == 25
    with pytest.raises(ValueError, match="25 of 35"):
        made(source, tmp_path / "set", max_rejects=24 / 35)
    dataset = made(source, tmp_path / "set", max_rejects=25 / 35)
    assert sorted(f"{name}: {reason}" for name, reason in dataset.rejects.items()) == sorted(listed)
    assert len(dataset.train) == 6


@pytest.mark.parametrize(
    ("split", "sentence"), [("train", "No training image of class dog"), ("val", "No image of val")]
)
def test_a_class_or_split_without_a_usable_image_is_refused(tmp_path: Path, split: str, sentence: str) -> None:
    files = [
        (name, b"no image" if f"/{split}/" in name and ("dog" in name or split == "val") else content)
        for name, content in archives.tree_files()
    ]
    with pytest.raises(ValueError, match=sentence):
        made(archives.write_tree(tmp_path / "folder", files), tmp_path / "set", max_rejects=1)
    assert not (tmp_path / "set" / "dataset.json").exists()


@pytest.mark.timeout(120)
def test_the_command_ends_with_one_sentence_and_a_status(mini: SourceConfig, tmp_path: Path) -> None:
    """An error is one line that begins with error:, without a traceback, and status 1."""
    mini.expected = {"train": 7}
    sentences = {
        "error: train has 6 images, not the 7 of ilsvrc2012": overrides_of(mini, tmp_path / "set"),
        "error: say what to make: python launch/prepare_data.py": ["source=ilsvrc2012"],
    }
    runs = {sentence: Command(*overrides, folder=tmp_path) for sentence, overrides in sentences.items()}
    for sentence, run in runs.items():
        status, out, err = run.finish()
        assert status == 1
        assert err.startswith(sentence)
        assert err.count("\n") == 1
        assert out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "source"]


# Downloads


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder served by this machine, and its address."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as one:
        thread = threading.Thread(target=one.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{one.server_port}"
        one.shutdown()
        thread.join()


def test_downloads_are_compared_with_their_checksums(tmp_path: Path, server: tuple[Path, str]) -> None:
    """A right file is kept and not fetched again. Wrong, missing and unreachable ones give a sentence."""
    served, address = server
    content = archives.tar_bytes(archives.tree_files(), "w:gz")
    (served / "a.tgz").write_bytes(content)
    root = tmp_path / "root"
    source = archives.tree_source(root, "a.tgz")
    right = DownloadConfig("a.tgz", f"{address}/a.tgz", f"sha256:{hashlib.sha256(content).hexdigest()}")
    said: list[str] = []

    source.downloads = [DownloadConfig("a.tgz", f"{address}/a.tgz", f"md5:{'0' * 32}")]
    with pytest.raises(ValueError, match=rf"{address}/a\.tgz did not arrive as it should be: .*hash"):
        download(source, said.append)
    assert not list(root.glob("*"))
    source.downloads = [DownloadConfig("a.tgz", f"{address}/none.tgz", right.checksum)]
    with pytest.raises(
        ValueError, match=r"none\.tgz could not be reached \(404 .*\); get a\.tgz elsewhere and put it"
    ):
        download(source, said.append)
    source.downloads = [DownloadConfig("a.tgz", "http://127.0.0.1:9/a.tgz", right.checksum)]
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9/a\.tgz could not be reached"):
        download(source, said.append)
    source.downloads = [right]
    download(source, said.append)
    assert (root / "a.tgz").read_bytes() == content
    (served / "a.tgz").unlink()
    download(source, said.append)
    assert said.count(f"downloading {right.url}") == 2
    assert len(made(source, tmp_path / "set").train) == 6


@pytest.mark.parametrize("name", ["imagenette", "cifar10"])
def test_a_download_needs_no_folder(
    name: str,
    tmp_path: Path,
    server: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The documented command, with the archive on this machine: source=NAME download=true output=DIR."""
    served, address = server
    monkeypatch.chdir(tmp_path)
    held_out = {"imagenette": "val", "cifar10": "test"}[name]
    files = [(path.replace("/val/", f"/{held_out}/"), image) for path, image in archives.tree_files()]
    content = archives.tar_bytes(files, "w:gz")
    file = str(OmegaConf.load(ROOT / "conf" / "source" / f"{name}.yaml").downloads[0].file)
    (served / file).write_bytes(content)
    arguments = [f"source={name}", "size=64", "output=datasets/mine", "workers=1"]
    arguments += ["++source.expected.train=null", "++source.expected.val=null"]
    here = f"{{file: {file}, url: '{address}/{file}', checksum: 'sha256:{hashlib.sha256(content).hexdigest()}'}}"

    def launch(*more: str) -> None:
        monkeypatch.setattr(sys, "argv", ["prepare_data.py", *arguments, *more])
        monkeypatch.setattr("twotower.training.run.catch_stops", lambda: None)
        runpy.run_path(str(ROOT / "launch" / "prepare_data.py"), run_name="__main__")

    with pytest.raises(SystemExit, match=rf"source={name} needs source\.root=DIR, .*, or download=true"):
        launch()
    launch(f"source.downloads=[{here}]", "download=true")
    assert (tmp_path / "datasets" / "downloads" / name / file).read_bytes() == content
    assert len(load_prepared(tmp_path / "datasets" / "mine").train) == 6
    (served / file).unlink()
    launch(f"source.downloads=[{here}]", "download=true")
    assert "is finished already" in capsys.readouterr().out
    arguments = ["source=ilsvrc2012", "output=datasets/other"]
    with pytest.raises(SystemExit, match=r"ilsvrc2012 cannot be downloaded, only by hand from https.*root=DIR"):
        launch("download=true")


# A finished set: checking and loading


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    made(archives.write_tree(tmp_path / "folder", archives.tree_files()), tmp_path / "set", images_per_shard=4)
    return tmp_path / "set"


def checked(root: Path) -> str:
    said: list[str] = []
    verify(root, 1, said.append)
    (line,) = said
    return line


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_verify_passes_a_sound_set(finished: Path) -> None:
    before = contents(finished)
    assert checked(finished) == (f"{finished}: 10 images, all checksums are right and every image can be decoded.")
    assert contents(finished) == before


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda root: _flip(root / "train" / "00001.tar", 900), r"1 fault .*\n\S*train/00001\.tar has been changed"),
        (lambda root: (root / "val" / "00000.tar").unlink(), r"val/00000\.tar is missing"),
        (lambda root: _flip(root / "val" / "index.npy", -1), r"val/index\.npy has been changed"),
        (lambda root: _flip(root / "mean_image.npy", -1), r"mean_image\.npy has been changed"),
        (lambda root: (root / "mean_image.npy").unlink(), r"mean_image\.npy is missing"),
        (lambda root: (root / "train" / "index.npy").unlink(), r"train/index\.npy is missing"),
        (lambda root: (root / "dataset.json").write_text("{"), r"dataset\.json cannot be read"),
        (lambda root: (root / "dataset.json").write_text('{"format": 0}'), r"has format 0, not 1"),
    ],
)
def test_verify_notices(finished: Path, damage: Callable[[Path], None], sentence: str) -> None:
    """Each kind of damage gives a sentence that names the file."""
    damage(finished)
    with pytest.raises(ValueError, match=sentence):
        checked(finished)


def test_verify_decodes_even_what_has_its_checksum(finished: Path) -> None:
    """A shard with a broken image, and a dataset.json that was written for it."""
    shard = finished / "train" / "00000.tar"
    content = bytearray(shard.read_bytes())
    content[512:516] = b"text"
    shard.write_bytes(content)
    about = json.loads((finished / "dataset.json").read_text())
    about["splits"]["train"]["shards"][0]["sha256"] = hashlib.sha256(content).hexdigest()
    (finished / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"00000\.tar: the image at byte 512 cannot be decoded"):
        checked(finished)


def test_an_unfinished_set_is_neither_verified_nor_trained_on(finished: Path) -> None:
    (finished / "work").mkdir()
    checked(finished)  # only the last step is missing, the removal of work/
    (finished / "dataset.json").unlink()
    with pytest.raises(ValueError, match=r"output=\S*set is not finished; run the same command without verify=true"):
        checked(finished)
    with pytest.raises(
        ValueError, match=r"data\.root=\S*set is not finished; run launch/prepare_data\.py for it again"
    ):
        prepare(DataConfig(kind="folder", root=str(finished)), progress=False)


def test_training_recognises_a_prepared_set(finished: Path) -> None:
    """Loading a prepared set lists no folder and fits nothing again."""
    before = contents(finished)
    dataset = prepare(DataConfig(kind="folder", root=str(finished), size=SIZE), progress=False)
    with pytest.raises(ValueError, match=r"was prepared with 64 pixels.*network\.prepared_size=64"):
        prepare(DataConfig(kind="folder", root=str(finished)), progress=False)
    assert (len(dataset.train), len(dataset.val), dataset.size, dataset.needs_resize) == (6, 4, SIZE, False)
    assert dataset.classes == ["cat", "dog"]
    assert contents(finished) == before


@pytest.mark.parametrize("damage", ["missing", "short", "index", "mean"])
def test_loading_notices_what_is_missing_or_cut_short(finished: Path, damage: str) -> None:
    if damage == "missing":
        (finished / "train" / "00001.tar").unlink()
    elif damage == "short":
        with (finished / "train" / "00001.tar").open("r+b") as file:
            file.truncate(800)
    elif damage == "index":
        (finished / "train" / "index.npy").write_bytes(b"x")
    else:
        (finished / "mean_image.npy").unlink()
    with pytest.raises(
        ValueError, match=r"(train is damaged|mean_image\.npy cannot be read) .*prepare the data set again"
    ):
        load_prepared(finished)


def test_one_set_in_two_archives_is_refused(tmp_path: Path) -> None:
    """Two sizes of Imagenette in one folder, for example, fit one pattern, and every image would count twice."""
    for name in ("small.tar", "large.tar"):
        (tmp_path / name).write_bytes(archives.tar_bytes(archives.tree_files()))
    with pytest.raises(ValueError, match=r"small\.tar and .*large\.tar both hold set/train/cat/0\.jpg; name those"):
        prepare_here(archives.tree_source(tmp_path, "*.tar"), tmp_path / "set", size=SIZE)


def test_a_validation_image_that_comes_twice_is_refused(tmp_path: Path) -> None:
    """With an image twice, the count would hide that another one is missing."""
    source = archives.ilsvrc(tmp_path, 2012)
    assert source.val is not None
    with tarfile.open(tmp_path / source.val) as tar:
        files = [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]
    (tmp_path / source.val).write_bytes(archives.tar_bytes([*files[:-1], files[0]]))
    with pytest.raises(ValueError, match=r"is damaged: it holds .*_val_0000000\d\.JPEG twice"):
        prepare_here(source, tmp_path / "set", size=SIZE)


def test_another_folder_does_not_count_as_finished(tmp_path: Path) -> None:
    for name in ("one", "two"):
        archives.write_tree(tmp_path / name, archives.tree_files())
    prepare_here(archives.tree_source(tmp_path / "one"), tmp_path / "set", size=SIZE)
    with pytest.raises(ValueError, match="is finished with folder=one, not two; choose another output"):
        prepare_here(archives.tree_source(tmp_path / "two"), tmp_path / "set", size=SIZE)
