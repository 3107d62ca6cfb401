"""Sources and settings that cannot become a prepared set: one sentence says why."""

import tarfile
from pathlib import Path
from typing import Any

import pytest

from helpers import archives
from helpers.archives import prepare_here
from helpers.prepared_sets import (
    SIZE,
    Command,
    made,
    overrides_of,
)
from twotower.config import DownloadConfig, SourceConfig

pytestmark = pytest.mark.usefixtures("here")


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
        ("size", 7, "at least 8 and at most 4096"),
        ("quality", 101, "at least 1 and at most 100"),
        ("images_per_shard", 0, "at least 1 and at most 65536"),
        ("max_rejects", 1.5, "at least 0 and at most 1"),
        ("workers", -1, "at least 0 and at most 1024"),
    ],
)
def test_values_out_of_range_are_refused(
    tmp_path: Path, mini: SourceConfig, key: str, value: Any, allowed: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{key}={value} is not possible; give {allowed}\.$"):
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


@pytest.mark.slow
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
