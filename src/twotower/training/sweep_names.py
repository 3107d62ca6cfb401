"""Names of sweeps and of their jobs' folders, which file systems, shells and Hydra take as they are."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.types import Override

MAX_NAME = 120  # characters; file systems stop at 255 bytes
# Keys that say where a sweep lies and where its jobs run; they do not change what is computed.
_PLACES = ("hydra", "sweep_dir", "resume")


def _with_digest(name: str, text: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{name[: MAX_NAME - 9]}-{digest}"


def name_file(text: str) -> str:
    """`text` without what a file system or a shell could misread; a digest keeps apart what that makes alike."""
    safe = "".join(c if c.isalnum() or c in "=,.+-_" else "_" for c in text)
    return safe if safe == text and len(safe) <= MAX_NAME else _with_digest(safe, text)


def name_folder(values: Sequence[str]) -> str:
    """The name of a job's folder from what sets it apart: "no_lrn-seed0" for ablation=no_lrn seed=0.

    An ablation or a network gives its own name; any other value stands behind the last part of its key. There is no
    equals sign and no comma, which shells and Hydra would take for something else.
    """
    parts = []
    for value in values:
        key, _, chosen = value.lstrip("+").partition("=")
        last = "" if key in ("ablation", "network") else key.rpartition(".")[2]
        parts.append(f"{last}_{chosen}" if last and chosen[:1].isalpha() else f"{last}{chosen}")
    text = "-".join(parts)
    safe = "".join(c if c.isalnum() or c in ".+-_" else "_" for c in text)
    return safe if safe == text and len(safe) <= MAX_NAME else _with_digest(safe, ",".join(values))


def place_jobs(folder: Path, jobs: Sequence[list[str]]) -> list[Path]:
    """A folder for each job, all of them different. Jobs of earlier versions stay where they are."""
    names = [name_folder(values) for values in jobs]
    places = []
    for name, values in zip(names, jobs, strict=True):
        earlier = folder / name_file(",".join(values))  # "ablation=no_lrn,seed=0"
        own = name if names.count(name) == 1 else _with_digest(name, ",".join(values))
        places.append(earlier if earlier.exists() else folder / own)
    return places


def _is_place(override: Override) -> bool:
    return override.key_or_group.replace("/", ".").split(".")[0] in _PLACES


def name_sweep(name: str, overrides: list[Override]) -> str:
    """The name of a sweep's folder and W&B group: the run's name, the keys that have several values, and a digest of
    the other overrides, so that sweeps that differ in those keep apart.
    """
    swept = dict.fromkeys(override.get_key_element() for override in overrides if override.is_sweep_override())
    others = [override for override in overrides if not override.is_sweep_override() and not _is_place(override)]
    fixed = sorted(str(override.input_line) for override in others)
    digest = [hashlib.sha256("\n".join(fixed).encode()).hexdigest()[:6]] if fixed else []
    return name_file("-".join([name, *swept, *digest]))
