"""Preparation at first use: each file is decoded once, mean image and colour PCA are fitted, all is stored.

Training never meets a file that this pass, with the same decoder, has not decoded.
"""

import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from twotower.config import DataConfig, InputConfig
from twotower.data.choose_loader import describe_loader
from twotower.data.dataset import DataSet
from twotower.data.decode import UnusableError, decode_image
from twotower.data.folder import FolderIndex, index_folder
from twotower.data.folder_cache import (
    FORMAT,
    INDEX,
    TRAINING,
    cache_of,
    check_own,
    is_of,
    read_index,
    root_of,
    store,
)
from twotower.data.load_data import load
from twotower.data.prepared_set import PICTURE, is_prepared, is_unfinished, load_prepared
from twotower.data.preparing.decoders import decoder_class
from twotower.data.preparing.examine_folder import examine, refusal
from twotower.data.shapes import draw_shapes
from twotower.ground.words import counted

MANY_IMAGES = 50_000  # from here on a prepared set is worth its disk


def prepare(
    data: DataConfig,
    progress: bool = True,
    shown_input: InputConfig | None = None,
    key: str = TRAINING,
    loader: str = "auto",
) -> DataSet:
    """Makes a data set ready, once; afterwards only looks whether its files are still the same.

    Args:
        shown_input: draws a picture of what the network is fed in this way; None: no picture.
        key: by which the command that runs takes `data.root`.
        loader: `auto`, `dali` or `torch`, which decodes every image once.

    Raises: ValueError for a folder that cannot be used, a file that cannot be decoded, or a cache that cannot be
    written, or holds something else.
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
            other = f", or give network.prepared_size={prepared.size}" if key == TRAINING else ""
            raise ValueError(
                f"{key}={root} was prepared with {prepared.size} pixels, and this network takes its crops from "
                f"{data.size}; prepare it with size={data.size}{other}."
            )
        return prepared
    if is_unfinished(root):
        raise ValueError(f"{key}={root} is not finished; run launch/prepare_data.py for it again to go on.")
    index = index_folder(root, key)
    content = read_index(cache)
    if content is None or not is_of(content, index, data.size):
        check_own(cache)
        how = describe_loader(InputConfig(loader=loader))
        classes = counted(len(index.classes), "class", "classes")
        say(f"preparing {root}: {classes}; every image is decoded once, {how}")
        if sum(len(files) for files in index.files["train"].values()) >= MANY_IMAGES:
            quoted = shlex.quote(str(root))
            say(
                f"(python launch/prepare_data.py source=folder source.root={quoted} output=DIR can be "
                "interrupted, and makes a set that is read several times as fast)"
            )
        fit, rejects, needs_resize = examine(index, data.size, data.on_error, progress, decoder_class(loader))
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
        store(cache, content, fit.mean_image(), key)
        if index.num_ignored:
            say(f"ignored: {counted(index.num_ignored, 'file')} not named as JPEG or PNG")
        for path, reason in rejects.items():
            say(f"left out: {path} ({reason})")
    rejects = content["rejects"]
    if rejects and data.on_error == "stop":
        raise refusal(*next(iter(rejects.items())))
    if rejects:
        say(f"left out as they cannot be decoded: {len(rejects)}; {cache / INDEX} lists them")
    if shown_input is not None:
        _show(data, cache / PICTURE, shown_input)
    return load(data)


def _show(data: DataConfig, path: Path, shown_input: InputConfig) -> None:
    """Draws the picture, once for each way of feeding."""
    from twotower.data.preparing.input_picture import SHOWN, draw_picture, picture_of

    dataset = load(data)
    crops = replace(shown_input, threads=0, device="auto", decode_once="auto")
    if dataset.picture is not None and picture_of(path) == repr(crops):
        return
    count = len(dataset.train)
    rows = sorted({count * (2 * k + 1) // (2 * SHOWN) for k in range(SHOWN)})
    shown = []
    for row in rows:
        with suppress(UnusableError):  # DALI may be more generous
            shown.append((row, decode_image(dataset.train.read(row).tobytes())))
    draw_picture(dataset, shown, {"training": crops}, path)


def _check_left(index: FolderIndex, rejects: dict[str, str]) -> None:
    for split, by_class in index.files.items():
        for name, files in by_class.items():
            if all(f"{split}/{name}/{file}" in rejects for file in files):
                raise ValueError(
                    f"No image of {index.root / split / name} can be decoded; the class needs at least one."
                )
