"""Preparation at first use: each file is decoded once, mean image and colour PCA are fitted, all is stored.

Training never meets a file that this pass, with the same decoder, has not decoded.
"""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from twotower.config import DataConfig, InputConfig
from twotower.data.convert import UnusableError, decode
from twotower.data.dataset import PREPARED_SIZE, DataSet, FileSplit, synthetic_dataset
from twotower.data.decode import BATCH
from twotower.data.fit import Fit
from twotower.data.folder import FolderIndex, index_folder
from twotower.data.loader import decoder_class, describe_loader
from twotower.data.prepared import PICTURE, is_prepared, is_unfinished, load_prepared
from twotower.data.progress import metered
from twotower.data.shapes import draw_shapes

FORMAT = 3
SHAPES_ROOT = Path("datasets/shapes")
CACHE = ".twotower"
INDEX, MEAN_IMAGE = "index.json", "mean_image.npy"
MANY_IMAGES = 50_000  # from here on a prepared set is worth its disk


def root_of(data: DataConfig) -> Path:
    """The folder that holds train and val."""
    return Path(data.root) if data.root is not None else SHAPES_ROOT


def cache_of(data: DataConfig) -> Path:
    """The folder that holds what was fitted, one for each size."""
    name = CACHE if data.size == PREPARED_SIZE else f"{CACHE}-{data.size}"
    return Path(data.cache) if data.cache is not None else root_of(data) / name


def _refuse(path: str, reason: str) -> ValueError:
    return ValueError(
        f"{path} cannot be decoded ({reason}); mend or remove it, or leave such files out with data.on_error=skip."
    )


def _examine(
    index: FolderIndex, size: int, on_error: str, progress: bool, loader: str
) -> tuple[Fit, dict[str, str], bool]:
    """Decodes everything. Raises: ValueError naming a file that cannot be decoded, unless such are skipped."""
    decoder, fit, rejects = decoder_class(loader)(max(1, os.cpu_count() or 1), size), Fit(size), {}
    for split, by_class in index.files.items():
        paths = [index.root / split / name / file for name, files in by_class.items() for file in files]
        with metered(f"preparing {split}", len(paths), silent=not progress) as meter:
            for begin in range(0, len(paths), BATCH):
                part = paths[begin : begin + BATCH]
                images, bad = decoder.decode(part)
                for path, reason in bad.items():
                    if on_error == "stop":
                        raise _refuse(str(path), reason)
                    rejects[path.relative_to(index.root).as_posix()] = reason
                if split == "train":
                    for image in images:
                        fit.add(image)
                meter.advance(len(part))
    return fit, rejects, decoder.needs_resize


def _store(cache: Path, content: dict[str, Any], mean_image: NDArray[np.float32]) -> None:
    """Writes both files, each complete or not at all. The index comes last: without it nothing counts as prepared."""
    # Jobs of a sweep may prepare one folder at once, from several hosts; each writes files of its own.
    own = uuid4().hex
    pending_mean, pending_index = cache / f"pending-{own}-{MEAN_IMAGE}", cache / f"pending-{own}-{INDEX}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        (cache / INDEX).unlink(missing_ok=True)
        np.save(pending_mean, mean_image)
        os.replace(pending_mean, cache / MEAN_IMAGE)
        pending_index.write_text(json.dumps(content) + "\n")
        os.replace(pending_index, cache / INDEX)
    except OSError as error:
        if cache.is_dir():
            pending_mean.unlink(missing_ok=True)
            pending_index.unlink(missing_ok=True)
        raise ValueError(
            f"{cache} cannot be written ({error.strerror}); choose another folder for the index with data.cache=DIR."
        ) from error


