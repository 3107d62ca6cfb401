"""The named random streams: each has an owner, and none depends on the numbers that another one has drawn.

| stream    | keyed by                   | the same in both towers? |
|-----------|----------------------------|--------------------------|
| weights   | seed, tower, layer         | no                       |
| dropout   | seed, tower, layer, step   | no                       |
| order     | seed, epoch                | yes                      |
| draws     | seed, epoch, step in epoch | yes                      |
| synthetic | seed, batch                | yes                      |
| figure4   | seed, name of the drawing  | (no towers run)          |

No stream has a state that outlives a step, so a run is resumed by naming the step. Streams that concern single images
are drawn for the batch of all replicas, and each replica takes its rows: R replicas with batch B see exactly the same
as one replica with batch R * B.
"""

import zlib

import numpy as np
import torch


def _sequence(name: str, keys: tuple[int | str, ...]) -> np.random.SeedSequence:
    words = [zlib.crc32(key.encode()) if isinstance(key, str) else key for key in (name, *keys)]
    return np.random.SeedSequence(words)


def numpy_stream(name: str, *keys: int | str) -> np.random.Generator:
    """The NumPy generator of stream `name` at `keys`, each a non-negative int or a string."""
    return np.random.Generator(np.random.PCG64(_sequence(name, keys)))


def torch_stream(name: str, *keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """The torch generator of stream `name` at `keys`.

    From the same seed a CPU, a GPU and a GPU of another model draw different numbers.
    """
    # torch takes 64 bits, but treats the highest one as a sign, so 63 are used.
    words = _sequence(name, keys).generate_state(2, np.uint32).astype(np.uint64)
    return torch.Generator(device).manual_seed(int(words[0] << np.uint64(31) ^ words[1]))
