"""The W&B side of a run. Only this module imports wandb; metrics.jsonl stays the source of truth.

Each start of a run's process is a W&B run of its own: job type `training`, group the sweep's name or else the run's.
An evaluation and figures follow as small runs of the same group, job types `evaluation` and `figures`. All of it is
offline and needs no key, unless logging.wandb=online. Everything lies in RUN/wandb, also what W&B would stage in the
home folder, and is over `train/step`: `metrics_of` lists it.

    train, validation, scales, memory   the numbers of the events of these names in metrics.jsonl
    kernels/conv1                       tower 0's kernels above tower 1's, at each validation
    validation/images                   the same few images each time, with the likeliest classes as captions
    validation/predictions              the same as a table: image, label, five classes, their probabilities
    input/picture                       what the network is fed, once

A run that is killed loses the last second at most: W&B's own interval of 15 s is shortened to half a second.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twotower.config import Config, NetworkConfig

if TYPE_CHECKING:  # `pictures` reads journals, and a journal has a mirror
    from twotower.pictures import Prediction

MIRRORED = ("train", "validation", "scales", "memory")  # events of the journal
FLUSH_SECONDS = 0.5  # between writes to the offline file; a killed run loses what came after the last one
STAGED = Path("wandb", "staged")  # in a run's folder: tables and checkpoints until they are sent

TRAIN = (
    "epoch",
    "loss",
    "top1_error",
    "top5_error",
    "images_per_second",
    "exchange_wait_ms",
    "input_wait_ms",
    "exchange_bytes",
    "learning_rate",
)
VALIDATION = ("epoch", "loss", "top1_error", "top5_error", "images_per_second")
IMAGES, PREDICTIONS, PICTURE = "validation/images", "validation/predictions", "input/picture"
SUMMARY = ("loss", "top1_error", "top5_error", "best_top1_error", "best_top5_error", "images_per_second", "seconds")
FIGURES = ("figure3", "figure4", "activations", "confusion")  # of one run, by launch/figure.py
DIFFERENCES = ("differences-centre", "differences-ten")  # of a report: ablations with the lines of 2012
EVALUATION = ("top1_error", "top5_error", "loss", "num_images", "images_per_second")
SIZES = ("weight", "update", "output")  # of each layer, in `scales`


def kernels_of(network: NetworkConfig) -> str:
    """The key of the picture of the first layer's kernels."""
    return f"kernels/{next(iter(network.layers))}"


def metrics_of(network: NetworkConfig) -> list[str]:
    """Every key that a finished training of a network logs over `train/step`, pictures and tables included.

    (Without images there are fewer: data=synthetic has none to show, and no picture of its input.)
    """
    first, towers = next(iter(network.layers)), [f"tower{tower}" for tower in range(network.towers)]
    scales = [f"{tower}/{layer}/{size}" for tower in towers for layer in network.layers for size in SIZES]
    return [
        *(f"train/{key}" for key in TRAIN),
        *(f"validation/{key}" for key in VALIDATION),
        *(f"scales/{key}" for key in scales),
        *(f"scales/{tower}/{first}/colour" for tower in towers),
        *(f"memory/{tower}" for tower in towers),
        kernels_of(network),
        IMAGES,
        PREDICTIONS,
        PICTURE,
    ]


def summary_of() -> list[str]:
    """Every key that is only in a summary: the final and best values of a training, the views of an evaluation."""
    return [*SUMMARY, *(f"{view}/{key}" for view in ("centre", "ten") for key in EVALUATION)]


def figures_of() -> list[str]:
    """Every drawing that `launch/figure.py` sends, and those of `launch/report.py` that all runs share."""
    return [f"figures/{name}" for name in (*FIGURES, *DIFFERENCES)]


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


