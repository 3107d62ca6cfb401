"""Where a network lies: a path, a name of those that come with this project, or an id of Hugging Face's hub."""

import json
import struct
from pathlib import Path

from pydantic import TypeAdapter

from twotower.ground.stored_files import ANYTHING, parse_json, read_json
from twotower.ground.wording import on_one_line
from twotower.weights.read_weights import KINDS, read_about

REMEDY = "get it again"
PREFIX = "hf:"
MODEL, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
# A wheel has the networks inside the package, a checkout in results/.
_INSTALLED = Path(__file__).resolve().parents[1] / "zoo"
ZOO = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).resolve().parents[3] / "results"
LARGEST_CONFIG = 1 << 26  # bytes
_CLASSES = TypeAdapter(list[str])


def list_networks() -> list[str]:
    """The names of the networks that come with this project."""
    return sorted(file.parent.name for file in ZOO.glob(f"*/{MODEL}"))


def fetch(given: str) -> Path:
    """The folder of a network on Hugging Face's hub, fetched if it is not in its cache: "hf:OWNER/NAME[@REVISION]".

    Raises: ValueError if huggingface_hub is not installed, or there is no such network, or it cannot be reached, or
        it was not written by `to=huggingface`.
    """
    name, _, revision = given.removeprefix(PREFIX).partition("@")
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError(
            f"{given} is on Hugging Face's hub, and huggingface_hub is not installed: pip install -e '.[huggingface]'"
        ) from None
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=[MODEL, CONFIG, CARD]
        )
    except Exception as error:  # of any kind, as its ways to the network have errors of their own
        raise ValueError(
            f"{given} cannot be fetched ({type(error).__name__}: {on_one_line(str(error), 200)}); check the name, or "
            "copy the folder here and give its path."
        ) from error
    if not (Path(folder) / MODEL).is_file():
        raise ValueError(f"{given} has no {MODEL}: it is no folder that launch/export.py to=huggingface wrote.")
    return Path(folder)


def _find(given: str) -> Path:
    """The folder of a name of ours or of an id of the hub, else the path. What lies at a path comes before a name."""
    if given.startswith(PREFIX):
        return fetch(given)
    is_name = not Path(given).exists() and (ZOO / given / MODEL).is_file()
    return ZOO / given if is_name else Path(given)


def locate(path: str | Path) -> Path:
    """The folder or file that is meant. Raises: ValueError if there is nothing."""
    found = _find(str(path))
    if not found.exists():
        names = f", or a name: {', '.join(list_networks())}" if list_networks() else ""
        raise ValueError(f"{path} does not exist; give {KINDS}{names}.")
    return check_folder(found)


def resolve_name(given: str) -> str:
    """The file that a name of ours, an id of the hub, or a folder for the hub stands for; any other path as it is."""
    return str(check_folder(_find(given)))


def check_folder(folder: Path) -> Path:
    """The file of weights in a folder that `to=huggingface` wrote; anything else as it is.

    Raises: ValueError if its config.json is missing or of another file.
    """
    file = folder / MODEL
    if not file.is_file():
        return folder
    config = read_json(folder / CONFIG, ANYTHING, REMEDY, LARGEST_CONFIG)
    check_whole(file)
    about = read_about(file)
    classes = parse_json(about.get("classes", "[]"), _CLASSES, file, REMEDY)
    if config.get("sha256") != about.get("sha256") or config.get("classes") != classes:
        raise ValueError(
            f"{folder / CONFIG} does not belong to {file.name}: their checksums or classes differ; {REMEDY}."
        )
    return file


def check_whole(path: Path) -> None:
    """Checks that a safetensors file is as long as its header says. Raises: ValueError if it is cut short."""
    size = path.stat().st_size
    with path.open("rb") as file:
        begin = file.read(8)
        length = struct.unpack("<Q", begin)[0] if len(begin) == 8 else 0
        header = file.read(length) if 0 < length <= LARGEST_CONFIG else b""
    wanted = 8 + length
    if header and len(header) == length:
        try:
            ends = [entry["data_offsets"][1] for name, entry in json.loads(header).items() if name != "__metadata__"]
            wanted += max(ends, default=0)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError):
            return  # whoever reads it says that it is none
    if size < max(wanted, 8) and length <= LARGEST_CONFIG:
        raise ValueError(f"{path} is cut short: it has {size:,} of at least {max(wanted, 8):,} bytes; {REMEDY}.")
