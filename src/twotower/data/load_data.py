"""Opens a data set that is ready: prepared shards, an examined folder, drawn shapes, or synthetic images."""

from dataclasses import replace

import numpy as np

from twotower.config import DataConfig
from twotower.config.paths import from_here
from twotower.data.dataset import MEAN_IMAGE, DataSet, DecodedPlace, FileSplit
from twotower.data.folder_cache import (
    find_cache,
    find_root,
    read_index,
)
from twotower.data.prepared_set import DECODED, PICTURE, checksum_prepared, is_prepared, load_prepared
from twotower.data.synthetic import make_synthetic_dataset
from twotower.ground.stored_files import read_numbers


def load(data: DataConfig) -> DataSet:
    """Opens a data set that `first_use.prepare` has made ready. Raises: ValueError if it has not."""
    if data.kind == "synthetic":
        return make_synthetic_dataset(data.num_train, data.num_val, data.num_classes)
    root, cache = find_root(data), find_cache(data)
    if is_prepared(root):
        dataset = load_prepared(root)
        folder = root / DECODED if data.cache is None else from_here(data.cache)
        return replace(dataset, decoded=DecodedPlace(folder, checksum_prepared(root)))
    content = read_index(cache)
    if content is None or content["size"] != data.size:
        raise ValueError(f"{root} has not been prepared; start training with it once.")
    splits = {}
    for split, by_class in content["files"].items():
        paths, labels = [], []
        for label, name in enumerate(content["classes"]):
            of_class = [f"{split}/{name}/{file}" for file in by_class[name]]
            usable = [path for path in of_class if path not in content["rejects"]]
            paths += usable
            labels += [label] * len(usable)
        splits[split] = FileSplit(root, paths, np.array(labels, np.int64))
    return DataSet(
        classes=content["classes"],
        train=splits["train"],
        val=splits["val"],
        mean_image=read_numbers(cache / MEAN_IMAGE, np.float32, (data.size, data.size, 3), "delete it"),
        eigenvalues=np.array(content["eigenvalues"], np.float64),
        eigenvectors=np.array(content["eigenvectors"], np.float64),
        rejects=content["rejects"],
        needs_resize=content["needs_resize"],
        size=content["size"],
        picture=cache / PICTURE if (cache / PICTURE).is_file() else None,
    )
