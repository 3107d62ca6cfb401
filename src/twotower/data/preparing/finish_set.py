"""Finishes a prepared set whose shards are all there: index, mean image, colour PCA, picture, dataset.json."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.config import PrepareConfig
from twotower.data.dataset import MEAN_IMAGE
from twotower.data.prepared_set import DATASET, FORMAT, PICTURE, SPLITS, WORK, assemble
from twotower.data.preparing.input_picture import draw_picture
from twotower.data.preparing.mean_and_pca import Fit
from twotower.data.preparing.shard_plan import Plan, Say
from twotower.data.preparing.shard_sums import INDEX, read_sums, sums_path
from twotower.data.shards import INDEX_FILE, INDEX_TYPE, shard_name
from twotower.ground.files import hash_file, write_npy, write_whole
from twotower.ground.wording import counted


@dataclass
class _Collected:
    """The results of all shards.

    Attributes:
        fit: sums over the training images.
        splits: what dataset.json says of each split.
        counts: {class: {split: images}}.
        rejects: split, name and reason of each reject.
        shown: index in the training split, and original, of each image for the picture.
    """

    fit: Fit
    counts: dict[str, dict[str, int]]
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    rejects: list[dict[str, str]] = field(default_factory=list)
    shown: list[tuple[int, NDArray[np.uint8]]] = field(default_factory=list)


def _collect_split(split: str, plan: Plan, output: Path, collected: _Collected) -> None:
    """Adds the results of the shards of a split, and writes its index."""
    parts, shards = [np.empty(0, INDEX_TYPE)], []
    for number in range(plan.shards[split]):
        about, arrays = read_sums(sums_path(output, split, number), collected.fit.size)
        num_before = sum(len(part) for part in parts)
        parts.append(arrays[INDEX])
        shards.append({"file": shard_name(number), "sha256": about["sha256"]})
        collected.rejects += [{"split": split, "name": name, "reason": reason} for name, reason in about["rejects"]]
        if split == "train":
            collected.fit.merge(len(arrays[INDEX]), arrays["image_sum"], arrays["products"])
            keys = [key for key in arrays if key.startswith("shown-")]
            collected.shown += [(num_before + int(key.removeprefix("shown-")), arrays[key]) for key in keys]
    index = np.concatenate(parts)
    for label, count in zip(*np.unique(index["label"], return_counts=True), strict=True):
        collected.counts[plan.classes[label]][split] = int(count)
    write_npy(output / split / INDEX_FILE, index)
    collected.splits[split] = {
        "images": len(index),
        "index_sha256": hash_file(output / split / INDEX_FILE),
        "shards": shards,
    }


def _check_complete(collected: _Collected) -> None:
    """Raises: ValueError for a class without a training image, or a split without any."""
    for name, by_split in collected.counts.items():
        if by_split["train"] == 0:
            raise ValueError(f"No training image of class {name} can be used; each class needs at least one.")
    for split, about in collected.splits.items():
        if about["images"] == 0:
            raise ValueError(f"No image of {split} can be used; each split needs at least one.")


def _describe(plan: Plan, output: Path, collected: _Collected) -> dict[str, Any]:
    """The content of dataset.json."""
    mean_image, (values, vectors) = collected.fit.mean_image(), collected.fit.colour_pca()
    return {
        "format": FORMAT,
        "settings": plan.settings,
        "classes": [
            {"name": name, "words": plan.words.get(name, name), **collected.counts[name]} for name in plan.classes
        ],
        "splits": collected.splits,
        "rejects": collected.rejects,
        "files_passed_over": plan.ignored,
        "mean_image_sha256": hash_file(output / MEAN_IMAGE),
        "channel_means": mean_image.mean(axis=(0, 1), dtype=np.float64).tolist(),
        "eigenvalues": values.tolist(),
        "standard_deviations": np.sqrt(np.maximum(values, 0)).tolist(),
        "eigenvectors": vectors.tolist(),
    }


def finish_set(config: PrepareConfig, plan: Plan, output: Path, say: Say) -> None:
    """Writes everything but the shards, dataset.json last, and removes the folder of the work.

    Raises: ValueError for a class without a training image, or a split without any; OSError.
    """
    collected = _Collected(Fit(config.size), {name: dict.fromkeys(plan.shards, 0) for name in plan.classes})
    for split in SPLITS:
        if split in plan.shards:
            _collect_split(split, plan, output, collected)
    _check_complete(collected)
    write_npy(output / MEAN_IMAGE, collected.fit.mean_image())
    content = _describe(plan, output, collected)
    draw_picture(assemble(output, content), collected.shown, dict(config.picture), output / PICTURE)
    write_whole(output / DATASET, json.dumps(content, indent=1).encode() + b"\n")
    for split, about in collected.splits.items():
        say(f"{split}: {counted(about['images'], 'image')} in {counted(len(about['shards']), 'shard')}")
    classes, rejects = counted(len(plan.classes), "class", "classes"), counted(len(collected.rejects), "reject")
    say(f"{classes}, {rejects}, listed in {output / DATASET}")
    shutil.rmtree(output / WORK)
