"""Dictionaries of arrays in `.npy` and `.npz` files, read without running what a pickle may hold.

A dictionary in a `.npy` file is a pickle, and a pickle can call any function of Python; `numpy.load` lets it. Here it
may build arrays of numbers, dictionaries, lists, tuples, strings and plain numbers. The names of NumPy that it needs
for that lead to stand-ins, so that not even NumPy's own functions are called by the file. Files of Python 2 are read.

Why this is own code: the standard library has the parser (`pickle.Unpickler`), and what it may resolve is all that is
added here. Libraries that check pickles (picklescan, fickling) judge a file and leave the reading to `numpy.load`.
"""

import io
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

Array = NDArray[np.float32]
_MAX_DEPTH, _MAX_ENTRIES = 2, 1000  # a dictionary of layers, each a list or a dictionary of arrays
_NUMBERS = re.compile(r"[fiu][1248]|b1")
# Names that people usually give to np.savez: conv1.weight, conv1/weights, conv1_W, fc8_b ...
_KEY = re.compile(r"(?P<layer>\w+?)[./_](?P<part>w|weights?|b|bias|biases)(:0)?", re.IGNORECASE)


class _RefusedError(Exception):
    """A call or a type that a pickle asked for and does not get."""


class _PickledType:
    """Stands for numpy.dtype(code, align, copy)."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])

    def number(self) -> np.dtype[Any]:
        if not _NUMBERS.fullmatch(self.code) or self.order not in "<>=|":
            raise _RefusedError(f"an array of {self.code}")
        return np.dtype(self.order + self.code)


class _PickledArray:
    """Stands for an array, which arrives as an empty one and its state. `value` is an array, or a list of objects."""

    value: NDArray[Any] | list[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, content = state
        if kind.code in ("O", "O8"):  # numpy.save puts a dictionary into an array of one object
            if shape != () or not isinstance(content, list) or len(content) != 1:
                raise _RefusedError("an array of objects")
            self.value = content
            return
        content = content.encode("latin1") if isinstance(content, str) else bytes(content)
        flat = np.frombuffer(content, kind.number())
        self.value = flat.reshape([int(size) for size in shape], order="F" if by_columns else "C")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return lambda *_: _PickledArray()
        if (module, name) == ("numpy", "ndarray"):
            return None  # it is only an argument of _reconstruct
        if (module, name) == ("numpy", "dtype"):
            return lambda *arguments: _PickledType(*arguments)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, encoding: text.encode("latin1")
        raise _RefusedError(f"{module}.{name}")


def _check_memo(content: bytes) -> None:
    """A memo's index is given memory for all indices below it, so a few bytes could take all there is."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(content):
            raise _RefusedError("an index beyond the end of the file")


def _resolve(value: Any, depth: int = 0) -> Any:
    """Arrays for their stand-ins. A few entries are enough; shared lists within lists could be without end."""
    if isinstance(value, _PickledArray):
        if isinstance(value.value, np.ndarray):
            return value.value
        raise _RefusedError("an array of objects within another")
    if isinstance(value, dict | list | tuple):
        if depth > _MAX_DEPTH or len(value) > _MAX_ENTRIES:
            raise _RefusedError(f"containers more than {_MAX_DEPTH} deep or of more than {_MAX_ENTRIES} entries")
        if isinstance(value, dict):
            return {key: _resolve(entry, depth + 1) for key, entry in value.items()}
        return [_resolve(entry, depth + 1) for entry in value]
    if value is None or isinstance(value, str | bytes | int | float):
        return value
    raise _RefusedError(f"a {type(value).__name__}")


def unpickle(content: bytes, path: Path) -> Any:
    """The object of a pickle, with read-only arrays. Raises: ValueError naming what it asks for and does not get."""
    try:
        _check_memo(content)
        held = _Unpickler(io.BytesIO(content), encoding="latin1").load()
        if isinstance(held, _PickledArray) and isinstance(held.value, list):
            held = held.value[0]
        return _resolve(held)
    except _RefusedError as error:
        raise ValueError(
            f"{path} is refused: its pickle asks for {error}, and only arrays of numbers, dictionaries, lists and "
            "strings are read; give a file that holds nothing else."
        ) from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to lead to
        raise ValueError(f"{path} is damaged or cut short: its pickle cannot be read; get the file again.") from error


def read_npy(path: Path) -> Any:
    """An array of numbers, or the object that a `.npy` file holds. Raises: ValueError if it is refused or damaged."""
    try:
        with path.open("rb") as file:
            version = npy.read_magic(file)
            read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            if not read_header(file)[2].hasobject:
                file.seek(0)
                return npy.read_array(file, allow_pickle=False)
            content = file.read()
    except Exception as error:  # the header is parsed as Python, and raises whatever that does
        raise ValueError(f"{path} is no .npy file, or it is cut short ({error}); get the file again.") from error
    return unpickle(content, path)


def _named_parts(path: Path) -> dict[str, dict[str, Any]]:
    """{"conv1": {"w": array, "b": array}, ...} of a `.npz` file."""
    layers: dict[str, dict[str, Any]] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except Exception as error:  # zipfile, zlib and NumPy raise many kinds of errors here
        raise ValueError(f"{path} cannot be read as arrays of numbers ({error}); get the file again.") from error
    for key, array in arrays.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise ValueError(f"{path} has an array {key}; give them names such as conv1.weight and conv1.bias.")
        layers.setdefault(match["layer"], {})[match["part"].lower()[0]] = array
    return layers


def _dictionary_parts(path: Path) -> dict[str, dict[str, Any]]:
    """The same of a `.npy` file."""
    content = read_npy(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no dictionary of layers; it should be layer name -> [weights, biases].")
    layers: dict[str, dict[str, Any]] = {}
    for layer, parts in content.items():
        if isinstance(parts, list):
            parts = {"w": parts[0], "b": parts[1]} if len(parts) == 2 else {}
        elif not isinstance(parts, dict):
            parts = {}
        layers[_text(layer)] = {_text(key).lower()[:1]: part for key, part in parts.items()}
    return layers


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def read_layers(path: Path) -> dict[str, list[Array]]:
    """{"conv1": [weight, bias], ...} as float32, in the file's own layout.

    A `.npy` file holds a dictionary from a layer's name to [weights, biases] or to {"weights": ..., "biases": ...};
    a `.npz` file an array for each, conv1.weight, conv1/weights, conv1_W or the like.

    Raises: ValueError if the file is refused, damaged, or holds something else.
    """
    layers = _named_parts(path) if path.suffix == ".npz" else _dictionary_parts(path)
    for layer, parts in layers.items():
        if set(parts) != {"w", "b"} or not all(isinstance(part, np.ndarray) for part in parts.values()):
            raise ValueError(f"{path} has no weights and biases for {layer}; both are needed, as arrays.")
    return {layer: [np.array(parts[key], np.float32) for key in ("w", "b")] for layer, parts in layers.items()}
