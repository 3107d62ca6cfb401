"""The prepared set made of each kind of source, and the values in it."""

import json
import os
import resource
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import archives
from helpers.archives import Here, contents
from helpers.prepared_sets import (
    SIZE,
    difference,
    made,
    opened,
    pillow_square,
    stored,
)
from twotower.config import SourceConfig
from twotower.data.dataset import DataSet
from twotower.data.decode import cut_square, decode_image
from twotower.data.prepared_set import assemble, load_prepared
from twotower.data.shards import ShardSplit
from twotower.data.sources import archives as reading

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def mini2010(tmp_path_factory: pytest.TempPathFactory) -> tuple[SourceConfig, DataSet]:
    folder = tmp_path_factory.mktemp("ilsvrc2010")
    source = archives.ilsvrc(folder / "source", 2010)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twotower.data.preparing.shard_worker.ProcessPoolExecutor", Here)
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


def test_whole_numbers_in_dataset_json_are_numbers_like_others(mini2010: tuple[SourceConfig, DataSet]) -> None:
    """Also those that 64 bits do not hold, which NumPy would keep as objects of Python."""
    _, dataset = mini2010
    assert isinstance(dataset.train, ShardSplit)
    content = json.loads((dataset.train.folder.parent / "dataset.json").read_text())
    content["eigenvalues"], content["eigenvectors"] = [10**30, 2, 1], [[10**30, 0, 0], [0, 1, 0], [0, 0, 1]]
    read = assemble(dataset.train.folder.parent, content)
    assert (read.eigenvalues.dtype, read.eigenvectors.dtype) == (np.float64, np.float64)


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


def test_unpacking_loses_no_image_whatever_the_names(tmp_path: Path) -> None:
    """Names that are alike once they are in characters of all file systems, within shards and over several."""
    classes, files = ("é", "è", "_", "plain"), ("é.jpg", "è.jpg", "_.jpg", "a.jpg", "a.jpeg", "a.JPG", "a.png")
    written = [
        (f"set/{split}/{name}/{file}", archives.jpeg(archives.pixels(10 * k + n, 44, 40)))
        for split in ("train", "val")
        for k, name in enumerate(classes)
        for n, file in enumerate(files)
    ]
    source = archives.write_tree(tmp_path / "folder", written)
    dataset = made(source, tmp_path / "set", images_per_shard=9)
    for split in ("train", "val"):
        for path in sorted((tmp_path / "set" / split).glob("*.tar")):
            with tarfile.open(path) as tar:
                tar.extractall(tmp_path / "unpacked" / split, filter="data")
        unpacked = [path for path in (tmp_path / "unpacked" / split).rglob("*") if path.is_file()]
        folders = Counter(path.parent.name for path in unpacked)
        assert len(unpacked) == len(getattr(dataset, split)) == len(classes) * len(files)
        assert set(folders.values()) == {len(files)}
        assert {"plain", "_"} <= folders.keys(), "what needs no other name keeps its own"
        assert {"a.jpg", "_.jpg", "a.jpeg.jpg"} <= {path.name for path in unpacked if path.parent.name == "plain"}


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
