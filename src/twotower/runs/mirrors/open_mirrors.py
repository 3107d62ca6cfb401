"""Where a run can be watched: its numbers and pictures, mirrored to W&B, to TensorBoard, or to both.

metrics.jsonl stays the source of truth, and no training depends on a mirror: one that is lost is told of once, and
the run goes on without. What is shown, and under which keys, is in `keys`. Nothing of W&B or TensorBoard
is imported before one of them is asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.config import Config, LoggingConfig
from twotower.runs.mirrors import tensorboard_mirror, wandb_runs
from twotower.runs.mirrors.keys import MIRRORED, Mirror, values_of_evaluation
from twotower.runs.mirrors.training_pictures import Prediction
from twotower.runs.mirrors.wandb_settings import check_key


class Mirrors(Mirror):
    """All mirrors of a run as one. Whichever of them fails is left out from then on, which is told once.

    Args:
        mirrors: opened.
        tell: shows a person a line.
    """

    title, failures = "mirrors", ()

    def __init__(self, mirrors: Sequence[Mirror], tell: Callable[[str], None]) -> None:
        self.open, self._tell = list(mirrors), tell

    def _each(self, call: Callable[[Mirror], None]) -> None:
        """Pictures are files as soon as they are made, so making them may fail as well as sending them."""
        for mirror in tuple(self.open):
            try:
                call(mirror)
            except mirror.failures as error:
                self.open.remove(mirror)
                self._tell(
                    f"{mirror.title} was lost ({error}); the run goes on without, and metrics.jsonl has everything."
                )

    def event(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """Also of an event that is not mirrored, which changes nothing."""
        if event in MIRRORED:
            self._each(lambda mirror: mirror.event(event, step, values))

    def picture(self, path: Path) -> None:
        self._each(lambda mirror: mirror.picture(path))

    def kernels(self, step: int, picture: NDArray[np.uint8]) -> None:
        self._each(lambda mirror: mirror.kernels(step, picture))

    def predictions(self, step: int, predictions: Sequence["Prediction"]) -> None:
        if predictions:
            self._each(lambda mirror: mirror.predictions(step, predictions))

    def checkpoint(self, path: Path, step: int, is_last: bool) -> None:
        self._each(lambda mirror: mirror.checkpoint(path, step, is_last))

    def summary(self, step: int, values: Mapping[str, float]) -> None:
        self._each(lambda mirror: mirror.summary(step, values))

    def figures(self, figures: Mapping[str, Path]) -> None:
        self._each(lambda mirror: mirror.figures(figures))

    def close(self, exit_code: int) -> None:
        self._each(lambda mirror: mirror.close(exit_code))


def check_mirrors(logging: LoggingConfig) -> None:
    """Refuses, without any network, what could not be mirrored.

    Args:
        logging: settled, that is, after `wandb_settings.settle`.

    Raises: ValueError if W&B is to be online and there is no key, or TensorBoard is asked for and not installed.
    """
    if logging.wandb == "online":
        check_key()
    if logging.tensorboard:
        tensorboard_mirror.check_package()


def open_mirror(
    config: Config,
    run_dir: Path,
    versions: Mapping[str, str],
    first_step: int,
    tell: Callable[[str], None] = print,
) -> Mirrors | None:
    """The mirrors of a training, None if it has none.

    Args:
        versions: what versions.json holds.
        first_step: the step that a resumed run goes on from, else 0.

    Raises: ValueError if W&B is to be online and cannot be reached, or TensorBoard is not installed.
    """
    found: list[Mirror] = []
    if config.logging.wandb != "disabled":
        found.append(wandb_runs.open_training(config, run_dir, versions, first_step))
    if config.logging.tensorboard:
        found.append(tensorboard_mirror.open_training(config, run_dir, first_step))
    return Mirrors(found, tell) if found else None


def _send(
    opened: Sequence[Callable[[], Mirror | None]], send: Callable[[Mirrors], None], tell: Callable[[str], None]
) -> None:
    """Opens mirrors after the training, sends something and closes them; what cannot be sent is told of."""
    found = []
    for one in opened:
        try:
            found.append(one())
        except ValueError as error:
            tell(f"not mirrored: {error}")
    mirrors = Mirrors([mirror for mirror in found if mirror is not None], tell)
    try:
        send(mirrors)
    finally:
        mirrors.close(0)


def log_evaluation(
    run_dir: Path,
    config: Config,
    versions: Mapping[str, str],
    result: Mapping[str, Any],
    tell: Callable[[str], None] = print,
) -> None:
    """Adds an evaluation's errors to the mirrors of its run: `centre/top1_error`, `ten/top1_error` ...

    Args:
        config: the run's own, which says what mirrors it has.
        versions: of what evaluates.
        result: what evaluation.json holds.
    """
    values = values_of_evaluation(result)
    about = {"checkpoint": result["checkpoint"], "split": result["split"], "versions": dict(versions)}
    step = int(str(result["checkpoint"]).removeprefix("step-"))
    _send(
        [
            lambda: wandb_runs.open_afterwards(config, run_dir, "evaluation", {"evaluation": about}, tell),
            lambda: tensorboard_mirror.open_afterwards(config, run_dir),
        ],
        lambda mirrors: mirrors.summary(step, values),
        tell,
    )


def _pngs(figures: Mapping[str, Path]) -> dict[str, Path]:
    """Dashboards show PNGs; other files are left out."""
    return {name: path for name, path in figures.items() if path.suffix == ".png"}


def log_figures(
    run_dir: Path, config: Config, figures: Mapping[str, Path], tell: Callable[[str], None] = print
) -> None:
    """Adds drawings of one run to its mirrors: {"figure3": path} becomes the picture `figures/figure3`.

    Args:
        config: of the run that is drawn, which says what mirrors it has.
        figures: name -> file.
    """
    pictures = _pngs(figures)
    if pictures:
        name = "-".join(pictures)
        _send(
            [
                lambda: wandb_runs.open_afterwards(config, run_dir, name, {}, tell),
                lambda: tensorboard_mirror.open_afterwards(config, run_dir),
            ],
            lambda mirrors: mirrors.figures(pictures),
            tell,
        )


def log_figures_of_several(
    run_dir: Path,
    config: Config,
    folder: Path,
    figures: Mapping[str, Path],
    tell: Callable[[str], None] = print,
    name: str | None = None,
) -> None:
    """Sends drawings of several runs to W&B, as a W&B run of its own in the group of the runs.

    Args:
        run_dir: the run that stands for the others, and has `config`: W&B's mode, project, group.
        folder: where W&B's files go.
        figures: name -> file.
        name: of the W&B run; None: that of the figures.
    """
    pictures = _pngs(figures)
    if pictures:
        title = name or "-".join(pictures)
        opened = [lambda: wandb_runs.open_drawing(config, run_dir, folder, title, tell)]
        _send(opened, lambda mirrors: mirrors.figures(pictures), tell)
