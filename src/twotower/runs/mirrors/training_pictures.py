"""Pictures of a run while it trains: the first layer's kernels, and a few validation images with predictions.

The images are taken from the batches of the validation as they pass, so none is read or decoded twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twotower.config import UNSCALED
from twotower.data.batch import Batch
from twotower.model.conv1_kernels import mosaic
from twotower.model.layer_table import IMAGE_MAPS
from twotower.model.tower import Tower

HANDFUL = 16  # validation images that are shown
LIKELIEST = 5  # classes that are named for each image
KERNEL_PIXELS = 44  # least side of a kernel in the picture, 4 for each of conv1's 11 weights
GAP = 2  # weights, height of the white bar between the towers


def first_kernels(tower: Tower) -> Tensor:
    """A tower's kernels on the image: float64 [K, 3, S, S] on the CPU; K = 0 if its first layer is no convolution."""
    weight = tower.paper_named_parameters()[f"{tower.rows[0].name}.weight"].detach()
    if weight.dim() != 4 or weight.shape[1] != IMAGE_MAPS:
        return torch.empty(0, IMAGE_MAPS, 1, 1, dtype=torch.float64)
    return weight.to("cpu", torch.float64).contiguous()


def draw_kernels(by_tower: list[Tensor]) -> NDArray[np.uint8]:
    """Draws tower 0's kernels above tower 1's: uint8 [H, W, 3].

    All kernels have one scale, from the lowest weight (black) to the highest (white), so that a faint kernel looks
    faint. Each weight is a square of whole pixels.

    Args:
        by_tower: kernels of each tower, float64 [K, 3, S, S].
    """
    low = min(float(kernels.min()) for kernels in by_tower)
    high = max(float(kernels.max()) for kernels in by_tower)
    mosaics = [mosaic(kernels, low, high if high > low else low + 1) for kernels in by_tower]
    gap = np.ones((GAP, mosaics[0].shape[1], 3), np.float32)
    picture = np.concatenate([part for tower in mosaics for part in (gap, tower)][1:])
    pixels_per_weight = -(-KERNEL_PIXELS // by_tower[0].shape[-1])
    return np.rint(255 * picture).astype(np.uint8).repeat(pixels_per_weight, 0).repeat(pixels_per_weight, 1)


@dataclass(frozen=True)
class Prediction:
    """The network's prediction for an image.

    Attributes:
        pixels: centre crop, uint8 [H, W, 3].
        label: name of its class.
        likeliest: up to five classes with their probabilities 0..1, the likeliest first.
    """

    pixels: NDArray[np.uint8]
    label: str
    likeliest: list[tuple[str, float]]

    def caption(self) -> str:
        """The label, then the likeliest classes: `n01440764: n01440764 93 %, n02102040 4 %, ...`."""
        return f"{self.label}: " + ", ".join(f"{name} {100 * part:.0f} %" for name, part in self.likeliest)


@dataclass
class Handful:
    """The same few images of every validation, spread evenly over the images of a process.

    (The first images would not do, because splits are in the order of their classes.)

    Args:
        num_images: images that will pass.
        classes: names of the classes.
        mean: mean that was subtracted from the images, float32 [H, W, 3].
        std: numbers by which R, G and B were divided then.
    """

    num_images: int
    classes: list[str]
    mean: NDArray[np.float32]
    std: Sequence[float] = UNSCALED
    predictions: list[Prediction] = field(default_factory=list)
    passed: int = 0

    def __post_init__(self) -> None:
        evenly = np.linspace(0, self.num_images - 1, min(HANDFUL, self.num_images))
        self.wanted = np.rint(evenly).astype(np.int64)

    def look(self, batch: Batch, log_probabilities: Tensor) -> None:
        """Takes the images that are wanted from the next batch, with its natural log-probabilities [B, classes]."""
        rows = self.wanted - self.passed
        rows = rows[(rows >= 0) & (rows < len(batch.labels))]
        self.passed += len(batch.labels)
        if not len(rows):
            return
        chosen = torch.from_numpy(rows).to(batch.images.device)
        pixels = batch.images[chosen].movedim(1, -1).cpu().numpy() * np.array(self.std, np.float32) + self.mean
        shown = np.rint(pixels).clip(0, 255).astype(np.uint8)
        best = log_probabilities[chosen].float().exp().topk(min(LIKELIEST, len(self.classes)), dim=1)
        labels, values, indices = batch.labels[chosen].tolist(), best.values.tolist(), best.indices.tolist()
        for row, label in enumerate(labels):
            likeliest = [(self.classes[index], value) for index, value in zip(indices[row], values[row], strict=True)]
            self.predictions.append(Prediction(shown[row], self.classes[label], likeliest))


def cut_centre(mean_image: NDArray[np.float32], crop_size: int) -> NDArray[np.float32]:
    """Cuts out the centre of a mean image [size, size, 3], which validation subtracts: [crop_size, crop_size, 3]."""
    begin = (len(mean_image) - crop_size) // 2
    return mean_image[begin : begin + crop_size, begin : begin + crop_size]
