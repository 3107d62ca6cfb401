"""What a dashboard shows of a run while it trains: the first layer's kernels, and a few validation images.

The images are taken from the batches of the validation as they pass, so nothing is read or decoded twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twotower.config import UNSCALED
from twotower.data.batch import Batch
from twotower.model.kernels import mosaic
from twotower.model.table import IMAGE_MAPS
from twotower.model.tower import Tower

HANDFUL = 16  # images
LIKELIEST = 5  # classes that are named of each
KERNEL_PIXELS = 44  # at least so many for each side of a kernel: 4 for each of conv1's 11
GAP = 2  # pixels of the kernels between the towers


def first_kernels(tower: Tower) -> Tensor:
    """What a tower's first layer sees the image with: float64 [K, 3, S, S] on the CPU, K none if it is no conv."""
    weight = tower.paper_named_parameters()[f"{tower.rows[0].name}.weight"].detach()
    if weight.dim() != 4 or weight.shape[1] != IMAGE_MAPS:
        return torch.empty(0, IMAGE_MAPS, 1, 1, dtype=torch.float64)
    return weight.to("cpu", torch.float64).contiguous()


def draw_kernels(of_tower: list[Tensor]) -> NDArray[np.uint8]:
    """Tower 0's kernels above tower 1's: uint8 [H, W, 3] of float64 [K, 3, S, S] of each tower.

    All are on one scale, from the lowest weight (black) to the highest (white), so that a faint one looks faint; each
    weight is a square of whole pixels.
    """
    low = min(float(one.min()) for one in of_tower)
    high = max(float(one.max()) for one in of_tower)
    parts = [mosaic(one, low, high if high > low else low + 1) for one in of_tower]
    gap = np.ones((GAP, parts[0].shape[1], 3), np.float32)
    whole = np.concatenate([part for one in parts for part in (gap, one)][1:])
    enlarged = -(-KERNEL_PIXELS // of_tower[0].shape[-1])
    return np.rint(255 * whole).astype(np.uint8).repeat(enlarged, 0).repeat(enlarged, 1)


@dataclass(frozen=True)
class Prediction:
    """What the network says of an image.

    Attributes:
        pixels: uint8 [H, W, 3], the centre crop.
        label: the class that it has.
        likeliest: up to five classes with their probabilities 0..1, the likeliest first.
    """

    pixels: NDArray[np.uint8]
    label: str
    likeliest: list[tuple[str, float]]

    def caption(self) -> str:
        """`n01440764: n01440764 93 %, n02102040 4 %, ...`, the label first."""
        return f"{self.label}: " + ", ".join(f"{name} {100 * part:.0f} %" for name, part in self.likeliest)


@dataclass
class Handful:
    """The same few images of every validation, evenly over the images that a process is shown.

    (Not the first ones: sets are in the order of their classes.)

    Args:
        num_images: that will pass.
        mean: float32 [H, W, 3], what was subtracted from them.
        std: of R, G and B, by which they were divided then.
    """

    num_images: int
    classes: list[str]
    mean: NDArray[np.float32]
    std: Sequence[float] = UNSCALED
    found: list[Prediction] = field(default_factory=list)
    passed: int = 0

    def __post_init__(self) -> None:
        evenly = np.linspace(0, self.num_images - 1, min(HANDFUL, self.num_images))
        self.wanted = np.rint(evenly).astype(np.int64)

    def look(self, batch: Batch, log_probabilities: Tensor) -> None:
        """Takes what is wanted of the next batch, with its natural log-probabilities [B, classes]."""
        rows = self.wanted - self.passed
        rows = rows[(rows >= 0) & (rows < len(batch.labels))]
        self.passed += len(batch.labels)
        if not len(rows):
            return
        chosen = torch.from_numpy(rows).to(batch.images.device)
        pixels = batch.images[chosen].movedim(1, -1).cpu().numpy() * np.array(self.std, np.float32) + self.mean
        shown = np.rint(pixels).clip(0, 255).astype(np.uint8)
        best = log_probabilities[chosen].float().exp().topk(min(LIKELIEST, len(self.classes)), dim=1)
        labels, values, places = batch.labels[chosen].tolist(), best.values.tolist(), best.indices.tolist()
        for row, label in enumerate(labels):
            likeliest = [(self.classes[place], value) for place, value in zip(places[row], values[row], strict=True)]
            self.found.append(Prediction(shown[row], self.classes[label], likeliest))


def centre_of(mean_image: NDArray[np.float32], crop_size: int) -> NDArray[np.float32]:
    """The middle of a mean image [size, size, 3], which is what validation subtracts: [crop_size, crop_size, 3]."""
    begin = (len(mean_image) - crop_size) // 2
    return mean_image[begin : begin + crop_size, begin : begin + crop_size]
