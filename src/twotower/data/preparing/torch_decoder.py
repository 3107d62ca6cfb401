"""Decodes unknown files without DALI, as `torch_loader` does, and finds those that cannot be decoded."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twotower.data.dataset import PREPARED_SIZE
from twotower.data.decode import UnusableError, cut_square, decode_image

Picture = NDArray[np.uint8]


class TorchDecoder:
    """Decodes files to uint8 [N, size, size, 3], as `dali_decoder.Decoder` does, and names the undecodable ones."""

    def __init__(self, num_threads: int, size: int = PREPARED_SIZE) -> None:
        self.num_threads, self.size = num_threads, size
        self.needs_resize = False  # whether any image so far is not a square of `size` pixels

    def decode(self, paths: list[Path]) -> tuple[Picture, dict[Path, str]]:
        """The images that could be decoded, in order, and the reason for each that could not."""
        images, rejects = [np.empty((0, self.size, self.size, 3), np.uint8)], {}
        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="decode") as threads:
            for path, result in zip(paths, threads.map(self._decode, paths), strict=True):
                if isinstance(result, str):
                    rejects[path] = result
                else:
                    images.append(result[None])
        return np.concatenate(images), rejects

    def _decode(self, path: Path) -> Picture | str:
        """The square, or the reason why there is none."""
        try:
            image = decode_image(path.read_bytes())
        except OSError as error:
            return error.strerror or "it cannot be read"
        except MemoryError:
            return "it is too large for the memory of this machine"
        except UnusableError as error:
            return str(error)
        self.needs_resize |= image.shape[:2] != (self.size, self.size)
        return cut_square(image, self.size)
