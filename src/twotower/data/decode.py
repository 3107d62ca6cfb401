"""Decodes files one batch at a time on the CPU, and finds out which of them cannot be decoded."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.data.dataset import PREPARED_SIZE

BATCH = 32  # files that are decoded together


class Decoder:
    """Decodes files to uint8 [N, size, size, 3] with DALI on the CPU, and names those that cannot be decoded."""

    def __init__(self, num_threads: int, size: int = PREPARED_SIZE) -> None:
        self.num_threads, self.size = num_threads, size
        self.needs_resize = False  # whether any image so far is not a square of `size` pixels
        self._pipeline: Any = None

    def _run(self, encoded: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        from twotower.data.pipeline import prepared_images

        if self._pipeline is None:
            self._pipeline = prepared_images(
                self.size,
                "cpu",
                batch_size=BATCH,
                num_threads=self.num_threads,
                device_id=None,
                prefetch_queue_depth=1,
            )
            self._pipeline.build()
        self._pipeline.feed_input("encoded", encoded)
        images, sizes = self._pipeline.run()
        self.needs_resize |= bool((np.array(sizes.as_array())[:, :2] != self.size).any())
        array: NDArray[np.uint8] = np.array(images.as_array())
        return array

    def decode(self, paths: list[Path]) -> tuple[NDArray[np.uint8], dict[Path, str]]:
        """The images that could be decoded, in order, and the reason for each that could not."""
        rejects: dict[Path, str] = {}
        encoded = {}
        for path in paths:
            try:
                content = np.fromfile(path, np.uint8)
            except OSError as error:
                rejects[path] = error.strerror or "cannot be read"
                continue
            if len(content) == 0:
                rejects[path] = "the file is empty"
            else:
                encoded[path] = content
        if not encoded:
            return np.empty((0, self.size, self.size, 3), np.uint8), rejects
        try:
            return self._run(list(encoded.values())), rejects
        except RuntimeError:
            # One bad sample costs DALI the whole batch and the pipeline; find it by decoding one at a time.
            images = []
            for path, content in encoded.items():
                self._pipeline = None
                try:
                    images.append(self._run([content]))
                except RuntimeError as error:
                    rejects[path] = _reason(str(error))
            self._pipeline = None
            empty = np.empty((0, self.size, self.size, 3), np.uint8)
            return np.concatenate([empty, *images]), rejects


def _reason(text: str) -> str:
    """DALI's own words for it, without the operator's name and the traceback around them."""
    lines = [line.strip() for line in text.partition("encountered:")[2].splitlines()]
    telling = [
        line for line in lines if line and not line.startswith(("C++ context", "Failed to decode sample", "["))
    ]
    words = telling[0] if telling else ""
    usable = words and "pipeline" not in words.lower()
    return words[:200] if usable else "no complete JPEG or PNG that DALI can decode"
