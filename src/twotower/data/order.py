"""Everything random about the input, as pure functions of seed, epoch and step.

Order and draws are made for the batch of all replicas, and each replica takes its rows. So both towers of a replica
see the same, any step can be computed without the steps before it, and R replicas with batch B see exactly what one
replica with batch R * B sees.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twotower.config import InputConfig
from twotower.ground.streams import numpy_stream
from twotower.ground.words import counted

SPAN = 32  # the largest offset of a 224 crop in a 256 square


def steps_per_epoch(num_images: int, batch_size: int, num_replicas: int) -> int:
    """Whole batches in an epoch. What is left over is left out, other images in each epoch.

    Raises: ValueError if there is not one whole batch.
    """
    steps = num_images // (batch_size * num_replicas)
    if steps == 0:
        raise ValueError(
            f"The training set has {counted(num_images, 'image')}, fewer than one step takes "
            f"(optim.batch_size={batch_size} x {counted(num_replicas, 'replica')}); choose a smaller "
            "optim.batch_size."
        )
    return steps


def crop_span(config: InputConfig, size: int) -> int:
    """The largest offset of a crop in a square of `size` pixels. Raises: ValueError if the crop is larger than it."""
    span = size - config.crop_size
    if span < 0:
        raise ValueError(
            f"network.image_size={config.crop_size} is more than the {size} pixels that the images of this data set "
            "have; choose a smaller one, or prepare the set with a larger size."
        )
    return span


def check_crops(config: InputConfig, size: int) -> None:
    """Raises: ValueError if the crops and their offsets do not fit into a square of `size` pixels."""
    span = crop_span(config, size)
    if config.random_crop and config.offsets is not None and config.offsets > span + 1:
        raise ValueError(
            f"input.offsets={config.offsets} is more than the {span + 1} positions of a crop of {config.crop_size} "
            f"pixels in a square of {size}; give at most {span + 1}."
        )


def epoch_order(num_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of 0..num_images-1. (The 2012 code shuffled once and kept that order: data.py:76-83.)"""
    return numpy_stream("order", seed, epoch).permutation(num_images)


def replica_rows(batch_size: int, replica: int) -> slice:
    """The rows of the whole batch that belong to a replica."""
    return slice(replica * batch_size, (replica + 1) * batch_size)


@dataclass(frozen=True)
class Draws:
    """What happens to each image of a batch of B.

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


def _per_group(values: NDArray[np.integer], images_per_draw: int, num_images: int) -> NDArray[np.int32]:
    return np.repeat(values, images_per_draw, axis=0)[:num_images].astype(np.int32)


def colour_shifts(
    form: str,
    alphas: NDArray[np.float64],
    eigenvalues: NDArray[np.float64],
    eigenvectors: NDArray[np.float64],
) -> NDArray[np.float32]:
    """What is added to R, G and B in 0..255 units, float32 [B, 3], for factors alpha [B, 3].

    `2012`: sum of p_i * alpha_i * s_i with the standard deviations s_i along the axes p_i, the roots of the
    eigenvalues (convdata_jpeg.py:65): 12.2 grey levels along the main axis of ILSVRC-2012.

    `paper`: sum of p_i * alpha_i * lambda_i as printed in section 4.1. An eigenvalue has the unit of a squared pixel
    value, so the formula depends on the unit: for pixels in 0..255 it would shift ILSVRC images by 1483 grey levels.
    It makes sense only for pixels in 0..1, and that is what is computed here, brought back to 0..255.
    """
    if form == "2012":
        lengths = np.sqrt(np.maximum(eigenvalues, 0))
    elif form == "paper":
        lengths = eigenvalues / 255**2 * 255
    else:
        lengths = np.zeros(3)
    shifts: NDArray[np.float32] = ((alphas * lengths) @ eigenvectors.T).astype(np.float32)
    return shifts


def noise_form(config: InputConfig, epochs_done: float) -> str:
    """`none`, `2012` or `paper`: in 2012 the noise was switched off for the last epochs."""
    last = config.colour_noise_epochs
    return config.colour_noise if last is None or epochs_done < last else "none"


def noise_scale(form: str, std: float) -> float:
    """The factor on image and noise: 1 / (1 + 0.1) in the 2012 form, in training only (convdata_jpeg.py:175-179).

    Without noise there is no division either, so the input grows by a tenth when the noise is switched off.
    """
    return 1 / (1 + std) if form == "2012" else 1.0


def draws(
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
) -> Draws:
    """The draws of stream (seed, epoch, step in epoch) for one replica's images.

    Args:
        span: size less crop size, in pixels.
        epochs_done: the step as a number of epochs, which decides about the colour noise; None: `epoch`.
    """
    whole = batch_size * num_replicas
    stream = numpy_stream("draws", seed, epoch, step)
    groups = -(-whole // config.images_per_draw)
    # All are drawn, whatever is used, so that switching one off leaves the others as they are.
    offsets = _per_group(stream.integers(0, config.offsets or span + 1, (groups, 2)), config.images_per_draw, whole)
    flips = _per_group(stream.integers(0, 2, groups), config.images_per_draw, whole)
    alphas = stream.standard_normal((whole, 3)) * config.colour_noise_std
    if not config.random_crop:
        offsets = np.full_like(offsets, span // 2)
    if not config.flip:
        flips = np.zeros_like(flips)
    rows = replica_rows(batch_size, replica)
    form = noise_form(config, epoch if epochs_done is None else epochs_done)
    noise = colour_shifts(form, alphas[rows], eigenvalues, eigenvectors)
    return Draws(offsets[rows], flips[rows], noise, noise_scale(form, config.colour_noise_std))
