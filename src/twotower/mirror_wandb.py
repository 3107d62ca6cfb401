"""The mirror in W&B: one W&B run for each training, with its evaluation and its figures. See `wandb_settings`.

Its group is the sweep's name or else the run's. All of it is offline and needs no key, unless logging.wandb=online or
W&B's own variables say so. Everything lies in RUN/wandb, also what W&B would stage in the home folder. The keys are
those of `mirror_interface`, over `train/step`: W&B's own steps are numbered by W&B alone, as it drops what comes with
a lower one than before, such as the steps that a resumed training repeats.

A run that is killed loses the last second at most: W&B's own interval of 15 s is shortened to half a second.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from twotower.config import Config
from twotower.mirror_interface import IMAGES, MIRRORED, PICTURE, PREDICTIONS, Mirror, kernels_of
from twotower.wandb_settings import DEFAULT_MODE, mode_in, run_id_of, unreachable, was_trained_here

if TYPE_CHECKING:  # `pictures` reads journals, and a journal has mirrors
    from twotower.pictures import Prediction

FLUSH_SECONDS = 0.5  # between writes to the offline file; a killed run loses what came after the last one
STAGED = Path("wandb", "staged")  # in a run's folder: tables and checkpoints until they are sent
TRAINING, DRAWING = "training", "figures"  # job types


@contextmanager
def _staged_in(run_dir: Path) -> Iterator[None]:
    """Has W&B copy tables and artifacts into the run's folder, unless WANDB_DATA_DIR says where."""
    given = os.environ.get("WANDB_DATA_DIR")
    os.environ.setdefault("WANDB_DATA_DIR", str((run_dir / STAGED).absolute()))
    try:
        yield
    finally:
        if given is None:
            del os.environ["WANDB_DATA_DIR"]


def variant_of(config: Config) -> str:
    """What runs are grouped by on the dashboard: "alexnet_2012", "alexnet_2012, no_lrn", "no_exchange"."""
    return config.network.name if config.ablation == "none" else f"{config.network.name}, {config.ablation}"


def _group(config: Config, run_dir: Path) -> str:
    return config.logging.group or run_dir.name


def _has_system_statistics(config: Config) -> bool:
    """Whether W&B watches the machine while it trains: `auto` where a GPU does the work."""
    on_gpu = config.machine.device != "cpu" and torch.cuda.is_available()
    return on_gpu if config.logging.system == "auto" else config.logging.system == "yes"


def _open(config: Config, folder: Path, run_id: str, name: str, about: Mapping[str, Any], **options: Any) -> Any:
    """A W&B run with its files in WANDB_DIR or else in `folder`, new or going on with what has the same id.

    Args:
        options: mode, job_type, and whether to take system statistics (`system`).

    Raises: ValueError if W&B is to be online and cannot be reached.
    """
    import wandb  # here, as it takes a second that runs without it need not spend

    logging = config.logging
    try:
        return wandb.init(
            project=logging.project,
            entity=logging.entity,
            dir=None if os.environ.get("WANDB_DIR") else folder,
            id=run_id,
            resume="allow",
            name=name,
            group=_group(config, folder),
            job_type=options["job_type"],
            tags=[*(logging.tags or []), config.network.name, f"ablation:{config.ablation}"],
            notes=logging.notes,
            mode=options["mode"],
            config=asdict(config) | {"variant": variant_of(config), **about},
            settings=wandb.Settings(
                console="off",
                silent=True,
                x_disable_stats=not options["system"],
                x_transaction_log_flush_interval=FLUSH_SECONDS,
            ),
        )
    except (wandb.errors.UsageError, wandb.errors.CommError) as error:
        raise unreachable(error) from error


def _code(versions: Mapping[str, str]) -> dict[str, Any]:
    return {"versions": dict(versions), "commit": versions.get("commit", "unknown")}


