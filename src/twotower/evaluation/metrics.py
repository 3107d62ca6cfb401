"""Exact counts of errors, as the 2012 code counts them (layer_kernels.cu:96-119)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Counts:
    """Sums over images, so that any split into batches and replicas gives the same rates.

    `sums` is float64 [4] on the CPU: images, negative log-likelihood, top-1 credits, top-5 credits.
    """

    sums: Tensor

    @staticmethod
    def zero() -> "Counts":
        return Counts(torch.zeros(4, dtype=torch.float64))

    @property
    def num_images(self) -> int:
        return int(self.sums[0])

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood in nats."""
        return float(self.sums[1] / self.sums[0])

    @property
    def top1_error(self) -> float:
        """In percent."""
        return float(100 * (1 - self.sums[2] / self.sums[0]))

    @property
    def top5_error(self) -> float:
        """In percent."""
        return float(100 * (1 - self.sums[3] / self.sums[0]))

    def add(self, other: "Counts") -> None:
        self.sums = self.sums + other.sums


def credits(scores: Tensor, labels: Tensor, k: int) -> Tensor:
    """Each image's credit in [0, 1] for having its label among the k highest scores: float64 [B].

    Of classes that tie for the last slots, each gets an equal part of what is left: min(1, slots left / number that
    tie). So a network that says the same of all classes has exactly the error of guessing.

    Args:
        scores: logits or probabilities [B, classes].
        labels: int64 [B].
    """
    of_label = scores.gather(1, labels[:, None])
    above = (scores > of_label).sum(1)
    tied = (scores == of_label).sum(1).clamp(min=1)  # NaN ties with nothing, not even itself
    credit = ((k - above).double() / tied).clamp(0, 1)
    return torch.where(torch.isnan(of_label[:, 0]), torch.zeros_like(credit), credit)


def count(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """The `Counts.sums` of one batch, still on its device, so that nothing has to wait for it.

    Args:
        log_probabilities: natural logarithms [B, classes].
        labels: int64 [B].
    """
    nll = -log_probabilities.gather(1, labels[:, None]).double().sum()
    images = torch.full_like(nll, len(labels))
    top1, top5 = credits(log_probabilities, labels, 1).sum(), credits(log_probabilities, labels, 5).sum()
    return torch.stack([images, nll, top1, top5])
