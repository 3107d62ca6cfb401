"""Stores what was fitted to a folder of images: index.json and mean_image.npy in DIR/.twotower or data.cache.

A data set from elsewhere may bring an index with it, and the configuration of a run from elsewhere may name any
folder. So an index may name files of its data set and nothing else, and only files of this project are replaced.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le, Len
from numpy.typing import NDArray
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from twotower.config import DataConfig
from twotower.config.paths import SHAPES_ROOT, from_here
from twotower.data.dataset import MEAN_IMAGE, PREPARED_SIZE
from twotower.data.folder import FolderIndex, index_folder
from twotower.data.prepared_set import PICTURE
from twotower.ground.files import DiskFullError, write_npy, write_whole
from twotower.ground.stored_files import ANYTHING, Three, check_form, read_json, read_numbers
from twotower.ground.wording import on_one_line

FORMAT = 3
CACHE = ".twotower"
INDEX = "index.json"
UNFINISHED: dict[str, Any] = {"format": 0, "fingerprint": "", "files": {}}  # index whose mean image is not yet there
SEPARATORS = ("/", "\0") if os.name == "posix" else ("/", "\\", ":", "\0")  # characters that no file name has
TRAINING = "data.root"  # argument by which training takes the folder of images
_REMEDY = "delete it, and the folder is prepared again"


class _Index(TypedDict):
    """index.json; see `first_use`."""

    format: int
    fingerprint: str
    size: Annotated[int, Ge(1), Le(1 << 13)]
    classes: Annotated[list[str], Len(1)]
    files: dict[str, dict[str, list[str]]]
    rejects: dict[str, str]
    needs_resize: bool
    eigenvalues: Three
    eigenvectors: Annotated[list[Three], Len(3, 3)]


_FORM = TypeAdapter(_Index)


def find_root(data: DataConfig) -> Path:
    """The folder that holds train and val."""
    return from_here(data.root) if data.root is not None else SHAPES_ROOT


def find_cache(data: DataConfig) -> Path:
    """The folder of index and mean image; there is one for each size of the prepared square."""
    name = CACHE if data.size == PREPARED_SIZE else f"{CACHE}-{data.size}"
    return from_here(data.cache) if data.cache is not None else find_root(data) / name


def check_own(cache: Path) -> None:
    """Checks that no file of somebody else would be replaced. Raises: ValueError naming one that would."""
    if cache.name.startswith(CACHE) and not cache.is_symlink():
        return
    present = [name for name in (INDEX, MEAN_IMAGE, PICTURE) if (cache / name).exists()]
    if not present:
        return
    try:
        is_own = UNFINISHED.keys() <= read_json(cache / INDEX, ANYTHING, _REMEDY).keys()
    except ValueError:
        is_own = False
    if not is_own:
        raise ValueError(
            f"{cache} has a {present[0]} that is not of this project, which stays as it is; choose an empty folder "
            "for the index with data.cache=DIR."
        )


def store(cache: Path, content: dict[str, Any], mean_image: NDArray[np.float32], key: str) -> None:
    """Writes both files, each complete or not at all. The index comes last: without it nothing counts as prepared.

    Args:
        key: the argument by which the command that runs takes the folder of images, for error messages.

    Raises: ValueError if they cannot be written.
    """
    if read_index(cache) == content:
        return  # another process has written it meanwhile, and may be reading it
    # Jobs of a sweep may prepare one folder at once, from several hosts, so each writes under names of its own.
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # This index marks the folder as ours, should the process be killed before the last line.
        write_whole(cache / INDEX, f"{json.dumps(UNFINISHED)}\n".encode(), shared=True)
        write_npy(cache / MEAN_IMAGE, mean_image, shared=True)
        write_whole(cache / INDEX, f"{json.dumps(content)}\n".encode(), shared=True)
    except OSError as error:
        with suppress(OSError):
            (cache / INDEX).unlink(missing_ok=True)
        remedy = "choose another folder for the index with data.cache=DIR"
        if key != TRAINING:
            remedy = f"its index is written beside the images, so copy them to a writable folder, and give {key}=DIR"
        if isinstance(error, DiskFullError):
            raise ValueError(f"{error} Make room, or {remedy}.") from error
        raise ValueError(f"{cache} cannot be written ({error.strerror}); {remedy}.") from error


def _is_file_name(name: str) -> bool:
    return name not in ("", ".", "..") and not any(sign in name for sign in SEPARATORS)


def _check_inside(content: _Index, where: Path) -> None:
    """Checks that an index names only files in the folders of their classes. Raises: ValueError."""
    files = content["files"]
    names = [*content["classes"], *(name for by_class in files.values() for name in by_class)]
    names += [file for by_class in files.values() for of_class in by_class.values() for file in of_class]
    wrong = next((name for name in names if not _is_file_name(name)), None)
    if wrong is not None or set(files) != {"train", "val"}:
        raise ValueError(
            f"{where} names {on_one_line(wrong or ', '.join(files), 100)!r}, which is no file in a class's folder of "
            "train or val; it was not made here, so delete it, and the folder is prepared again."
        )


def read_index(cache: Path) -> dict[str, Any] | None:
    """Reads index.json; None if there is none that can be used, so that the folder is prepared again.

    Raises: ValueError if it names files elsewhere.
    """
    try:
        content = read_json(cache / INDEX, ANYTHING, _REMEDY)
        if content.get("format") != FORMAT:
            return None
        index = check_form(content, _FORM, cache / INDEX, _REMEDY)
        read_numbers(cache / MEAN_IMAGE, np.float32, (index["size"], index["size"], 3), _REMEDY)
    except ValueError:
        return None
    _check_inside(index, cache / INDEX)
    agrees = all(set(by_class) == set(index["classes"]) for by_class in index["files"].values())
    has_images = all(any(by_class.values()) for by_class in index["files"].values())
    return content if agrees and has_images else None


def has_index(data: DataConfig) -> bool:
    """Whether `data.cache` holds the index of the very files in `data.root`, so that preparing would write nothing.

    Raises: ValueError as `first_use.prepare`.
    """
    content = read_index(find_cache(data))
    return content is not None and is_index_of(content, index_folder(find_root(data)), data.size)


def is_index_of(content: dict[str, Any], index: FolderIndex, size: int) -> bool:
    """Whether a stored index is of these files, brought to this size."""
    # The files are compared as well as the fingerprint, which a forged index could copy.
    stored = (content["fingerprint"], content["size"], content["classes"], content["files"])
    return stored == (index.fingerprint, size, index.classes, index.files)
