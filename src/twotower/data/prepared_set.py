"""Reads a prepared set, the folder that launch/prepare_data.py makes (`preparing/build_set.py`)."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from twotower.data.dataset import MEAN_IMAGE, DataSet
from twotower.data.shards import ShardSplit, shard_name
from twotower.ground.files import hash_file

FORMAT = 1
SPLITS = ("train", "val", "test")
DATASET, PICTURE, WORK, DECODED = "dataset.json", "picture.png", "work", "decoded"


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
    """Reads the description of a prepared set. Raises: ValueError if it cannot be read, or names unexpected files."""
    try:
        content: dict[str, Any] = json.loads((root / DATASET).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{root / DATASET} cannot be read ({error}); prepare the data set again.") from error
    if content.get("format") != FORMAT:
        raise ValueError(f"{root} has format {content.get('format')}, not {FORMAT}; prepare the data set again.")
    for split, about in content.get("splits", {}).items():
        files = [shard["file"] for shard in about["shards"]]
        if split not in SPLITS or files != [shard_name(number) for number in range(len(files))]:
            raise ValueError(
                f"{root / DATASET} names other files than the shards of train, val and test (in {split!r}), so it "
                "was not made here; prepare the data set again."
            )
    return content


def load_prepared(root: Path) -> DataSet:
    """Opens a prepared set. Raises: ValueError if anything of it is missing or damaged."""
    return assemble(root, read_dataset_json(root))


def assemble(root: Path, content: dict[str, Any]) -> DataSet:
    """Opens the set in `root`, described by `content` of dataset.json. Raises: ValueError if a part is missing."""
    try:
        mean_image = np.load(root / MEAN_IMAGE)
    except (OSError, ValueError) as error:
        raise ValueError(f"{root / MEAN_IMAGE} cannot be read ({error}); prepare the data set again.") from error
    splits = {name: ShardSplit(root / name) for name in content["splits"]}
    return DataSet(
        classes=[entry["name"] for entry in content["classes"]],
        train=splits["train"],
        val=splits["val"],
        mean_image=mean_image,
        eigenvalues=np.array(content["eigenvalues"]),
        eigenvectors=np.array(content["eigenvectors"]),
        rejects={f"{reject['split']}: {reject['name']}": reject["reason"] for reject in content["rejects"]},
        needs_resize=False,
        test=splits.get("test"),
        size=content["settings"]["size"],
        picture=root / PICTURE if (root / PICTURE).exists() else None,
    )
