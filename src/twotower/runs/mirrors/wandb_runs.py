"""Opens the W&B run that a training, an evaluation or a drawing belongs to.

There is one W&B run for each training, with its evaluation and its figures; `wandb_run_id` has its id. Its group is
the name of the sweep, or else of the run. All runs are offline and need no key, unless logging.wandb or W&B's own
variables say online. All files lie in RUN/wandb, even those that W&B would put into the home folder.

A killed run loses the last second at most, because W&B's interval of 15 s is shortened to half a second.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict

from twotower.config import Config
from twotower.ground.stored_files import read_json
from twotower.ground.versions import VERSIONS
from twotower.runs.events import read_events
from twotower.runs.mirrors.metric_names import MIRRORED, flatten_evaluation
from twotower.runs.mirrors.wandb_key import check_key, unreachable
from twotower.runs.mirrors.wandb_mirror import WandbMirror, name_group
from twotower.runs.mirrors.wandb_run_id import find_run_id
from twotower.runs.mirrors.wandb_settings import DEFAULT_MODE, OFFLINE_UNLESS_ASKED, mode_in

FLUSH_SECONDS = 0.5  # time between writes to the offline file; a killed run loses the values after the last one
_VALUES: TypeAdapter[Any] = TypeAdapter(dict[str, float | str])


class _Evaluation(TypedDict):
    """evaluation.json, as far as it is sent."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    split: str
    centre: dict[str, float | str | bool] | None
    ten: dict[str, float | str | bool] | None


_EVALUATION: TypeAdapter[Any] = TypeAdapter(_Evaluation)
TRAINING, DRAWING = "training", "figures"  # W&B's job types


def name_variant(config: Config) -> str:
    """The name by which the dashboard groups runs: "alexnet_2012", "alexnet_2012, no_lrn", "no_exchange"."""
    return config.network.name if config.ablation == "none" else f"{config.network.name}, {config.ablation}"


def _has_system_statistics(config: Config) -> bool:
    """Whether W&B records the load of the machine; `auto` means where a GPU does the work."""
    on_gpu = config.machine.device != "cpu" and torch.cuda.is_available()
    return on_gpu if config.logging.system == "auto" else config.logging.system == "yes"


def _open(config: Config, folder: Path, run_id: str, name: str, about: Mapping[str, Any], **options: Any) -> Any:
    """Opens a W&B run with its files in WANDB_DIR or else in `folder`: a new one, or the one that has this id.

    Args:
        about: more entries of its configuration.
        options: `mode`, `job_type`, and `system`, whether to record the load of the machine.

    Raises: ValueError if W&B does not start, or is to be online, and there is no key or it cannot be reached.
    """
    import wandb  # imported here, because it takes a second, which runs without W&B save

    logging = config.logging
    if options["mode"] == "online":
        check_key()  # W&B would ask for a key at the terminal, in the middle of the work
    try:
        return wandb.init(
            project=logging.project,
            entity=logging.entity,
            dir=None if os.environ.get("WANDB_DIR") else folder,
            id=run_id,
            resume="allow",
            name=name,
            group=name_group(config, folder),
            job_type=options["job_type"],
            tags=[*(logging.tags or []), config.network.name, f"ablation:{config.ablation}"],
            notes=logging.notes,
            mode=options["mode"],
            config=asdict(config) | {"variant": name_variant(config), **about},
            settings=wandb.Settings(
                console="off",
                silent=True,
                x_disable_stats=not options["system"],
                x_transaction_log_flush_interval=FLUSH_SECONDS,
            ),
        )
    except (wandb.errors.UsageError, wandb.errors.CommError) as error:
        raise unreachable(error) from error
    except wandb.errors.Error as error:  # its own process, which it starts even offline
        raise ValueError(
            f"W&B did not start ({error}); start again, or go on without it: logging=no_wandb."
        ) from error


def _describe_code(versions: Mapping[str, str]) -> dict[str, Any]:
    return {"versions": dict(versions), "commit": versions.get("commit", "unknown")}


def open_training(config: Config, run_dir: Path, versions: Mapping[str, str], first_step: int) -> WandbMirror:
    """Opens the W&B run of a training, and goes on with it if the training does.

    Raises: ValueError if W&B is to be online and cannot be reached.
    """
    about = {**_describe_code(versions), "run_dir": str(run_dir), "resumed_from_step": first_step}
    mode, system = config.logging.wandb or DEFAULT_MODE, _has_system_statistics(config)
    run_id, name = find_run_id(run_dir, is_new=first_step == 0), config.logging.name or run_dir.name
    run = _open(config, run_dir, run_id, name, about, mode=mode, job_type=TRAINING, system=system)
    return WandbMirror(run, config, run_dir)