def _open(config: Config, run_dir: Path, job_type: str, name: str, about: Mapping[str, Any]) -> Any:
    """A W&B run in the run's folder. Raises: ValueError if online is asked for, and there is no key for it."""
    import wandb  # here, as it takes a second that runs without it need not spend

    logging = config.logging
    try:
        return wandb.init(
            project=logging.project,
            dir=run_dir,
            name=name,
            group=_group(config, run_dir),
            job_type=job_type,
            tags=[*logging.tags, config.network.name, f"ablation:{config.ablation}"],
            notes=logging.notes,
            mode="online" if logging.wandb == "online" else "offline",
            config=asdict(config) | {"run_dir": str(run_dir), "variant": variant_of(config), **about},
            settings=wandb.Settings(
                console="off",
                silent=True,
                x_disable_stats=True,
                x_transaction_log_flush_interval=FLUSH_SECONDS,
            ),
        )
    except (wandb.errors.UsageError, wandb.errors.CommError) as error:
        raise ValueError(
            f"logging.wandb={logging.wandb} did not reach W&B ({error}); log in by `wandb login`, or take "
            "logging.wandb=offline and send the run later by `wandb sync`."
        ) from error


def _code(versions: Mapping[str, str]) -> dict[str, Any]:
    return {"versions": dict(versions), "commit": versions.get("commit", "unknown")}


