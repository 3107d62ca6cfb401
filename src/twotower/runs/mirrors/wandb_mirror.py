"""The mirror in W&B: an open W&B run, sent or kept offline. `wandb_runs` chooses and opens it.

The module `keys` lists its keys, logged over `train/step`. W&B numbers its own steps, because it would drop values
with a lower step than before, such as those that a resumed training repeats.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.config import Config
from twotower.runs.mirrors.metric_names import IMAGES, MIRRORED, PICTURE, PREDICTIONS, kernels_key
from twotower.runs.mirrors.mirror import Mirror
from twotower.runs.mirrors.training_pictures import Prediction

STAGED = Path("wandb", "staged")  # folder in a run's folder, of tables and checkpoints until they are sent


@contextmanager
def _staged_in(run_dir: Path) -> Iterator[None]:
    """Makes W&B copy tables and artifacts into the folder of its other files, unless WANDB_DATA_DIR names one."""
    given, folder = os.environ.get("WANDB_DATA_DIR"), Path(os.environ.get("WANDB_DIR") or run_dir)
    os.environ.setdefault("WANDB_DATA_DIR", str((folder / STAGED).absolute()))
    try:
        yield
    finally:
        if given is None:
            del os.environ["WANDB_DATA_DIR"]


def name_group(config: Config, run_dir: Path) -> str:
    """The W&B group of a run: the given one, or else the name of its folder."""
    return config.logging.group or run_dir.name


class WandbMirror(Mirror):
    """An open W&B run.

    Args:
        run: result of wandb.init.
        exit_code: exit code of the training that has ended, whose W&B run this continues; None: `close` gives it.
    """

    title = "W&B"

    def __init__(self, run: Any, config: Config, run_dir: Path, exit_code: int | None = None) -> None:
        from wandb.errors import Error

        self._run, self.config, self.run_dir, self._exit_code = run, config, run_dir, exit_code
        self.failures = (OSError, RuntimeError, Error)
        self._run.define_metric("train/step")
        for prefix in (*MIRRORED, "kernels", "input"):
            self._run.define_metric(f"{prefix}/*", step_metric="train/step")

    def _log(self, step: int, values: dict[str, Any]) -> None:
        with _staged_in(self.run_dir):
            self._run.log({"train/step": step} | values)

    def event(self, event: str, step: int, values: Mapping[str, float]) -> None:
        self._log(step, {f"{event}/{key}": value for key, value in values.items()})

    def picture(self, path: Path) -> None:
        from wandb import Image

        self._log(0, {PICTURE: Image(str(path))})

    def kernels(self, step: int, picture: NDArray[np.uint8]) -> None:
        from wandb import Image

        self._log(step, {kernels_key(self.config.network): Image(picture)})

    def predictions(self, step: int, predictions: Sequence[Prediction]) -> None:
        """Logs pictures with captions, and a table with a row for each image."""
        from wandb import Image, Table

        num_classes = min(len(prediction.likeliest) for prediction in predictions)
        columns = ["image", "label"]
        columns += [f"{name} {rank + 1}" for rank in range(num_classes) for name in ("class", "probability")]

        def picture(prediction: Prediction, **about: Any) -> Any:
            return Image(prediction.pixels, file_type="jpg", **about)  # a tenth of the bytes of a PNG

        table = Table(columns=columns)
        for prediction in predictions:
            values = (value for pair in prediction.likeliest for value in pair)
            table.add_data(picture(prediction), prediction.label, *values)
        images = [picture(prediction, caption=prediction.caption()) for prediction in predictions]
        self._log(step, {IMAGES: images, PREDICTIONS: table})

    def checkpoint(self, path: Path, step: int, is_last: bool) -> None:
        """Sends an artifact of type `model`, where logging.wandb_checkpoints asks for it.

        W&B copies the files, and sends them when the run is sent.
        """
        wanted = self.config.logging.wandb_checkpoints
        if wanted == "none" or (wanted == "last" and not is_last):
            return
        from wandb import Artifact

        group = name_group(self.config, self.run_dir)
        names = [self.run_dir.name] if group == self.run_dir.name else [group, self.run_dir.name]
        # W&B allows 128 characters: letters, digits, dots, hyphens and underscores.
        name = re.sub(r"[^A-Za-z0-9._-]", "-", "-".join(names))[-128:]
        about = {"step": step, "network": self.config.network.name, "ablation": self.config.ablation}
        with _staged_in(self.run_dir):
            artifact = Artifact(name, type="model", metadata=about | {"seed": self.config.seed})
            for file in sorted(path.iterdir()):
                artifact.add_file(str(file), name=file.name)
            self._run.log_artifact(artifact, aliases=[path.name, "latest"])

    def summary(self, step: int, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def figures(self, figures: Mapping[str, Path]) -> None:
        from wandb import Image

        self._run.log({f"figures/{name}": Image(str(path)) for name, path in figures.items()})

    def close(self, exit_code: int) -> None:
        with _staged_in(self.run_dir):
            self._run.finish(exit_code=exit_code if self._exit_code is None else self._exit_code)
