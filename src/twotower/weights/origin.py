"""What an exported file says of where it is from, and the refusal to replace one that is from elsewhere.

    .safetensors    its metadata
    .onnx           metadata_props, of the same names
    .html           `origin` in the page's data, see `browser_page`

Two exports are of the same values if their `sha256` is the same: that of the tensors as to=merged writes them.
"""

from collections.abc import Sequence
from pathlib import Path

from google.protobuf.message import DecodeError
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from twotower.ground.stored_files import damaged, parse_json, read_limited, read_tensors
from twotower.model import plain
from twotower.weights import browser_page
from twotower.weights.read_weights import FORMATS, REMEDY

LOADER = "plain.py"
LARGEST_ONNX = 1 << 31  # bytes; more than protobuf takes
LARGEST_PAGE = 1 << 28  # bytes; twice what MOST_MEGABYTES of weights take in base 64


class _Page(TypedDict):
    """Of a page's data; it has more."""

    origin: dict[str, str]


_PAGE: TypeAdapter[_Page] = TypeAdapter(_Page)


def _read_onnx(path: Path) -> dict[str, str]:
    import onnx

    try:
        model = onnx.ModelProto.FromString(read_limited(path, LARGEST_ONNX, REMEDY))
    except DecodeError as error:
        raise damaged(path, str(error), REMEDY) from error
    return {entry.key: entry.value for entry in model.metadata_props}


def _read_page(path: Path) -> dict[str, str]:
    content = browser_page.find_about(read_limited(path, LARGEST_PAGE, REMEDY))
    return {} if content is None else parse_json(content, _PAGE, path, REMEDY)["origin"]


def _read_tensors(path: Path) -> dict[str, str]:
    about = read_tensors(path, REMEDY, finite=False)[1]
    return about if about.get("format") in FORMATS else {}


_READERS = {".safetensors": _read_tensors, ".onnx": _read_onnx, ".html": _read_page}


def read_origin(path: Path) -> dict[str, str]:
    """The metadata that say where a file is from; empty if launch/export.py has not written it.

    Raises: ValueError if it is damaged, or of another kind than its name says.
    """
    return _READERS[path.suffix](path)


def refuse_another(path: Path, sha256: str) -> None:
    """Raises: ValueError if the file is there already and is none of ours, or has other values.

    Args:
        sha256: of the tensors that are to be written there.
    """
    if not path.exists():
        return
    try:
        origin = read_origin(path)
    except ValueError:
        if path.suffix == ".safetensors" and path.is_file():
            return  # because "export it again" is what a damaged one is answered with
        origin = {}
    if origin.get("sha256") == sha256:
        return
    if "sha256" in origin:
        about = (
            f"with other values (seed {origin.get('seed', 'unknown')}, step {origin.get('step', 'unknown')}, "
            f"{origin.get('dtype', 'float32')})"
        )
    else:
        about = "and nothing in it says which network it holds"
    raise ValueError(
        f"{path} is there already, {about}, so nothing was written; give another output=DIR, or remove it."
    )


def refuse_strangers(path: Path, companions: Sequence[str]) -> None:
    """Raises: ValueError if one of the files that are written beside `path` is there already, and is none of ours.

    Which files are ours, `path` says, as it is written before them; and plain.py says it by its first line.
    """
    loader = Path(plain.__file__).read_text(encoding="utf-8").splitlines()[0].encode()
    for companion in (path.with_name(name) for name in companions):
        if not companion.exists():
            continue
        if companion.name == LOADER:
            is_ours = companion.is_file() and read_limited(companion, LARGEST_PAGE, REMEDY).startswith(loader)
        else:
            is_ours = path.exists()
        if not is_ours:
            raise ValueError(
                f"{companion} is there already, and is not from an export, so nothing was written; give another "
                "output=DIR, or remove it."
            )