class Mirror:
    """The W&B run of a training. Made by `open_mirror`, closed in every case.

    A training does not depend on it: if W&B's process dies or the disk is full, that is told once, and the run goes
    on without.

    Args:
        versions: what versions.json holds.
        first_step: the step that a resumed run goes on from, else 0.
        tell: shows a person a line.

    Raises: ValueError if logging.wandb=online and W&B cannot be reached.
    """

    def __init__(
        self, config: Config, run_dir: Path, versions: Mapping[str, str], first_step: int, tell: Callable[[str], None]
    ) -> None:
        self.config, self.run_dir, self._tell = config, run_dir, tell
        about = {**_code(versions), "resumed_from_step": first_step}
        self._run: Any = _open(config, run_dir, "training", run_dir.name, about)  # None: it was lost
        self._run.define_metric("train/step")
        for prefix in (*MIRRORED, "kernels", "input"):
            self._run.define_metric(f"{prefix}/*", step_metric="train/step")

    @contextmanager
    def _optional(self) -> Iterator[None]:
        """What fails in here ends the mirror, not the training."""
        from wandb.errors import Error

        try:
            with _staged_in(self.run_dir):
                yield
        except (OSError, RuntimeError, Error) as error:
            self._run = None
            self._tell(f"W&B was lost ({error}); the run goes on without, and metrics.jsonl has everything.")

    def _log(self, step: int, make: Callable[[], dict[str, Any]]) -> None:
        """Makes values and logs them; pictures are files as soon as they are made, so that may fail as well."""
        if self._run is not None:
            with self._optional():
                self._run.log({"train/step": step} | make())

    def event(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """The numbers of an event of the journal, if it is one of `MIRRORED`."""
        if event in MIRRORED:
            self._log(step, lambda: {f"{event}/{key}": value for key, value in values.items()})

    def picture(self, path: Path) -> None:
        """What the network is fed, a PNG, at step 0."""
        from wandb import Image

        self._log(0, lambda: {PICTURE: Image(str(path))})

    def kernels(self, step: int, picture: NDArray[np.uint8]) -> None:
        """A picture of the first layer's kernels, uint8 [H, W, 3]."""
        from wandb import Image

        self._log(step, lambda: {kernels_of(self.config.network): Image(picture)})

    def predictions(self, step: int, predictions: Sequence["Prediction"]) -> None:
        """A few images with what the network says of them, as pictures with captions and as a table."""
        from wandb import Image, Table

        if not predictions:
            return
        shown = min(len(one.likeliest) for one in predictions)
        columns = ["image", "label"]
        columns += [f"{what} {place + 1}" for place in range(shown) for what in ("class", "probability")]

        def picture(one: "Prediction", **about: Any) -> Any:
            return Image(one.pixels, file_type="jpg", **about)  # a tenth of the bytes of a PNG, each time

        def make() -> dict[str, Any]:
            table = Table(columns=columns)
            for one in predictions:
                table.add_data(picture(one), one.label, *(value for pair in one.likeliest for value in pair))
            return {IMAGES: [picture(one, caption=one.caption()) for one in predictions], PREDICTIONS: table}

        self._log(step, make)

    def checkpoint(self, path: Path, step: int, is_last: bool) -> None:
        """Keeps a checkpoint as an artifact of type `model`, where logging.wandb_checkpoints asks for it.

        W&B copies the files, and sends them when the run is sent; a checkpoint may be deleted afterwards.
        """
        wanted = self.config.logging.wandb_checkpoints
        if self._run is None or wanted == "none" or (wanted == "last" and not is_last):
            return
        from wandb import Artifact

        group = _group(self.config, self.run_dir)
        names = [self.run_dir.name] if group == self.run_dir.name else [group, self.run_dir.name]
        # W&B allows letters, digits, dots, hyphens and underscores, 128 of them.
        name = re.sub(r"[^A-Za-z0-9._-]", "-", "-".join(names))[-128:]
        about = {"step": step, "network": self.config.network.name, "ablation": self.config.ablation}
        with self._optional():
            artifact = Artifact(name, type="model", metadata=about | {"seed": self.config.seed})
            for file in sorted(path.iterdir()):
                artifact.add_file(str(file), name=file.name)
            self._run.log_artifact(artifact, aliases=[path.name, "latest"])

    def summary(self, summary: Mapping[str, Any]) -> None:
        """Final and best values of the run."""
        if self._run is not None:
            with self._optional():
                self._run.summary.update(dict(summary))

    def close(self, exit_code: int) -> None:
        """Ends the W&B run; 0 is success."""
        if self._run is not None:
            with self._optional():
                self._run.finish(exit_code=exit_code)


def open_mirror(
    config: Config,
    run_dir: Path,
    versions: Mapping[str, str],
    first_step: int,
    tell: Callable[[str], None] = print,
) -> Mirror | None:
    """None where logging.wandb=disabled. Raises: ValueError if online is asked for, and W&B cannot be reached."""
    if config.logging.wandb == "disabled":
        return None
    return Mirror(config, run_dir, versions, first_step, tell)


def log_evaluation(run_dir: Path, config: Config, versions: Mapping[str, str], result: Mapping[str, Any]) -> None:
    """A small W&B run with the errors of an evaluation as its summary: `centre/top1_error`, `ten/top1_error` ...

    Those of another split than `val` are called `test/centre/top1_error` ...

    Args:
        config: the run's own; nothing happens if its logging.wandb is disabled.
        result: what evaluation.json holds.

    Raises: ValueError if logging.wandb=online and W&B cannot be reached.
    """
    if config.logging.wandb == "disabled":
        return
    about = {**_code(versions), "evaluated": {key: result[key] for key in ("checkpoint", "split")}}
    run = _open(config, run_dir, "evaluation", f"{run_dir.name}-evaluation", about)
    try:
        views = {view: result[view] for view in ("centre", "ten") if result[view] is not None}
        split = "" if result["split"] == "val" else f"{result['split']}/"
        run.summary.update({f"{split}{view}/{key}": one[key] for view, one in views.items() for key in EVALUATION})
    finally:
        run.finish()


def log_figures(run_dir: Path, config: Config, figures: Mapping[str, Path]) -> None:
    """A small W&B run with drawings: {"figure3": path} becomes the picture `figures/figure3`.

    Args:
        config: of the run that is drawn; nothing happens if its logging.wandb is disabled.
        figures: name -> file; W&B shows PNGs, so other files are left out.

    Raises: ValueError if logging.wandb=online and W&B cannot be reached.
    """
    pictures = {name: path for name, path in figures.items() if path.suffix == ".png"}
    if config.logging.wandb == "disabled" or not pictures:
        return
    run = _open(config, run_dir, "figures", f"{run_dir.name}-figures", {})
    try:
        from wandb import Image

        run.log({f"figures/{name}": Image(str(path)) for name, path in pictures.items()})
    finally:
        run.finish()
