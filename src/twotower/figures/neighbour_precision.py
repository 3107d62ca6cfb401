"""The precision of neighbours: the share of them that have the class of their query."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Precision:
    """Shares in percent of those that have the query's class.

    Attributes:
        at_1: share of the nearest neighbours.
        at_k: share of the `k` nearest neighbours.
        by_chance: share of all training images.
    """

    at_1: float
    at_k: float
    k: int
    by_chance: float
    num_queries: int


def count_precision(
    neighbours: NDArray[np.int64], labels: NDArray[np.int64], train_labels: NDArray[np.int64]
) -> Precision:
    """Counts the neighbours that have their query's class.

    Args:
        neighbours: indices in the training set, [Q, k].
        labels: labels of the queries, [Q].
    """
    same = train_labels[neighbours] == labels[:, None]
    shares = np.bincount(train_labels, minlength=int(max(labels.max(), train_labels.max())) + 1) / len(train_labels)
    return Precision(
        at_1=float(100 * same[:, 0].mean()),
        at_k=float(100 * same.mean()),
        k=neighbours.shape[1],
        by_chance=float(100 * shares[labels].mean()),
        num_queries=len(labels),
    )
