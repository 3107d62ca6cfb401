"""Kernels of the first layer: their picture, and how much colour they see."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

PER_ROW = 16  # kernels, as in shownet.py
RANDOM = 2 / 3  # selectivity of kernels that are drawn at random


def mosaic(kernels: Tensor, low: float, high: float) -> NDArray[np.float32]:
    """An RGB picture 0..1 of kernels [K, 3, S, S], `PER_ROW` in a row with a pixel between them, white around."""
    size, rows = kernels.shape[-1] + 1, -(-len(kernels) // PER_ROW)
    picture = np.ones((rows * size + 1, min(PER_ROW, len(kernels)) * size + 1, 3), np.float32)
    for number, kernel in enumerate(kernels):
        y, x = number // PER_ROW * size + 1, number % PER_ROW * size + 1
        picture[y : y + size - 1, x : x + size - 1] = ((kernel - low) / (high - low)).permute(1, 2, 0).numpy()
    return picture


def colour_selectivity(kernels: Tensor) -> Tensor:
    """For each of K kernels [3, S, S] of R, G and B, the part of its energy that is not grey, 0..1: float64 [K].

    Each pixel's three weights are cut into their mean (what answers to brightness) and the rest (what answers to
    differences of colour); the number is the squared length of the rest over that of all, summed over the kernel. A
    grey kernel has 0, one that sees colour alone has 1, one drawn at random has 2/3 on average. The definition is
    ours: section 6.1 of the paper calls the kernels of one tower colour-agnostic and of the other colour-specific, by
    eye.
    """
    wide = kernels.double()
    without_grey = wide - wide.mean(dim=1, keepdim=True)
    return without_grey.square().sum((1, 2, 3)) / wide.square().sum((1, 2, 3)).clamp(min=1e-300)
