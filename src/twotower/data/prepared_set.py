"""Reads a prepared set, the folder that launch/prepare_data.py makes (`preparing/build_set.py`)."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le, Len
from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict

from twotower.data.dataset import MEAN_IMAGE, DataSet
from twotower.data.shards import ShardSplit, shard_name
from twotower.ground.files import hash_file
from twotower.ground.stored_files import (
    ANYTHING,
    Positive,
    Three,
    check_form,
    damaged,
    read_json,
    read_numbers,
)
from twotower.ground.wording import on_one_line

FORMAT = 1
REMEDY = "prepare the data set again"
SPLITS = ("train", "val", "test")
DATASET, PICTURE, WORK, DECODED = "dataset.json", "picture.png", "work", "decoded"

_OPEN = ConfigDict(extra="allow")  # keys that are not read may be anything


class _Shard(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    file: str


class _Shards(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    shards: list[_Shard]


class _SummedShard(_Shard):
    sha256: str


class _Split(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    images: Positive
    index_sha256: str
    shards: Annotated[list[_SummedShard], Len(1)]


class _Class(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    name: Annotated[str, Len(1)]
    words: str


class _Settings(TypedDict):
    __pydantic_config__ = _OPEN  # type: ignore[misc]
    size: Annotated[int, Ge(1), Le(1 << 13)]
    source: str


class _Reject(TypedDict):
    split: str
    name: str
    reason: str


class _Description(TypedDict):
    """dataset.json, as far as it is read again."""

    __pydantic_config__ = _OPEN  # type: ignore[misc]
    settings: _Settings
    classes: Annotated[list[_Class], Len(1)]
    splits: dict[str, _Split]
    rejects: list[_Reject]
    mean_image_sha256: str
    eigenvalues: Three
    eigenvectors: Annotated[list[Three], Len(3, 3)]


_NAMES = TypeAdapter(dict[str, _Shards])
_FORM = TypeAdapter(_Description)


def is_prepared(root: Path) -> bool:
    """Whether a folder holds a finished prepared set."""
    return (root / DATASET).exists()


def checksum_prepared(root: Path) -> str:
    """Twelve digits that differ between sets: dataset.json lists the SHA-256 of every shard."""
    return hash_file(root / DATASET)[:12]


def is_unfinished(root: Path) -> bool:
    """Whether launch/prepare_data.py began a set there and was interrupted."""
    return (root / WORK).is_dir() and not is_prepared(root)


def read_dataset_json(root: Path) -> dict[str, Any]:
    """Reads the description of a prepared set. Raises: ValueError if it is damaged, or names unexpected files."""
    path = root / DATASET
    content = read_json(path, ANYTHING, REMEDY)
    if content.get("format") != FORMAT:
        found = on_one_line(str(content.get("format")), 20)
        raise ValueError(f"{path} has format {found}, not {FORMAT}; {REMEDY}.")
    for split, about in check_form(content.get("splits", {}), _NAMES, path, REMEDY).items():
        files = [shard["file"] for shard in about["shards"]]
        if split not in SPLITS or files != [shard_name(number) for number in range(len(files))]:
            raise ValueError(
                f"{path} names other files than the shards of train, val and test (in {on_one_line(split, 60)!r}), "
                f"so it was not made here; {REMEDY}."
            )
    described = check_form(content, _FORM, path, REMEDY)
    names = [entry["name"] for entry in described["classes"]]
    if len(set(names)) != len(names):
        raise damaged(path, "two classes have one name", REMEDY)
    if not {"train", "val"} <= set(described["splits"]):
        raise damaged(path, "it has no train or no val", REMEDY)
    return content


def load_prepared(root: Path) -> DataSet:
    """Opens a prepared set. Raises: ValueError if anything of it is missing or damaged."""
    return assemble(root, read_dataset_json(root))


def assemble(root: Path, content: dict[str, Any]) -> DataSet:
    """Opens the set in `root`, described by `content` of dataset.json. Raises: ValueError if a part is missing."""
    size = content["settings"]["size"]
    mean_image = read_numbers(root / MEAN_IMAGE, np.float32, (size, size, 3), REMEDY)
    classes = [entry["name"] for entry in content["classes"]]
    splits = {name: ShardSplit(root / name, len(classes)) for name in content["splits"]}
    for name, split in splits.items():
        if len(split) != content["splits"][name]["images"]:
            images = content["splits"][name]["images"]
            raise damaged(root / DATASET, f"it has {images} images of {name}, and the index {len(split)}", REMEDY)
    return DataSet(
        classes=classes,
        train=splits["train"],
        val=splits["val"],
        mean_image=mean_image,
        eigenvalues=np.array(content["eigenvalues"], np.float64),
        eigenvectors=np.array(content["eigenvectors"], np.float64),
        rejects={f"{reject['split']}: {reject['name']}": reject["reason"] for reject in content["rejects"]},
        needs_resize=False,
        test=splits.get("test"),
        size=size,
        picture=root / PICTURE if (root / PICTURE).is_file() else None,
    )
