"""The mirror in TensorBoard: event files in RUN/tensorboard, which `tensorboard --logdir runs` shows.

The module `keys` lists their keys. A training's final values are `summary/...`, those of an evaluation `centre/...`
and `ten/...` at the step of its checkpoint. The whole configuration is a text, and the settings that sweeps vary are
in the tab HParams. A resumed training makes TensorBoard drop the steps that it will write again.

It needs the package tensorboard (`pip install -e '.[tensorboard]'`), and nothing else imports it.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image

from twotower.config import Config
from twotower.runs.mirrors.metric_names import IMAGES, PICTURE, PREDICTIONS, kernels_key
from twotower.runs.mirrors.mirror import Mirror
from twotower.runs.mirrors.training_pictures import Prediction

FOLDER = "tensorboard"  # in a run's folder
FLUSH_SECONDS = 1  # time between writes; a killed run loses the values after the last one
# Settings by which the tab HParams compares runs; all others are in the text `config`.
HPARAMS = ("seed", "ablation")
HPARAMS_OF = {
    "network": ("name", "width", "activation", "dropout_keep"),
    "optim": ("rule", "batch_size", "learning_rate", "momentum", "weight_decay"),
    "schedule": ("rule", "epochs"),
    "machine": ("replicas",),
}
COMPARED = ("summary/best_top1_error", "summary/best_top5_error", "centre/top1_error", "ten/top1_error")


def check_package() -> None:
    """Raises: ValueError if tensorboard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError(
            "logging.tensorboard=true needs the tensorboard package; install it by pip install -e '.[tensorboard]'."
        )


def read_hparams(config: Config) -> dict[str, Any]:
    """The settings for the tab HParams, by their keys on the command line."""
    settings = asdict(config)
    top_level = {key: settings[key] for key in HPARAMS}
    return top_level | {f"{part}.{key}": settings[part][key] for part, keys in HPARAMS_OF.items() for key in keys}


class TensorBoardMirror(Mirror):
    """An open event file.

    Args:
        purge_from: step from which on TensorBoard drops the values of earlier files; None: it drops none.
    """

    title = "TensorBoard"
    failures = (OSError, RuntimeError)

    def __init__(self, config: Config, run_dir: Path, purge_from: int | None = None) -> None:
        check_package()
        from torch.utils.tensorboard import SummaryWriter

        self.config, self._has_session = config, False
        self._writer: Any = SummaryWriter(str(run_dir / FOLDER), purge_step=purge_from, flush_secs=FLUSH_SECONDS)

    def begin(self) -> None:
        """Writes the settings: the text `config`, and the tab HParams."""
        text = OmegaConf.to_yaml(OmegaConf.structured(self.config))
        self._writer.add_text("config", f"```yaml\n{text}```", 0)
        experiment, start, _ = self._session()
        self._writer.file_writer.add_summary(experiment)
        self._writer.file_writer.add_summary(start)
        self._has_session = True

    def _session(self) -> tuple[Any, Any, Any]:
        """Records for the tab HParams: the values to compare, a beginning, and a successful end at this moment."""
        from torch.utils.tensorboard.summary import hparams

        # `add_hparams` would write another run into another folder.
        return tuple(hparams(read_hparams(self.config), dict.fromkeys(COMPARED, 0.0)))

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def event(self, event: str, step: int, values: Mapping[str, float]) -> None:
        self._scalars(step, {f"{event}/{key}": value for key, value in values.items()})

    def picture(self, path: Path) -> None:
        self._image(PICTURE, path, 0)

    def _image(self, key: str, path: Path, step: int) -> None:
        with Image.open(path) as image:
            self._writer.add_image(key, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def kernels(self, step: int, picture: NDArray[np.uint8]) -> None:
        self._writer.add_image(kernels_key(self.config.network), picture, step, dataformats="HWC")

    def predictions(self, step: int, predictions: Sequence[Prediction]) -> None:
        """Logs all images side by side, and a text with a row for each."""
        self._writer.add_images(
            IMAGES, np.stack([prediction.pixels for prediction in predictions]), step, dataformats="NHWC"
        )
        rows = ["| image | label | likeliest |", "|---|---|---|"]
        for number, prediction in enumerate(predictions, 1):
            label, _, likeliest = prediction.caption().partition(": ")
            rows.append(f"| {number} | {label} | {likeliest} |")
        self._writer.add_text(PREDICTIONS, "\n".join(rows), step)

    def checkpoint(self, path: Path, step: int, is_last: bool) -> None:
        """Sends nothing, because TensorBoard keeps no checkpoints."""

    def summary(self, step: int, values: Mapping[str, float]) -> None:
        prefix = "summary/" if self._has_session else ""  # an evaluation's keys begin with its view
        self._scalars(step, {f"{prefix}{key}": value for key, value in values.items()})

    def figures(self, figures: Mapping[str, Path]) -> None:
        for name, path in figures.items():
            self._image(f"figures/{name}", path, 0)

    def close(self, exit_code: int) -> None:
        if self._has_session and exit_code == 0:  # without this record, the tab shows an unknown end
            self._writer.file_writer.add_summary(self._session()[2])
        self._writer.close()


def open_training(config: Config, run_dir: Path, first_step: int) -> TensorBoardMirror:
    """Opens the event file of a training. Events up to the last checkpoint stay, later ones are dropped.

    Raises: ValueError if tensorboard is not installed.
    """
    mirror = TensorBoardMirror(config, run_dir, purge_from=first_step + 1 if first_step else 0)
    mirror.begin()
    return mirror


def open_afterwards(config: Config, run_dir: Path) -> TensorBoardMirror | None:
    """Opens an event file beside that of a training; None if the training has none.

    Raises: ValueError if tensorboard is not installed.
    """
    return TensorBoardMirror(config, run_dir) if config.logging.tensorboard else None
