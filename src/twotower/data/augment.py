"""The random changes to training images: where each is cropped, whether it is mirrored, how its colours shift.

They are functions of seed, epoch and step alone, drawn for the batch of all replicas; each replica takes its rows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twotower.config import InputConfig
from twotower.data.colour_noise import colour_shifts, noise_form, noise_scale
from twotower.data.order import replica_rows
from twotower.ground.random_streams import numpy_stream

SPAN = 32  # the largest offset of a 224 crop in a 256 square


@dataclass(frozen=True)
class Changes:
    """The changes to each image of a batch of B.

    Attributes:
        offsets: int32 [B, 2], y and x of the crop in the prepared square.
        flips: int32 [B], 1 where the crop is mirrored.
        noise: float32 [B, 3], added to R, G, B of all pixels, in 0..255 units.
        scale: factor on the whole image after the noise.
    """

    offsets: NDArray[np.int32]
    flips: NDArray[np.int32]
    noise: NDArray[np.float32]
    scale: float


def _repeat(values: NDArray[np.integer], images_per_draw: int, num_images: int) -> NDArray[np.int32]:
    """One value for each image, from one for each group of consecutive images."""
    return np.repeat(values, images_per_draw, axis=0)[:num_images].astype(np.int32)


def draw_changes(
    config: InputConfig,
    eigenvalues: NDArray[np.float64],
    eigenvectors: NDArray[np.float64],
    *,
    seed: int,
    epoch: int,
    step: int,
    batch_size: int,
    replica: int = 0,
    num_replicas: int = 1,
    span: int = SPAN,
    epochs_done: float | None = None,
) -> Changes:
    """Draws the changes to one replica's images from the stream of seed, epoch and step in the epoch.

    Args:
        span: the largest offset of a crop, in pixels.
        epochs_done: number of epochs up to this step, which decides whether there is colour noise; None: `epoch`.
    """
    num_images = batch_size * num_replicas
    stream = numpy_stream("draws", seed, epoch, step)
    groups = -(-num_images // config.images_per_draw)
    # Every number is drawn, used or not, so that switching one change off leaves the others as they are.
    offsets = _repeat(stream.integers(0, config.offsets or span + 1, (groups, 2)), config.images_per_draw, num_images)
    flips = _repeat(stream.integers(0, 2, groups), config.images_per_draw, num_images)
    alphas = stream.standard_normal((num_images, 3)) * config.colour_noise_std
    if not config.random_crop:
        offsets = np.full_like(offsets, span // 2)
    if not config.flip:
        flips = np.zeros_like(flips)
    rows = replica_rows(batch_size, replica)
    form = noise_form(config, epoch if epochs_done is None else epochs_done)
    noise = colour_shifts(form, alphas[rows], eigenvalues, eigenvectors)
    return Changes(offsets[rows], flips[rows], noise, noise_scale(form, config.colour_noise_std))
