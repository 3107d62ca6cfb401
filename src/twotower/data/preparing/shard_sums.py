"""The file of a finished shard in work/: its part of the index, checksum, rejects, and sums of training images."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from twotower.data.prepared_set import WORK
from twotower.data.shards import INDEX_TYPE
from twotower.ground.stored_files import check_is_file, damaged, parse_json

ABOUT, INDEX = "about", "index"
_REMEDY = "delete it, and the same command makes its shard again"
_NO_ARRAYS = (zipfile.BadZipFile, zlib.error, OSError, EOFError, KeyError, ValueError, TypeError, NotImplementedError)


class _About(TypedDict):
    sha256: str
    rejects: list[tuple[str, str]]


_FORM: TypeAdapter[_About] = TypeAdapter(_About)


def sums_path(output: Path, split: str, number: int) -> Path:
    """The path of the file that makes a shard count as done."""
    return output / WORK / f"{split}-{number:05d}.npz"


def read_sums(path: Path, size: int) -> tuple[_About, dict[str, NDArray[Any]]]:
    """Reads `sha256` and `rejects`, and the arrays by name.

    Args:
        size: sides of the set's squares, in pixels.

    Raises: ValueError if the file is missing, damaged or another one.
    """
    check_is_file(path, _REMEDY)
    try:
        with zipfile.ZipFile(path) as content:
            # Stored as they are, so that none takes more memory than the file has bytes.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in content.infolist()):
                raise damaged(path, "it is compressed", _REMEDY)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = parse_json(arrays.pop(ABOUT).tobytes(), _FORM, path, _REMEDY)
        _check(arrays, size, path.name.startswith("train-"))
    except (MemoryError, *_NO_ARRAYS) as error:
        if str(error).startswith(f"{path} is damaged"):
            raise
        raise damaged(path, str(error) or type(error).__name__, _REMEDY) from None
    return about, arrays


def _check(arrays: dict[str, NDArray[Any]], size: int, of_training: bool) -> None:
    """Raises: ValueError, KeyError for arrays that are missing or of another kind."""
    forms = {"image_sum": (np.dtype(np.uint32), (size, size, 3)), "products": (np.dtype(np.float64), (3, 3))}
    sums = {name: (arrays[name].dtype, arrays[name].shape) for name in forms if of_training or name in arrays}
    wrong = [name for name, form in sums.items() if form != forms[name]]
    if arrays[INDEX].dtype != INDEX_TYPE or arrays[INDEX].ndim != 1:
        wrong.append(INDEX)
    shown = {name: array for name, array in arrays.items() if name not in (*forms, INDEX)}
    wrong += [name for name, array in shown.items() if array.dtype != np.uint8 or array.ndim != 3]
    wrong += [name for name in shown if not name.removeprefix("shown-").isdigit()]
    if wrong:
        raise ValueError(f"{wrong[0]} is not of its form")
