"""Files that were stored by this project, and may since have been changed by a disk, an editor or a stranger.

Each reader knows the form that it expects, and refuses everything else in one sentence, before a part of it is used.
Sizes are limited, so that no file takes more memory than there is.
"""

import json
import os
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Len
from numpy.typing import NDArray
from pydantic import FiniteFloat, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from twotower.ground.wording import on_one_line

Form = TypeVar("Form")
Array = NDArray[Any]

# Parts of forms.
Count = Annotated[int, Ge(0), Le(2**53)]
Positive = Annotated[int, Gt(0), Le(2**53)]
Percent = Annotated[FiniteFloat, Ge(0), Le(100)]
Three = Annotated[list[FiniteFloat], Len(3, 3)]

# Halves of a pair, by which Python names files whose bytes are no UTF-8, and characters that nobody uses.
_PRIVATE = {half: half + 0x100000 for half in range(0xD800, 0xE000)}
_SURROGATES = {private: half for half, private in _PRIVATE.items()}

LARGEST_JSON = 1 << 30  # bytes; the index of ImageNet's 14 million files would take half of it
ANYTHING: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
_NO_ARRAY = (ValueError, MemoryError, OverflowError, TypeError)  # of numpy, for impossible shapes and dtypes


def damaged(path: Path, reason: str, remedy: str) -> ValueError:
    """The error for a file that cannot be used: its name, what is wrong with it, and what to do."""
    return ValueError(f"{path} is damaged ({on_one_line(reason, 300)}); {remedy}.")


def _describe(error: ValidationError) -> str:
    """The first thing that is wrong, and where: `splits.train.images: Input should be a valid integer`."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]


def check_is_file(path: Path, remedy: str) -> None:
    """Called before a file is opened, as a pipe in its place would never end. Raises: ValueError if it is none."""
    if not path.is_file():
        raise damaged(path, "it is no file" if os.path.lexists(path) else "it is missing", remedy)


def read_limited(path: Path, most: int, remedy: str) -> bytes:
    """The bytes of a file. Raises: ValueError naming it if it is missing, no file, or has more than `most` bytes."""
    try:
        check_is_file(path, remedy)
        size = path.stat().st_size
        if size > most:
            raise damaged(path, f"it has {size:,} bytes, and {most:,} are the most", remedy)
        return path.read_bytes()
    except OSError as error:
        raise damaged(path, f"it cannot be read: {error.strerror or error}", remedy) from error


def check_form(content: Any, form: TypeAdapter[Form], path: Path, remedy: str) -> Form:
    """The content as the form has it. Raises: ValueError naming the file and the first thing that is wrong."""
    try:
        return form.validate_python(content, strict=True)
    except ValidationError as error:
        if any(one["type"] == "string_unicode" for one in error.errors(include_url=False)):
            return _parse_with_surrogates(json.dumps(content), form, path, remedy)
        raise damaged(path, _describe(error), remedy) from None


def _replace_characters(content: Any, table: dict[int, int]) -> Any:
    """The same lists, tuples and mappings, with other characters in every text."""
    if isinstance(content, str):
        return content.translate(table)
    if isinstance(content, list | tuple):
        return type(content)(_replace_characters(one, table) for one in content)
    if isinstance(content, dict):
        return {_replace_characters(name, table): _replace_characters(one, table) for name, one in content.items()}
    return content


def _check_with_surrogates(content: Any, form: TypeAdapter[Form]) -> Form:
    """Content of JSON as the form has it, which pydantic checks with characters of private use for the surrogates."""
    text = json.dumps(_replace_characters(content, _PRIVATE), ensure_ascii=False)
    checked: Form = _replace_characters(form.validate_json(text, strict=True), _SURROGATES)
    return checked


def parse_json(text: bytes | str, form: TypeAdapter[Form], path: Path, remedy: str) -> Form:
    """A text of JSON that `path` holds, as the form has it. Raises: ValueError as `check_form`."""
    try:
        return form.validate_json(text, strict=True)
    except ValidationError as error:
        if "surrogate" in (reason := _describe(error)):  # a file's name whose bytes are no UTF-8, as json writes it
            return _parse_with_surrogates(text, form, path, remedy)
        raise damaged(path, reason, remedy) from None


def _parse_with_surrogates(text: bytes | str, form: TypeAdapter[Form], path: Path, remedy: str) -> Form:
    """The same by Python's own parser, which takes halves of a pair. Raises: ValueError as `check_form`."""
    try:
        return _check_with_surrogates(json.loads(text), form)
    except ValidationError as error:
        raise damaged(path, _describe(error), remedy) from None
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error), remedy) from None


