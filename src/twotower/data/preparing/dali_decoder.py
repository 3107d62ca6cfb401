"""Decodes unknown files one by one with DALI on the CPU, and finds those that cannot be decoded.

It runs in processes that may crash (examine_folder.py), because such files may hold anything.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.data.dataset import PREPARED_SIZE
from twotower.data.decode import UnusableError, check_pixels

OUT_OF_MEMORY = "it is too large for the memory of this machine"
JPEG = b"\xff\xd8\xff"  # how it begins


class Decoder:
    """Decodes files to uint8 [N, size, size, 3] with DALI on the CPU, and names those that cannot be decoded.

    Each file is a batch of its own. In a larger batch, a file whose header DALI cannot read sometimes crashes the
    process (nvimgcodec 0.9: in 2 of 6 folders with 3 web pages among 135 files).
    """

    def __init__(self, num_threads: int, size: int = PREPARED_SIZE) -> None:
        self.num_threads, self.size = num_threads, size
        self.needs_resize = False  # whether any image so far is not a square of `size` pixels
        self._open()
        # This memory is used again, because fresh pages would take as long as the decoding.
        self._images = np.empty((0, size, size, 3), np.uint8)

    def _open(self) -> None:
        from twotower.data.dali_pipeline import part_of_image, prepared_images

        alone = {
            "batch_size": 1,
            "num_threads": self.num_threads,
            "device_id": None,
            # DALI has nothing to work ahead on, and handing single images between threads takes a fifth of the time.
            "prefetch_queue_depth": 1,
            "exec_async": False,
            "exec_pipelined": False,
        }
        self._pipeline: Any = prepared_images(self.size, "cpu", **alone)
        self._part: Any = part_of_image("cpu", **alone)
        self._pipeline.build()
        self._part.build()

    def _run(self, content: NDArray[np.uint8], image: NDArray[np.uint8]) -> None:
        """Decodes into `image`, uint8 [size, size, 3]."""
        if content[: len(JPEG)].tobytes() != JPEG:
            # Crops are decoded as parts. Of a BMP that is cut short DALI refuses these, and yet decodes the whole.
            self._part.feed_input("encoded", [content])
            self._part.run()
        self._pipeline.feed_input("encoded", [content])
        images, sizes = self._pipeline.run()
        self.needs_resize |= bool((np.array(sizes.as_array())[:, :2] != self.size).any())
        image[:] = images.as_array()[0]

    def decode(self, paths: list[Path]) -> tuple[NDArray[np.uint8], dict[Path, str]]:
        """The images that could be decoded, in order, and the reason for each that could not.

        The images are overwritten by the next call.
        """
        if len(self._images) < len(paths):
            self._images = np.empty((len(paths), *self._images.shape[1:]), np.uint8)
        count, rejects = 0, {}
        for path in paths:
            try:
                content = np.fromfile(path, np.uint8)
                if len(content) == 0:
                    rejects[path] = "the file is empty"
                else:
                    check_pixels(content.tobytes())
                    self._run(content, self._images[count])
                    count += 1
            except UnusableError as error:
                rejects[path] = str(error)
            except OSError as error:
                rejects[path] = error.strerror or "it cannot be read"
            except MemoryError:
                rejects[path] = OUT_OF_MEMORY
            except RuntimeError as error:
                self._open()  # a pipeline is of no use after a failure
                rejects[path] = _reason(str(error), content.tobytes())
        return self._images[:count], rejects


def _reason(text: str, content: bytes) -> str:
    """DALI's reason without the operator's name and the traceback around it, or a guess where it gives none."""
    lines = [line.strip() for line in text.partition("encountered:")[2].splitlines()]
    silent = ("C++ context", "Failed to decode sample", "nvImageCodec failure", "[")
    words = next((line for line in lines if line and not line.startswith(silent)), "")
    if "bad_alloc" in text:
        return OUT_OF_MEMORY
    if words and "pipeline" not in words.lower():
        return words[:200]
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            form = image.format
    except Exception:  # any kind, because Pillow's plugins raise whatever hostile bytes make them raise
        return f"it is no image that DALI knows: it begins with {ascii(content[:16])[1:]}"
    return f"it is a {form} that DALI cannot decode: damaged, cut short, or of a kind that it does not know"
