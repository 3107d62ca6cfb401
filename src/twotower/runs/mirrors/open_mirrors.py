"""Opens the mirrors of a run, W&B and TensorBoard, for a training or to add an evaluation or a drawing to it.

`keys` lists what they show. Neither W&B nor TensorBoard is imported before it is asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twotower.config import Config, LoggingConfig
from twotower.runs.mirrors import tensorboard_mirror, wandb_runs
from twotower.runs.mirrors.metric_names import flatten_evaluation
from twotower.runs.mirrors.mirror import Mirror, Mirrors
from twotower.runs.mirrors.wandb_key import check_key


def check_mirrors(logging: LoggingConfig) -> None:
    """Checks, without any network, that the mirrors can be opened.

    Args:
        logging: settings after `wandb_settings.settle`.

    Raises: ValueError if W&B is to be online and there is no key, or TensorBoard is asked for and not installed.
    """
    if logging.wandb == "online":
        check_key()
    if logging.tensorboard:
        tensorboard_mirror.check_package()


def open_mirrors(
    config: Config,
    run_dir: Path,
    versions: Mapping[str, str],
    first_step: int,
    say: Callable[[str], None] = print,
) -> Mirrors:
    """Opens the mirrors of a training.

    Args:
        versions: content of versions.json.
        first_step: the step that a resumed run goes on from, or 0.

    Raises: ValueError if W&B is to be online and cannot be reached, or TensorBoard is not installed.
    """
    mirrors: list[Mirror] = []
    if config.logging.wandb != "disabled":
        mirrors.append(wandb_runs.open_training(config, run_dir, versions, first_step))
    if config.logging.tensorboard:
        mirrors.append(tensorboard_mirror.open_training(config, run_dir, first_step))
    return Mirrors(mirrors, say)


def _send(
    openers: Sequence[Callable[[], Mirror | None]], send: Callable[[Mirrors], None], say: Callable[[str], None]
) -> None:
    """Opens mirrors after the training, sends something and closes them. Prints why a mirror cannot be opened."""
    opened = []
    for open_one in openers:
        try:
            opened.append(open_one())
        except ValueError as error:
            say(f"not mirrored: {error}")
    mirrors = Mirrors([mirror for mirror in opened if mirror is not None], say)
    try:
        send(mirrors)
    finally:
        mirrors.close(0)


def log_evaluation(
    run_dir: Path,
    config: Config,
    versions: Mapping[str, str],
    result: Mapping[str, Any],
    say: Callable[[str], None] = print,
) -> None:
    """Adds an evaluation's errors to the mirrors of its run: `centre/top1_error`, `ten/top1_error` ...

    Args:
        config: the run's configuration, which says what mirrors it has.
        versions: versions of the packages that evaluate.
        result: content of evaluation.json.
    """
    values = flatten_evaluation(result)
    about = {"checkpoint": result["checkpoint"], "split": result["split"], "versions": dict(versions)}
    step = int(str(result["checkpoint"]).removeprefix("step-"))
    _send(
        [
            lambda: wandb_runs.open_afterwards(config, run_dir, "evaluation", {"evaluation": about}, say),
            lambda: tensorboard_mirror.open_afterwards(config, run_dir),
        ],
        lambda mirrors: mirrors.summary(step, values),
        say,
    )


def _pngs(figures: Mapping[str, Path]) -> dict[str, Path]:
    """The figures that are PNGs, because mirrors show no other files."""
    return {name: path for name, path in figures.items() if path.suffix == ".png"}


def log_figures(
    run_dir: Path, config: Config, figures: Mapping[str, Path], say: Callable[[str], None] = print
) -> None:
    """Adds drawings of one run to its mirrors: {"figure3": path} becomes the picture `figures/figure3`.

    Args:
        config: the run's configuration, which says what mirrors it has.
        figures: file by name.
    """
    pictures = _pngs(figures)
    if pictures:
        name = "-".join(pictures)
        _send(
            [
                lambda: wandb_runs.open_afterwards(config, run_dir, name, {}, say),
                lambda: tensorboard_mirror.open_afterwards(config, run_dir),
            ],
            lambda mirrors: mirrors.figures(pictures),
            say,
        )


def log_figures_of_several(
    run_dir: Path,
    config: Config,
    folder: Path,
    figures: Mapping[str, Path],
    say: Callable[[str], None] = print,
    name: str | None = None,
) -> None:
    """Sends drawings of several runs to W&B, as a W&B run of its own in the group of the runs.

    Args:
        run_dir: the run that stands for the others. Its `config` gives W&B's mode, project and group.
        folder: the folder of W&B's files.
        figures: file by name.
        name: name of the W&B run; None: names of the figures.
    """
    pictures = _pngs(figures)
    if pictures:
        title = name or "-".join(pictures)
        openers = [lambda: wandb_runs.open_drawing(config, run_dir, folder, title, say)]
        _send(openers, lambda mirrors: mirrors.figures(pictures), say)
