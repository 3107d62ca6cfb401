"""What the towers are trained on: files and labels, and what was fitted on the training images."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PREPARED_SIZE = 256  # pixels; the shorter side of an image, and its centre square (paper section 2)
CROP_SIZE = 224  # pixels; what conv1 sees (paper section 4.1)
CENTRE_OFFSET = (PREPARED_SIZE - CROP_SIZE) // 2


@dataclass(frozen=True)
class Split:
    """Images of `train` or `val`: paths relative to the data set's root, and labels int64 [N]."""

    root: Path
    paths: list[str]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataSet:
    """A prepared data set.

    Attributes:
        mean_image: of the training set, float32 [256, 256, 3], 0..255, RGB; None for synthetic data.
        eigenvalues: of the covariance of the training set's RGB pixels, float64 [3], ascending, in (0..255)^2.
        eigenvectors: their unit vectors as columns, float64 [3, 3].
        rejects: path and reason of the files that could not be decoded.
        needs_resize: whether any image has a shorter side other than 256.
    """

    classes: list[str]
    train: Split
    val: Split
    mean_image: NDArray[np.float32] | None
    eigenvalues: NDArray[np.float64]
    eigenvectors: NDArray[np.float64]
    rejects: dict[str, str] = field(default_factory=dict)
    needs_resize: bool = True

    @property
    def is_synthetic(self) -> bool:
        return self.mean_image is None


def synthetic_dataset(num_train: int, num_val: int, num_classes: int) -> DataSet:
    """A data set without files, for timing. Raises: ValueError for a count that is too small."""
    for key, value, least in (("num_train", num_train, 1), ("num_val", num_val, 1), ("num_classes", num_classes, 2)):
        if value < least:
            raise ValueError(f"data.{key}={value} is too small for data=synthetic; give at least {least}.")
    splits = [Split(Path(), [], np.arange(n, dtype=np.int64) % num_classes) for n in (num_train, num_val)]
    classes = [f"class{i}" for i in range(num_classes)]
    return DataSet(classes, splits[0], splits[1], None, np.ones(3), np.eye(3))