def _read_index(cache: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((cache / INDEX).read_text())
    except (OSError, ValueError):
        return None
    usable = isinstance(content, dict) and content.get("format") == FORMAT and (cache / MEAN_IMAGE).exists()
    return content if usable else None


def prepare(
    data: DataConfig, progress: bool = True, shown_input: InputConfig | None = None, loader: str = "auto"
) -> DataSet:
    """Makes a data set ready, once; afterwards only looks whether its files are still the same.

    Args:
        shown_input: draws a picture of what the network is fed in this way; None: no picture.
        loader: `auto`, `dali` or `torch`, which decodes every image once.

    Raises: ValueError for a folder that cannot be used, a file that cannot be decoded, or a cache that cannot be
    written.
    """
    if data.kind == "synthetic":
        return load(data)
    say: Callable[[str], None] = print if progress else lambda line: None
    root, cache = root_of(data), cache_of(data)
    if data.kind == "shapes":
        if not root.exists():
            say(f"drawing {data.num_train} + {data.num_val} images into {root}")
        draw_shapes(root, data.num_train, data.num_val)
    if is_prepared(root):
        prepared = load_prepared(root)
        if prepared.size != data.size:
            raise ValueError(
                f"data.root={root} was prepared with {prepared.size} pixels, and this network takes its crops from "
                f"{data.size}; prepare it with size={data.size}, or give network.prepared_size={prepared.size}."
            )
        return prepared
    if is_unfinished(root):
        raise ValueError(f"data.root={root} is not finished; run launch/prepare_data.py for it again to go on.")
    index = index_folder(root)
    content = _read_index(cache)
    if content is None or content["fingerprint"] != index.fingerprint or content["size"] != data.size:
        how = describe_loader(InputConfig(loader=loader))
        say(f"preparing {root}: {len(index.classes)} classes; every image is decoded once, {how}")
        if sum(len(files) for files in index.files["train"].values()) >= MANY_IMAGES:
            say(
                f"(python launch/prepare_data.py source=folder source.root={root} output=DIR can be interrupted, and "
                "makes a set that is read several times as fast)"
            )
        fit, rejects, needs_resize = _examine(index, data.size, data.on_error, progress, loader)
        _check_left(index, rejects)
        values, vectors = fit.colour_pca()
        content = {
            "format": FORMAT,
            "fingerprint": index.fingerprint,
            "size": data.size,
            "classes": index.classes,
            "files": index.files,
            "rejects": rejects,
            "needs_resize": needs_resize,
            "eigenvalues": values.tolist(),
            "eigenvectors": vectors.tolist(),
        }
        _store(cache, content, fit.mean_image())
        if index.num_ignored:
            say(f"{index.num_ignored} files not named as JPEG or PNG were ignored")
        for path, reason in rejects.items():
            say(f"left out: {path} ({reason})")
    rejects = content["rejects"]
    if rejects and data.on_error == "stop":
        raise _refuse(*next(iter(rejects.items())))
    if rejects:
        say(f"left out as they cannot be decoded: {len(rejects)}; {cache / INDEX} lists them")
    if shown_input is not None:
        _show(data, cache / PICTURE, shown_input)
    return load(data)


def _show(data: DataConfig, path: Path, shown_input: InputConfig) -> None:
    """Draws the picture, once for each way of feeding."""
    from twotower.data.picture import SHOWN, draw_picture, picture_of

    dataset = load(data)
    crops = replace(shown_input, threads=0, device="auto", decode_once="auto")
    if dataset.picture is not None and picture_of(path) == repr(crops):
        return
    count = len(dataset.train)
    rows = sorted({count * (2 * k + 1) // (2 * SHOWN) for k in range(SHOWN)})
    shown = []
    for row in rows:
        with suppress(UnusableError):  # DALI may be more generous
            shown.append((row, decode(dataset.train.read(row).tobytes())))
    draw_picture(dataset, shown, {"training": crops}, path)


def _check_left(index: FolderIndex, rejects: dict[str, str]) -> None:
    for split, by_class in index.files.items():
        for name, files in by_class.items():
            if all(f"{split}/{name}/{file}" in rejects for file in files):
                raise ValueError(
                    f"No image of {index.root / split / name} can be decoded; the class needs at least one."
                )


def load(data: DataConfig) -> DataSet:
    """Reads what `prepare` has stored. Raises: ValueError if it has not been run."""
    if data.kind == "synthetic":
        return synthetic_dataset(data.num_train, data.num_val, data.num_classes)
    root, cache = root_of(data), cache_of(data)
    if is_prepared(root):
        return load_prepared(root)
    content = _read_index(cache)
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
