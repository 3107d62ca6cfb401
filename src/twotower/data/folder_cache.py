"""What was fitted on a folder of images, as it is kept: index.json and mean_image.npy in DIR/.twotower or data.cache.

Whoever hands out a data set may hand out an index with it, and whoever hands out a run may have written any folder
into its configuration. So an index names files of its data set and nothing else, and only what is ours is replaced.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.config import DataConfig
from twotower.config.places import SHAPES_ROOT, from_here
from twotower.data.dataset import PREPARED_SIZE
from twotower.data.folder import FolderIndex, index_folder
from twotower.data.prepared_set import PICTURE
from twotower.ground.files import write_npy, write_whole

FORMAT = 3
CACHE = ".twotower"
INDEX, MEAN_IMAGE = "index.json", "mean_image.npy"
UNFINISHED: dict[str, Any] = {"format": 0, "fingerprint": "", "files": {}}  # an index before its mean image is there
SEPARATORS = ("/", "\0") if os.name == "posix" else ("/", "\\", ":", "\0")  # what makes more than a name of a name
TRAINING = "data.root"  # by which training takes the folder of images


def root_of(data: DataConfig) -> Path:
    """The folder that holds train and val."""
    return from_here(data.root) if data.root is not None else SHAPES_ROOT


def cache_of(data: DataConfig) -> Path:
    """The folder that holds what was fitted, one for each size."""
    name = CACHE if data.size == PREPARED_SIZE else f"{CACHE}-{data.size}"
    return from_here(data.cache) if data.cache is not None else root_of(data) / name


def check_own(cache: Path) -> None:
    """Raises: ValueError if an index, a mean image or a picture there is not of this project, and would be lost."""
    if cache.name.startswith(CACHE) and not cache.is_symlink():
        return
    present = [name for name in (INDEX, MEAN_IMAGE, PICTURE) if (cache / name).exists()]
    if not present:
        return
    try:
        found = json.loads((cache / INDEX).read_text())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or not UNFINISHED.keys() <= found.keys():
        raise ValueError(
            f"{cache} has a {present[0]} that is not of this project, which stays as it is; choose an empty folder "
            "for the index with data.cache=DIR."
        )


def store(cache: Path, content: dict[str, Any], mean_image: NDArray[np.float32], key: str) -> None:
    """Writes both files, each complete or not at all. The index comes last: without it nothing counts as prepared.

    Args:
        key: by which the command that runs takes the folder of images.

    Raises: ValueError if they cannot be written.
    """
    if read_index(cache) == content:
        return  # another process was as fast, and may be reading it
    # Jobs of a sweep may prepare one folder at once, from several hosts; each writes files of its own.
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # Says whose folder this is, should the process be killed between the two.
        write_whole(cache / INDEX, f"{json.dumps(UNFINISHED)}\n".encode(), shared=True)
        write_npy(cache / MEAN_IMAGE, mean_image, shared=True)
        write_whole(cache / INDEX, f"{json.dumps(content)}\n".encode(), shared=True)
    except OSError as error:
        with suppress(OSError):
            (cache / INDEX).unlink(missing_ok=True)
        what = "choose another folder for the index with data.cache=DIR"
        if key != TRAINING:
            what = f"its index is written into a folder of images, so copy them where that can be, and give {key}=DIR"
        raise ValueError(f"{cache} cannot be written ({error.strerror}); {what}.") from error


def _check_inside(content: dict[str, Any], where: Path) -> None:
    """Raises: ValueError if an index names anything but files in the folders of their classes."""
    files = content["files"]
    names = [*content["classes"], *(name for by_class in files.values() for name in by_class)]
    names += [file for by_class in files.values() for of_class in by_class.values() for file in of_class]
    wrong = next((name for name in names if name in ("", ".", "..") or any(one in name for one in SEPARATORS)), None)
    if wrong is not None or set(files) != {"train", "val"}:
        raise ValueError(
            f"{where} names {wrong or ', '.join(files)!r}, which is no file in a class's folder of train or val; it "
            "was not made here, so delete it, and the folder is prepared again."
        )


def read_index(cache: Path) -> dict[str, Any] | None:
    """The content of a usable index.json; None if there is none. Raises: ValueError if it names files elsewhere."""
    try:
        content = json.loads((cache / INDEX).read_text())
    except (OSError, ValueError):
        return None
    usable = isinstance(content, dict) and content.get("format") == FORMAT and (cache / MEAN_IMAGE).exists()
    if usable:
        _check_inside(content, cache / INDEX)
    return content if usable else None


def has_index(data: DataConfig) -> bool:
    """Whether `data.cache` has the index of the very files in `data.root`, so that nothing would be written there.

    Raises: ValueError as `prepare`.
    """
    content = read_index(cache_of(data))
    return content is not None and is_of(content, index_folder(root_of(data)), data.size)


def is_of(content: dict[str, Any], index: FolderIndex, size: int) -> bool:
    """Whether a stored index is of these files, brought to this size."""
    # The files themselves as well: whoever made the index could write any fingerprint into it.
    found = (content["fingerprint"], content["size"], content["classes"], content["files"])
    return found == (index.fingerprint, size, index.classes, index.files)
