"""Fits the mean image and the principal colour axes of a training set, from sums that are exact in any order."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

BLOCK = 1024  # pixels; the sum of so many products of numbers up to 128 is at most 2^24, where float32 is exact


@dataclass
class Fit:
    """Running sums over images of `size` x `size` pixels.

    Attributes:
        image_sum: sum of the images, uint64 [size, size, 3].
        products: sum over all pixels of (channel - 128) * (channel - 128) for each pair of channels, float64 [3, 3];
            whole numbers.
    """

    size: int
    num_images: int = 0
    image_sum: NDArray[np.uint64] = field(init=False)
    products: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.image_sum = np.zeros((self.size, self.size, 3), np.uint64)
        self.products = np.zeros((3, 3))

    def add(self, image: NDArray[np.uint8]) -> None:
        """Adds an image, uint8 [size, size, 3]."""
        self.num_images += 1
        np.add(self.image_sum, image, out=self.image_sum)
        channels = np.ascontiguousarray(image.reshape(-1, 3).T).astype(np.float32)
        channels -= 128
        for a in range(3):
            for b in range(a, 3):
                in_blocks = channels.shape[1] // BLOCK * BLOCK
                first, second = (channels[c, :in_blocks].reshape(-1, BLOCK) for c in (a, b))
                product = float(np.einsum("ij,ij->i", first, second).sum(dtype=np.float64))
                product += float(channels[a, in_blocks:] @ channels[b, in_blocks:])
                self.products[a, b] += product
                if a != b:
                    self.products[b, a] += product

    def merge(self, num_images: int, image_sum: NDArray[np.integer], products: NDArray[np.float64]) -> None:
        """Adds the sums of other images."""
        self.num_images += num_images
        self.image_sum += image_sum.astype(np.uint64)
        self.products += products

    def mean_image(self) -> NDArray[np.float32]:
        """The mean of all images, float32 [size, size, 3], 0..255."""
        return (self.image_sum / self.num_images).astype(np.float32)

    def colour_pca(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Eigenvalues, ascending [3], and eigenvectors as columns [3, 3] of the covariance of all pixels, float64."""
        mean = (self.image_sum / self.num_images).mean(axis=(0, 1)) - 128
        num_pixels = self.num_images * self.size**2
        values, vectors = np.linalg.eigh(self.products / num_pixels - np.outer(mean, mean))
        # An eigenvector may have either sign; a fixed one makes the same images give the same noise.
        largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
        return values, vectors * np.where(largest < 0, -1, 1)