class WandbMirror(Mirror):
    """A W&B run that is open.

    Args:
        run: what wandb.init returned.
        exit_code: that of a training which has ended before, and whose W&B run this goes on with; None: `close` says.
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

        self._log(step, {kernels_of(self.config.network): Image(picture)})

    def predictions(self, step: int, predictions: Sequence["Prediction"]) -> None:
        """As pictures with captions, and as a table with a row for each image."""
        from wandb import Image, Table

        shown = min(len(one.likeliest) for one in predictions)
        columns = ["image", "label"]
        columns += [f"{what} {place + 1}" for place in range(shown) for what in ("class", "probability")]

        def picture(one: "Prediction", **about: Any) -> Any:
            return Image(one.pixels, file_type="jpg", **about)  # a tenth of the bytes of a PNG, each time

        table = Table(columns=columns)
        for one in predictions:
            table.add_data(picture(one), one.label, *(value for pair in one.likeliest for value in pair))
        images = [picture(one, caption=one.caption()) for one in predictions]
        self._log(step, {IMAGES: images, PREDICTIONS: table})

    def checkpoint(self, path: Path, step: int, is_last: bool) -> None:
        """An artifact of type `model`, where logging.wandb_checkpoints asks for it.

        W&B copies the files, and sends them when the run is sent.
        """
        wanted = self.config.logging.wandb_checkpoints
        if wanted == "none" or (wanted == "last" and not is_last):
            return
        from wandb import Artifact

        group = _group(self.config, self.run_dir)
        names = [self.run_dir.name] if group == self.run_dir.name else [group, self.run_dir.name]
        # W&B allows letters, digits, dots, hyphens and underscores, 128 of them.
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


def open_training(config: Config, run_dir: Path, versions: Mapping[str, str], first_step: int) -> WandbMirror:
    """The W&B run of a training, which goes on if the training does.

    Raises: ValueError if W&B is to be online and cannot be reached.
    """
    about = {**_code(versions), "run_dir": str(run_dir), "resumed_from_step": first_step}
    mode, system = config.logging.wandb or DEFAULT_MODE, _has_system_statistics(config)
    run_id, name = run_id_of(run_dir, is_new=first_step == 0), config.logging.name or run_dir.name
    run = _open(config, run_dir, run_id, name, about, mode=mode, job_type=TRAINING, system=system)
    return WandbMirror(run, config, run_dir)


def _mode_afterwards(config: Config, run_dir: Path, tell: Callable[[str], None]) -> str:
    """W&B's own variable, else what the run has; a run without W&B stays without.

    A run that was brought here from elsewhere, perhaps by somebody else, sends nothing by itself.

    Raises: ValueError for a WANDB_MODE that is not known.
    """
    stored = config.logging.wandb or DEFAULT_MODE
    if stored == "disabled":
        return stored
    given = mode_in(os.environ)
    if given is not None:
        return given
    if stored == "online" and not was_trained_here(run_dir):
        tell(f"{run_dir} was not trained in this folder, so W&B is offline; WANDB_MODE=online sends to W&B.")
        return "offline"
    return stored


def _training_of(run_dir: Path) -> dict[str, Any]:
    """What a training told of its code, and where it is now."""
    path = run_dir / "versions.json"
    return {**(_code(json.loads(path.read_text())) if path.exists() else {}), "run_dir": str(run_dir)}


def open_afterwards(
    config: Config, run_dir: Path, what: str, about: Mapping[str, Any], tell: Callable[[str], None]
) -> WandbMirror | None:
    """The W&B run of a training that has ended, to add to it; None if it has none.

    Online, two processes cannot write to one W&B run. So as long as a run has not finished, and may be training, what
    is added becomes a W&B run of its own in the same group, named after it: RUN-evaluation, RUN-figure3.

    Args:
        what: is added: "evaluation", or the name of a figure.
        about: more for its configuration.

    Raises: ValueError if W&B is to be online and cannot be reached.
    """
    mode = _mode_afterwards(config, run_dir, tell)
    if mode == "disabled":
        return None
    about = {**_training_of(run_dir), **about}
    run_id, name = run_id_of(run_dir), config.logging.name or run_dir.name
    is_finished = (run_dir / "summary.json").exists()
    if mode == "online" and not is_finished:
        job_type = what if what == "evaluation" else DRAWING
        run = _open(
            config, run_dir, f"{run_id}-{what}", f"{name}-{what}", about, mode=mode, job_type=job_type, system=False
        )
        return WandbMirror(run, config, run_dir)
    run = _open(config, run_dir, run_id, name, about, mode=mode, job_type=TRAINING, system=False)
    return WandbMirror(run, config, run_dir, exit_code=0 if is_finished else 1)


def open_drawing(
    config: Config, run_dir: Path, folder: Path, name: str, tell: Callable[[str], None]
) -> WandbMirror | None:
    """A W&B run for drawings of several runs, in their group; the same place and name go on in the same one.

    Args:
        run_dir: of the run that stands for the others, and has `config`.
        folder: where W&B's files go.

    Raises: ValueError if W&B is to be online and cannot be reached.
    """
    mode = _mode_afterwards(config, run_dir, tell)
    if mode == "disabled":
        return None
    run_id = hashlib.sha256(f"{folder.resolve()}/{name}".encode()).hexdigest()[:16]
    drawn = replace(config, logging=replace(config.logging, group=_group(config, run_dir)))
    about = {**_training_of(run_dir), "drawing": name}
    run = _open(drawn, folder, run_id, name, about, mode=mode, job_type=DRAWING, system=False)
    return WandbMirror(run, drawn, folder)
