"""Prepares the images of a command at first use: decodes each file once, fits mean image and colour PCA, stores all.

Training never meets a file that this pass has not decoded with the same decoder.
"""

import shlex
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.config import DataConfig, InputConfig
from twotower.data.choose_loader import describe_loader
from twotower.data.dataset import DataSet
from twotower.data.decode import UnusableError, decode_image
from twotower.data.folder import FolderIndex, index_folder
from twotower.data.folder_cache import (
    FORMAT,
    INDEX,
    TRAINING,
    check_own,
    find_cache,
    find_root,
    is_index_of,
    read_index,
    store,
)
from twotower.data.load_data import load
from twotower.data.prepared_set import PICTURE, is_prepared, is_unfinished
from twotower.data.preparing.examine_folder import choose_decoder, examine
from twotower.data.preparing.rejects import check_remaining, refuse_file
from twotower.data.shapes import draw_shapes
from twotower.ground.links import refuse_links
from twotower.ground.screen import show
from twotower.ground.wording import counted, printable

MANY_IMAGES = 50_000  # least number of images that make a prepared set worth its space on the disk


def prepare(
    data: DataConfig,
    progress: bool = True,
    shown_input: InputConfig | None = None,
    key: str = TRAINING,
    loader: str = "auto",
) -> DataSet:
    """Makes a data set ready, once; afterwards only checks that its files are still the same, and opens it.

    Args:
        progress: whether to print lines and a progress bar.
        shown_input: settings of the input to draw a picture of; None: no picture.
        key: the argument by which the command that runs takes `data.root`, for error messages.
        loader: `auto`, `dali` or `torch`: the loader that decodes every image once.

    Raises: ValueError for a folder that cannot be used, a file that cannot be decoded, or a cache that cannot be
        written, or holds something else.
    """
    if data.kind == "synthetic":
        return load(data)
    say: Callable[[str], None] = show if progress else lambda line: None
    root, cache = find_root(data), find_cache(data)
    if data.kind == "shapes":
        if not root.exists():
            say(f"drawing {data.num_train} + {data.num_val} images into {root}")
        draw_shapes(root, data.num_train, data.num_val)
    if is_prepared(root):
        return _load_finished(data, key)
    if is_unfinished(root):
        raise ValueError(f"{key}={root} is not finished; run launch/prepare_data.py for it again to go on.")
    index = index_folder(root, key)
    content = read_index(cache)
    if content is None or not is_index_of(content, index, data.size):
        _check_writable(data)
        _announce(index, loader, say)
        content, mean_image = _examine(data, index, progress, loader)
        store(cache, content, mean_image, key)
        if index.num_ignored:
            say(f"ignored: {counted(index.num_ignored, 'file')} not named as JPEG or PNG")
        for path, reason in content["rejects"].items():
            say(f"left out: {printable(path)} ({reason})")
    rejects = content["rejects"]
    if rejects and data.on_error == "stop":
        raise refuse_file(*next(iter(rejects.items())))
    if rejects:
        say(f"left out as they cannot be decoded: {len(rejects)}; {cache / INDEX} lists them")
    if shown_input is not None:
        _draw_input(data, cache / PICTURE, shown_input)
    return load(data)


def _check_writable(data: DataConfig) -> None:
    """Raises: ValueError if something of somebody else would be changed, in the cache or by a link in its place."""
    cache = find_cache(data)
    if data.cache is None:
        refuse_links(cache.parent, cache.name)
    check_own(cache)


def _load_finished(data: DataConfig, key: str) -> DataSet:
    """Opens a prepared set. Raises: ValueError if it is damaged, or its squares do not have `data.size` pixels."""
    dataset = load(data)
    if dataset.size != data.size:
        other = f", or give network.prepared_size={dataset.size}" if key == TRAINING else ""
        raise ValueError(
            f"{key}={find_root(data)} was prepared with {dataset.size} pixels, and this network takes its crops from "
            f"{data.size}; prepare it with size={data.size}{other}."
        )
    return dataset


def _announce(index: FolderIndex, loader: str, say: Callable[[str], None]) -> None:
    """Says that a folder is about to be examined, and what would be better for a large one."""
    how = describe_loader(loader)
    classes = counted(len(index.classes), "class", "classes")
    say(f"preparing {index.root}: {classes}; every image is decoded once, {how}")
    if sum(len(files) for files in index.files["train"].values()) >= MANY_IMAGES:
        quoted = shlex.quote(str(index.root))
        say(
            f"(python launch/prepare_data.py source=folder source.root={quoted} output=DIR can be "
            "interrupted, and makes a set that is read several times as fast)"
        )


def _examine(
    data: DataConfig, index: FolderIndex, progress: bool, loader: str
) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Decodes every image once. Returns the content of index.json, and the mean image."""
    fit, rejects, needs_resize = examine(index, data.size, data.on_error, progress, choose_decoder(loader))
    check_remaining(index, rejects)
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
    return content, fit.mean_image()


def _draw_input(data: DataConfig, path: Path, shown_input: InputConfig) -> None:
    """Draws the picture of the input, unless it was drawn for the same settings before."""
    from twotower.data.preparing.input_picture import SHOWN, draw_picture, read_shown

    dataset = load(data)
    if dataset.picture is not None and read_shown(path) == repr(shown_input):
        return
    _check_writable(data)
    count = len(dataset.train)
    rows = sorted({count * (2 * k + 1) // (2 * SHOWN) for k in range(SHOWN)})
    shown = []
    for row in rows:
        with suppress(UnusableError):  # DALI may decode more
            shown.append((row, decode_image(dataset.train.read(row).tobytes())))
    draw_picture(dataset, shown, {"training": shown_input}, path)
