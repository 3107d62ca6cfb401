"""The order in which training meets the images: a function of seed and epoch alone.

The order is made for the batches of all replicas, and each replica takes its rows. So both towers of a replica see
the same images, any step can be computed without the steps before it, and R replicas with batch B see exactly what
one replica with batch R * B sees.
"""

import numpy as np
from numpy.typing import NDArray

from twotower.ground.random_streams import numpy_stream
from twotower.ground.wording import counted


def steps_per_epoch(num_images: int, batch_size: int, num_replicas: int) -> int:
    """Whole batches in an epoch. The images left over are other ones in each epoch, and sit that epoch out.

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


def epoch_order(num_images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of 0..num_images-1, int64. (The 2012 code shuffled once and kept that order: data.py:76-83.)"""
    return numpy_stream("order", seed, epoch).permutation(num_images)


def replica_rows(batch_size: int, replica: int) -> slice:
    """The rows that belong to a replica, of the batch of all replicas."""
    return slice(replica * batch_size, (replica + 1) * batch_size)