def read_json(path: Path, form: TypeAdapter[Form], remedy: str, most: int = LARGEST_JSON) -> Form:
    """A file of JSON, as the form has it. Depth is limited by the parser.

    Args:
        remedy: what to do if it is damaged, a clause without a full stop.
        most: bytes.

    Raises: ValueError naming the file, what is wrong and what to do, also if it is missing.
    """
    return parse_json(read_limited(path, most, remedy), form, path, remedy)


def _read_header(path: Path, remedy: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape and dtype that a .npy file claims, and where its numbers begin. Raises: ValueError, OSError."""
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            shape, _, kind = readers[version](file)
        except OSError:
            raise
        except Exception as error:  # any kind, because Python's own tokenizer and parser read a header
            raise damaged(path, str(error) or type(error).__name__, remedy) from None
        return shape, kind, file.tell()


def read_npy(path: Path, remedy: str, *, mapped: bool = False) -> Array:
    """The array of a .npy file, in memory or as a memory map.

    The header's claim is compared with the size of the file first, so that none takes more memory than that.

    Raises: ValueError naming the file if it is missing, another file, cut short, or of a kind that is not numbers.
    """
    try:
        check_is_file(path, remedy)
        shape, kind, begin = _read_header(path, remedy)
        # Whole numbers of any size, because a claimed shape may exceed 64 bits.
        size = begin + kind.itemsize * int(np.prod(np.array(shape, object))) if shape else begin + kind.itemsize
        if kind.hasobject or any(side < 0 for side in shape) or size != path.stat().st_size:
            raise damaged(path, f"it claims {kind} {list(shape)}, which is not what it holds", remedy)
        array: Array = np.load(path, mmap_mode="r" if mapped and size > begin else None, allow_pickle=False)
    except OSError as error:
        raise damaged(path, f"it cannot be read: {error.strerror or error}", remedy) from error
    except _NO_ARRAY as error:
        if str(error).startswith(f"{path} is damaged"):
            raise
        raise damaged(path, str(error) or type(error).__name__, remedy) from None
    return array


def read_numbers(path: Path, kind: Any, shape: tuple[int | None, ...], remedy: str) -> Array:
    """A .npy file of finite numbers.

    Args:
        kind: the dtype.
        shape: the sides; None: any length.

    Raises: ValueError as `read_npy`, and for another dtype or shape, or numbers that are not finite.
    """
    array = read_npy(path, remedy)
    wanted = [side if side is not None else "any" for side in shape]
    fits = len(array.shape) == len(shape) and all(
        want in (None, have) for want, have in zip(shape, array.shape, strict=True)
    )
    if array.dtype != np.dtype(kind) or not fits:
        given = f"{array.dtype} {list(array.shape)}"
        raise damaged(path, f"it holds {given}, not {np.dtype(kind)} {wanted}", remedy)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise damaged(path, "not all of its numbers are finite", remedy)
    return array


def read_metadata(path: Path, remedy: str) -> dict[str, str]:
    """The metadata of a safetensors file that is as long as its header says; the tensors are not read.

    Raises: ValueError naming the file if it is missing, another file or cut short.
    """
    try:
        check_is_file(path, remedy)
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except OSError as error:
        raise damaged(path, f"it cannot be read: {error.strerror or error}", remedy) from error
    except (SafetensorError, RuntimeError, MemoryError, OverflowError) as error:
        raise damaged(path, str(error) or type(error).__name__, remedy) from None


def _guess_other_kind(path: Path) -> str | None:
    """What a server or a checkout often leaves instead of a large file; None if it is neither."""
    with path.open("rb") as file:
        start = file.read(100).lstrip()
    if start.startswith(b"version https://git-lfs"):
        return "it is only the pointer that git-lfs leaves for a file that it has not fetched"
    return "it is a page of HTML" if start.startswith(b"<") else None


def read_tensors(path: Path, remedy: str, *, finite: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and its metadata.

    Raises: ValueError naming the file if it is missing, another file, cut short, or, where `finite`, holds numbers
        that are not finite.
    """
    try:
        check_is_file(path, remedy)
        with safe_open(path, framework="pt") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
    except OSError as error:
        raise damaged(path, f"it cannot be read: {error.strerror or error}", remedy) from error
    except (SafetensorError, RuntimeError, MemoryError, OverflowError, TypeError, KeyError, AttributeError) as error:
        raise damaged(path, _guess_other_kind(path) or str(error) or type(error).__name__, remedy) from None
    if finite:
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise damaged(path, f"{name} has numbers that are not finite", remedy)
    return tensors, about
