"""Decoders for test_examine.py: the first word of a file decides the fate of the process that decodes it."""

import os
import signal
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class Fake:
    """`pixel N` is an image of that value. Every other word does harm of its own kind."""

    def __init__(self, num_threads: int, size: int) -> None:
        assert num_threads == 1
        self.size = size
        self.needs_resize = False
        self._poisoned = False

    def decode(self, paths: list[Path]) -> tuple[NDArray[np.uint8], dict[Path, str]]:
        images, rejects = [np.empty((0, self.size, self.size, 3), np.uint8)], {}
        for path in paths:
            if self._poisoned:
                os.kill(os.getpid(), signal.SIGSEGV)
            deed, _, value = path.read_text().partition(" ")
            print("what a library prints must not be taken for an answer", flush=True)
            os.write(1, b"{}\n")
            if deed == "pixel":
                images.append(np.full((1, self.size, self.size, 3), int(value), np.uint8))
            elif deed == "reject":
                rejects[path] = value
            elif deed == "resize":
                self.needs_resize = True
                images.append(np.zeros((1, self.size, self.size, 3), np.uint8))
            elif deed == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            elif deed == "exit":
                os._exit(3)
            elif deed == "raise":
                raise KeyError("no such tile")
            elif deed == "hang":
                time.sleep(10_000)
            elif deed == "poison":  # survives; the next file kills the process
                self._poisoned = True
                images.append(np.zeros((1, self.size, self.size, 3), np.uint8))
        return np.concatenate(images), rejects


class Unusable:
    """A decoder whose construction fails."""

    def __init__(self, num_threads: int, size: int) -> None:
        raise ImportError("libcodec.so is missing")


class StillBorn:
    """A decoder whose construction kills the process."""

    def __init__(self, num_threads: int, size: int) -> None:
        os.kill(os.getpid(), signal.SIGILL)
