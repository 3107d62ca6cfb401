"""Opens a data set that is ready: prepared shards, an examined folder, drawn shapes, or synthetic images."""

import numpy as np

from twotower.config import DataConfig
from twotower.data.dataset import DataSet, FileSplit, synthetic_dataset
from twotower.data.folder_cache import (
    MEAN_IMAGE,
    cache_of,
    read_index,
    root_of,
)
from twotower.data.prepared_set import PICTURE, is_prepared, load_prepared


def load(data: DataConfig) -> DataSet:
    """Reads what `prepare` has stored. Raises: ValueError if it has not been run."""
    if data.kind == "synthetic":
        return synthetic_dataset(data.num_train, data.num_val, data.num_classes)
    root, cache = root_of(data), cache_of(data)
    if is_prepared(root):
        return load_prepared(root)
    content = read_index(cache)
    if content is None or content["size"] != data.size:
        raise ValueError(f"{root} has not been prepared; start training with it once.")
    splits = {}
    for split, by_class in content["files"].items():
        paths, labels = [], []
        for label, name in enumerate(content["classes"]):
            kept = [f"{split}/{name}/{file}" for file in by_class[name]]
            kept = [path for path in kept if path not in content["rejects"]]
            paths += kept
            labels += [label] * len(kept)
        splits[split] = FileSplit(root, paths, np.array(labels, np.int64))
    return DataSet(
        content["classes"],
        splits["train"],
        splits["val"],
        np.load(cache / MEAN_IMAGE),
        np.array(content["eigenvalues"]),
        np.array(content["eigenvectors"]),
        content["rejects"],
        content["needs_resize"],
        size=content["size"],
        picture=cache / PICTURE if (cache / PICTURE).exists() else None,
    )