def _mode_afterwards(config: Config, run_dir: Path, say: Callable[[str], None]) -> str:
    """The mode of additions to a run: that of W&B's variable, else the run's own. A run without W&B stays without.

    A run that says online does not send anything by itself, because its folder may be somebody else's.

    Raises: ValueError for a WANDB_MODE that is not known.
    """
    stored = config.logging.wandb or DEFAULT_MODE
    if stored == "disabled":
        return stored
    given = mode_in(os.environ)
    if given is not None:
        return given
    if stored == "online":
        say(f"{run_dir} was online; {OFFLINE_UNLESS_ASKED}.")
        return "offline"
    return stored


def _describe_training(run_dir: Path) -> dict[str, Any]:
    """The versions of a training's code as far as they can be read, and where the run is now."""
    with suppress(ValueError):
        versions = read_json(run_dir / "versions.json", VERSIONS, "leave it out")
        return {**_describe_code(versions), "run_dir": str(run_dir)}
    return {"run_dir": str(run_dir)}


def _read_summary(run_dir: Path) -> dict[str, float]:
    """Everything that the summary of a W&B run holds so far: last values, final values, errors of evaluations.

    Each part of a W&B run sends a summary of its own, which may replace the one before, so it has to repeat that.

    Raises: ValueError naming a damaged file.
    """
    summary: dict[str, float] = {}
    for event in read_events(run_dir / "metrics.jsonl"):
        if event["event"] in MIRRORED:
            values = {f"{event['event']}/{key}": event[key] for key in event if key not in ("event", "step")}
            summary |= {"train/step": event["step"], **values}
    training, evaluation = run_dir / "summary.json", run_dir / "evaluation.json"
    if training.exists():
        values = read_json(training, _VALUES, "delete it")
        summary |= {key: value for key, value in values.items() if not isinstance(value, str)}
    if evaluation.exists():
        summary |= flatten_evaluation(read_json(evaluation, _EVALUATION, "evaluate the run again with fresh=true"))
    return summary


def open_afterwards(
    config: Config, run_dir: Path, addition: str, about: Mapping[str, Any], say: Callable[[str], None]
) -> WandbMirror | None:
    """Opens the W&B run of a training that has ended, to add to it; None if the training has none.

    Online, two processes cannot write to one W&B run. So as long as a run has not finished, and may be training, the
    addition becomes a W&B run of its own in the same group, named after it: RUN-evaluation, RUN-figure3.

    Args:
        addition: "evaluation", or the name of a figure.
        about: more entries of its configuration.

    Raises: ValueError if W&B is to be online and cannot be reached.
    """
    mode = _mode_afterwards(config, run_dir, say)
    if mode == "disabled":
        return None
    about = {**_describe_training(run_dir), **about}
    run_id, name = find_run_id(run_dir), config.logging.name or run_dir.name
    is_finished = (run_dir / "summary.json").exists()
    if mode == "online" and not is_finished:
        job_type = addition if addition == "evaluation" else DRAWING
        run = _open(
            config,
            run_dir,
            f"{run_id}-{addition}",
            f"{name}-{addition}",
            about,
            mode=mode,
            job_type=job_type,
            system=False,
        )
        return WandbMirror(run, config, run_dir)
    summary = _read_summary(run_dir)
    run = _open(config, run_dir, run_id, name, about, mode=mode, job_type=TRAINING, system=False)
    run.summary.update(summary)
    return WandbMirror(run, config, run_dir, exit_code=0 if is_finished else 1)


def open_drawing(
    config: Config, run_dir: Path, folder: Path, name: str, say: Callable[[str], None]
) -> WandbMirror | None:
    """Opens a W&B run for drawings of several runs, in their group. The same folder and name give the same W&B run.

    Args:
        run_dir: folder of the run that stands for the others, and has `config`.
        folder: the folder of W&B's files.

    Raises: ValueError if W&B is to be online and cannot be reached.
    """
    mode = _mode_afterwards(config, run_dir, say)
    if mode == "disabled":
        return None
    run_id = hashlib.sha256(f"{folder.resolve()}/{name}".encode()).hexdigest()[:16]
    drawn = replace(config, logging=replace(config.logging, group=name_group(config, run_dir)))
    about = {**_describe_training(run_dir), "drawing": name}
    run = _open(drawn, folder, run_id, name, about, mode=mode, job_type=DRAWING, system=False)
    return WandbMirror(run, drawn, folder)
