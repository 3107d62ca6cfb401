"""Images in an order, with their names, whatever they come from: a folder, a prepared set, paths or arrays."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from twotower.data.dataset import Split
from twotower.data.decode import UnusableError, cut_square, decode_image
from twotower.data.folder import SUFFIXES
from twotower.data.photographs import read_photograph
from twotower.data.prepared_set import SPLITS, is_prepared, is_unfinished, load_prepared


class ImageList(Protocol):
    """Images in an order; `source` says where they are from."""

    @property
    def source(self) -> str: ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The file, relative to its folder; for an array its place."""
        ...

    def label(self, index: int) -> str:
        """The class, where it is known, else an empty text."""
        ...

    def read(self, index: int, size: int) -> NDArray[np.uint8]:
        """The prepared square, uint8 [size, size, 3], RGB. Raises: ValueError naming an image that is unusable."""
        ...


@dataclass(frozen=True)
class FolderImages:
    """Files below a folder, read as photographs are: turned upright as their EXIF says."""

    root: Path
    files: list[str]

    @property
    def source(self) -> str:
        return str(self.root)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return self.files[index]

    def label(self, index: int) -> str:
        return ""

    def read(self, index: int, size: int) -> NDArray[np.uint8]:
        return read_photograph(self.root / self.files[index], size)


@dataclass(frozen=True)
class SplitImages:
    """A split of a prepared set."""

    source: str
    split: Split
    classes: list[str]

    def __len__(self) -> int:
        return len(self.split)

    def name(self, index: int) -> str:
        return self.split.name(index)

    def label(self, index: int) -> str:
        return self.classes[int(self.split.labels[index])]

    def read(self, index: int, size: int) -> NDArray[np.uint8]:
        try:
            return cut_square(np.ascontiguousarray(decode_image(self.split.read(index).tobytes())), size)
        except UnusableError as error:
            raise ValueError(f"{self.name(index)} cannot be used: {error}.") from error
        except OSError as error:
            raise ValueError(f"{self.name(index)} cannot be read: {error.strerror or error}.") from error


@dataclass(frozen=True)
class GivenImages:
    """Paths, and uint8 arrays [H, W, 3] in RGB."""

    images: Sequence[str | Path | NDArray[np.uint8]]
    source: str = "given one by one"

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        image = self.images[index]
        return str(image) if isinstance(image, str | Path) else f"[{index}]"

    def label(self, index: int) -> str:
        return ""

    def read(self, index: int, size: int) -> NDArray[np.uint8]:
        image = self.images[index]
        if isinstance(image, str | Path):
            return read_photograph(Path(image), size)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"an image is an array of {image.dtype} {list(image.shape)}; give uint8 [H, W, 3], RGB, or a path."
            )
        return cut_square(np.ascontiguousarray(image), size)


def list_files(root: Path) -> list[str]:
    """All files below a folder that are named as JPEG or PNG, relative to it, sorted; hidden ones are left out."""
    found: list[str] = []
    seen: set[tuple[int, int]] = set()  # folders, so that links in a circle come to an end
    for folder, subfolders, files in os.walk(root, followlinks=True):
        about = os.stat(folder)
        is_new = (about.st_dev, about.st_ino) not in seen
        seen.add((about.st_dev, about.st_ino))
        subfolders[:] = [name for name in subfolders if is_new and not name.startswith(".")]
        if is_new:
            place = Path(folder).relative_to(root)
            names = (name for name in files if not name.startswith(".") and name.lower().endswith(SUFFIXES))
            found += [(place / name).as_posix() for name in names]
    return sorted(found)


def open_images(root: Path, split: str | None = None, key: str = "data_root") -> ImageList:
    """The images of a folder, at any depth, or of a split of a prepared set.

    Args:
        split: `train`, `val` or `test` of a prepared set; None: val.
        key: the argument by which the caller takes the folder, for error messages.

    Raises: ValueError for a folder that is missing or has no images, or a split that it does not have.
    """
    if not root.is_dir():
        raise ValueError(f"{key}={root} does not exist or is no folder; give a folder of images, or a prepared set.")
    if is_unfinished(root):
        raise ValueError(f"{key}={root} is not finished; run launch/prepare_data.py for it again to go on.")
    if is_prepared(root):
        dataset = load_prepared(root)
        splits = {name: getattr(dataset, name) for name in SPLITS}
        there = [name for name, images in splits.items() if images is not None]
        chosen = split or "val"
        if chosen not in there:
            raise ValueError(f"split={chosen} is not in {root}; choose one of {', '.join(there)}.")
        return SplitImages(f"{chosen} of {root}", splits[chosen], dataset.classes)
    if split is not None:
        raise ValueError(
            f"split={split} is for prepared sets, and {root} is a folder of images; give a folder in it, such as "
            f"{key}={root / split}."
        )
    files = list_files(root)
    if not files:
        raise ValueError(f"{key}={root} has no images; they must be named {', '.join(SUFFIXES)}.")
    return FolderImages(root, files)
