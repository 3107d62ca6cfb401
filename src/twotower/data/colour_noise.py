"""The colour noise of training: how far the colours of an image are shifted, in 2012 and as the paper prints it."""

import numpy as np
from numpy.typing import NDArray

from twotower.config import InputConfig


def colour_shifts(
    form: str,
    alphas: NDArray[np.float64],
    eigenvalues: NDArray[np.float64],
    eigenvectors: NDArray[np.float64],
) -> NDArray[np.float32]:
    """The shifts of R, G and B in 0..255 units, float32 [B, 3].

    `2012`: sum of p_i * alpha_i * s_i with the standard deviations s_i along the axes p_i, the roots of the
    eigenvalues (convdata_jpeg.py:65): 12.2 grey levels along the main axis of ILSVRC-2012.

    `paper`: sum of p_i * alpha_i * lambda_i as printed in section 4.1. An eigenvalue has the unit of a squared pixel
    value, so the formula depends on the unit: for pixels in 0..255 it would shift ILSVRC images by 1483 grey levels.
    It makes sense only for pixels in 0..1, so it is computed there and brought back to 0..255.

    Args:
        form: `2012`, `paper`, or `none` for shifts of zero.
        alphas: normal random factors, float64 [B, 3], one row an image.
        eigenvalues: variances along the colour axes, float64 [3], in (0..255)^2.
        eigenvectors: the axes as columns, float64 [3, 3].
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
    """Which colour noise applies after `epochs_done` epochs: `none`, `2012` or `paper`.

    In 2012 the last epochs had no noise.
    """
    last = config.colour_noise_epochs
    return config.colour_noise if last is None or epochs_done < last else "none"


def noise_scale(form: str, std: float) -> float:
    """The factor by which image and noise are multiplied: 1 / (1 + 0.1) in the 2012 form (convdata_jpeg.py:175-179).

    It is for training only.

    Without noise there is no division either, so the input grows by a tenth when the noise is switched off.
    """
    return 1 / (1 + std) if form == "2012" else 1.0
