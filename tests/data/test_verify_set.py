"""A finished set is verified and loaded; damage is named."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers import archives
from helpers.archives import contents
from helpers.prepared_sets import (
    SIZE,
    made,
)
from twotower.config import DataConfig
from twotower.data.prepared_set import load_prepared
from twotower.data.preparing.first_use import prepare
from twotower.data.preparing.verify_set import verify
from twotower.data.shards import INDEX_TYPE

pytestmark = pytest.mark.usefixtures("here")


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
        (lambda root: (root / "dataset.json").write_text("{"), r"dataset\.json is damaged"),
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


@pytest.mark.parametrize(
    "index", [np.zeros(3), np.zeros((2, 2), INDEX_TYPE), np.zeros(2, [("shard", "<u4")]), np.array([{}], object)]
)
def test_verify_reads_no_other_index_than_ours(finished: Path, index: NDArray[Any]) -> None:
    """One that a stranger has made, with its checksum."""
    np.save(finished / "val" / "index.npy", index, allow_pickle=True)
    about = json.loads((finished / "dataset.json").read_text())
    content = (finished / "val" / "index.npy").read_bytes()
    about["splits"]["val"]["index_sha256"] = hashlib.sha256(content).hexdigest()
    (finished / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"val/index\.npy is damaged \(.*\); prepare the data set again\.$"):
        checked(finished)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["val/00000.tar", "val/index.npy", "mean_image.npy", "dataset.json", "picture.png"])
def test_nobody_waits_for_a_pipe(finished: Path, name: str) -> None:
    (finished / name).unlink()
    os.mkfifo(finished / name)
    data = DataConfig(kind="folder", root=str(finished), size=SIZE)
    if name == "picture.png":
        checked(finished)
        assert prepare(data, progress=False).picture is None
        return
    with pytest.raises(ValueError, match=rf"{name} is (no file|damaged \(it is no file\))"):
        checked(finished)
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        prepare(data, progress=False)


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
        ValueError, match=r"(00001\.tar|index\.npy|mean_image\.npy) is damaged .*prepare the data set again"
    ):
        load_prepared(finished)
