"""The face of a mirror, which shows a run while it trains, and all mirrors of a run as one.

metrics.jsonl stays the source of truth, and no training depends on a mirror: when one is lost, a line says so once,
and the run goes on without it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.runs.mirrors.metric_names import MIRRORED
from twotower.runs.mirrors.training_pictures import Prediction


class Mirror(ABC):
    """A place that shows a run, such as W&B. `open_mirrors` opens it; it is closed in every case.

    Attributes:
        title: its name for people.
        failures: the exceptions that mean the mirror is lost; any other is a mistake of this project.
    """

    title: str
    failures: tuple[type[Exception], ...]

    @abstractmethod
    def event(self, event: str, step: int, values: Mapping[str, float]) -> None:
        """Logs the numbers of an event of the journal, one of `MIRRORED`."""

    @abstractmethod
    def picture(self, path: Path) -> None:
        """Logs the PNG of the network's input, at step 0."""

    @abstractmethod
    def kernels(self, step: int, picture: NDArray[np.uint8]) -> None:
        """Logs a picture of the first layer's kernels, uint8 [H, W, 3]."""

    @abstractmethod
    def predictions(self, step: int, predictions: Sequence[Prediction]) -> None:
        """Logs a few images, at least one, with the network's predictions."""

    @abstractmethod
    def checkpoint(self, path: Path, step: int, is_last: bool) -> None:
        """Sends a checkpoint. Its folder is complete, and may be deleted afterwards."""

    @abstractmethod
    def summary(self, step: int, values: Mapping[str, float]) -> None:
        """Logs final and best values of a training, or the errors of an evaluation of the checkpoint of `step`."""

    @abstractmethod
    def figures(self, figures: Mapping[str, Path]) -> None:
        """Logs drawings that are PNGs: {"figure3": path} becomes `figures/figure3`."""

    @abstractmethod
    def close(self, exit_code: int) -> None:
        """Ends the mirror. An exit code of 0 is success."""


class Mirrors(Mirror):
    """All mirrors of a run as one. A mirror that fails is left out from then on, which is said once.

    Args:
        mirrors: open mirrors; none: everything that is logged goes nowhere.
        say: shows a person a line.
    """

    title, failures = "mirrors", ()

    def __init__(self, mirrors: Sequence[Mirror] = (), say: Callable[[str], None] = print) -> None:
        self.open, self._say = list(mirrors), say

    def _each(self, call: Callable[[Mirror], None]) -> None:
        """Calls each mirror. (Making a picture writes a file, so it may fail as sending it may.)"""
        for mirror in tuple(self.open):
            try:
                call(mirror)
            except mirror.failures as error:
                self.open.remove(mirror)
                self._say(
                    f"{mirror.title} was lost ({error}); the run goes on without, and metrics.jsonl has everything."
                )

    def event(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """Logs an event if it is one of those that are mirrored."""
        if event in MIRRORED:
            self._each(lambda mirror: mirror.event(event, step, values))

    def picture(self, path: Path) -> None:
        self._each(lambda mirror: mirror.picture(path))

    def kernels(self, step: int, picture: NDArray[np.uint8]) -> None:
        self._each(lambda mirror: mirror.kernels(step, picture))

    def predictions(self, step: int, predictions: Sequence[Prediction]) -> None:
        if predictions:
            self._each(lambda mirror: mirror.predictions(step, predictions))

    def checkpoint(self, path: Path, step: int, is_last: bool) -> None:
        self._each(lambda mirror: mirror.checkpoint(path, step, is_last))

    def summary(self, step: int, values: Mapping[str, float]) -> None:
        self._each(lambda mirror: mirror.summary(step, values))

    def figures(self, figures: Mapping[str, Path]) -> None:
        self._each(lambda mirror: mirror.figures(figures))

    def close(self, exit_code: int) -> None:
        """Ends all mirrors; what is logged later goes nowhere."""
        self._each(lambda mirror: mirror.close(exit_code))
        self.open.clear()
