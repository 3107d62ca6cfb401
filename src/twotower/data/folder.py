"""Any folder of images: DIR/train/<class>/* and DIR/val/<class>/*."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class FolderIndex:
    """The image files of a folder, by split and class, all sorted by name.

    `fingerprint` changes when a file is added, removed, renamed or gets another size.
    """

    root: Path
    classes: list[str]
    files: dict[str, dict[str, list[str]]]  # {"train": {class: [file name, ...]}, "val": ...}
    num_ignored: int  # files whose names do not end in one of SUFFIXES
    fingerprint: str


def _holds(question: Callable[[], bool]) -> bool:
    """Asks what an entry of a folder is; a link in a circle is neither a file nor a folder."""
    try:
        return question()
    except OSError:
        return False


def _subfolders(folder: Path) -> list[str]:
    entries = [entry for entry in os.scandir(folder) if _holds(entry.is_dir)]
    return sorted(entry.name for entry in entries if not entry.name.startswith("."))


def index_folder(root: Path, key: str = "data.root") -> FolderIndex:
    """Lists the images of a folder.

    Args:
        key: the argument by which the command that runs takes the folder, for error messages.

    Raises: ValueError if a folder is missing or empty, or if train and val do not have the same classes.
    """
    expected = "it should hold train/<class>/* and val/<class>/*"
    if not root.is_dir():
        raise ValueError(f"{key}={root} does not exist or is no folder; {expected}.")
    for split in ("train", "val"):
        if not (root / split).is_dir():
            raise ValueError(f"{key}={root} has no folder {split}; {expected}.")
    classes = _subfolders(root / "train")
    in_val = _subfolders(root / "val")
    if not classes:
        raise ValueError(f"{root / 'train'} is empty; {expected}.")
    for name in classes:
        if name not in in_val:
            raise ValueError(f"Class {name} is in {root / 'train'} but not in val; each class must be in both.")
    for name in in_val:
        if name not in classes:
            raise ValueError(f"Class {name} is in {root / 'val'} but not in train; each class must be in both.")
    digest, num_ignored = hashlib.sha256(), 0
    files: dict[str, dict[str, list[str]]] = {"train": {}, "val": {}}
    for split, by_class in files.items():
        for name in classes:
            entries = [
                entry
                for entry in os.scandir(root / split / name)
                if _holds(entry.is_file) and not entry.name.startswith(".")
            ]
            images = sorted(
                (entry for entry in entries if entry.name.lower().endswith(SUFFIXES)), key=lambda e: e.name
            )
            if not images:
                raise ValueError(f"{root / split / name} has no images; they must be named {', '.join(SUFFIXES)}.")
            num_ignored += len(entries) - len(images)
            by_class[name] = [entry.name for entry in images]
            for entry in images:
                digest.update(
                    f"{split}/{name}/{entry.name} {entry.stat().st_size}\n".encode(errors="surrogateescape")
                )
    return FolderIndex(root, classes, files, num_ignored, digest.hexdigest())
