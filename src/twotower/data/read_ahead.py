"""Reads the bytes of images from the disk before they are needed."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from twotower.data.dataset import Split
from twotower.data.loader import Indices

READERS = 4  # threads that wait for the disk


class ReadAhead:
    """Reads, with each batch that is taken, the bytes of the next one.

    Args:
        rows: gives the indices of the images of batch 0, 1, ...; None after the last batch.
    """

    def __init__(self, split: Split, rows: Callable[[int], Indices | None]) -> None:
        self._split, self._rows = split, rows
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="read")
        self._coming: dict[int, list[Future[list[NDArray[np.uint8]]]]] = {}

    def _start(self, number: int) -> None:
        rows = self._rows(number)
        if rows is not None and number not in self._coming:
            parts = np.array_split(rows, min(READERS, len(rows)))
            self._coming[number] = [self._threads.submit(self._read, part) for part in parts]

    def _read(self, rows: Indices) -> list[NDArray[np.uint8]]:
        return [self._split.read(int(row)) for row in rows]

    def take(self, number: int) -> list[NDArray[np.uint8]]:
        """The encoded images of batch `number`. Raises: OSError naming the file that cannot be read any more."""
        self._start(number)
        self._start(number + 1)
        return [image for part in self._coming.pop(number) for image in part.result()]

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
