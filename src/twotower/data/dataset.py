"""The data set that towers are trained on: images and labels, and what was fitted to the training images."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

PREPARED_SIZE = 256  # pixels; shorter side of a resized image, and sides of its centre square (paper section 2)

MEAN_IMAGE = "mean_image.npy"  # file of a data set and of a run: float32 [size, size, 3], 0..255


class Split(Protocol):
    """Encoded images and their labels, int64 [N]."""

    @property
    def labels(self) -> NDArray[np.int64]: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> NDArray[np.uint8]:
        """The encoded bytes of one image, uint8 [length]."""
        ...

    def name(self, index: int) -> str:
        """The path of an image, relative to the data set's folder."""
        ...


@dataclass(frozen=True)
class FileSplit:
    """Images in files of their own: paths relative to the data set's root."""

    root: Path
    paths: list[str]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> NDArray[np.uint8]:
        return np.fromfile(self.root / self.paths[index], np.uint8)

    def name(self, index: int) -> str:
        return self.paths[index]


@dataclass(frozen=True)
class DecodedPlace:
    """Where the pixels of a prepared set lie, if they have been decoded once and for all; see `decoded_squares`.

    Attributes:
        folder: holds a file for each split.
        checksum: of the encoded set, part of the files' names.
    """

    folder: Path
    checksum: str


@dataclass(frozen=True)
class DataSet:
    """A data set that is ready for training.

    Attributes:
        classes: names of the classes; a label is an index in this list.
        train, val: the two splits that every data set has.
        mean_image: mean of the training images, float32 [size, size, 3], 0..255, RGB; None for synthetic data.
        eigenvalues: those of the covariance of the training set's RGB pixels, float64 [3], ascending, in (0..255)^2.
        eigenvectors: their unit vectors as columns, float64 [3, 3].
        rejects: reasons, by path, of the files that could not be decoded.
        needs_resize: whether any image still has to be resized to the square that crops are taken from.
        test: a third split, where the data set has one (ILSVRC-2010).
        size: sides of the square that crops are taken from, in pixels.
        picture: PNG of the network's input, where one was drawn.
        decoded: the place of its pixels; None for images that are not prepared.
    """

    classes: list[str]
    train: Split
    val: Split
    mean_image: NDArray[np.float32] | None
    eigenvalues: NDArray[np.float64]
    eigenvectors: NDArray[np.float64]
    rejects: dict[str, str] = field(default_factory=dict)
    needs_resize: bool = True
    test: Split | None = None
    size: int = PREPARED_SIZE
    picture: Path | None = None
    decoded: DecodedPlace | None = None

    @property
    def is_synthetic(self) -> bool:
        return self.mean_image is None

    def split(self, name: str) -> Split:
        """`val` or `test`. Raises: ValueError if there is no such split."""
        split = {"val": self.val, "test": self.test}.get(name)
        if split is None:
            raise ValueError(f"split={name} is not in this data set; choose {'val or test' if self.test else 'val'}.")
        return split
