"""Which W&B run a training, an evaluation or a drawing belongs to, and how it is opened.

There is one for each training, with its evaluation and its figures: see `wandb_settings` for its id. Its group is the
sweep's name or else the run's. All of it is offline and needs no key, unless logging.wandb=online or W&B's own
variables say so. Everything lies in RUN/wandb, also what W&B would stage in the home folder.

A run that is killed loses the last second at most: W&B's own interval of 15 s is shortened to half a second.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from twotower.config import Config
from twotower.runs.events import read_events
from twotower.runs.mirrors.keys import MIRRORED, values_of_evaluation
from twotower.runs.mirrors.wandb_mirror import WandbMirror, group_of
from twotower.runs.mirrors.wandb_settings import (
    DEFAULT_MODE,
    check_key,
    mode_in,
    run_id_of,
    unreachable,
    was_trained_here,
)

FLUSH_SECONDS = 0.5  # between writes to the offline file; a killed run loses what came after the last one
TRAINING, DRAWING = "training", "figures"  # job types


def variant_of(config: Config) -> str:
    """What runs are grouped by on the dashboard: "alexnet_2012", "alexnet_2012, no_lrn", "no_exchange"."""
    return config.network.name if config.ablation == "none" else f"{config.network.name}, {config.ablation}"


def _has_system_statistics(config: Config) -> bool:
    """Whether W&B watches the machine while it trains: `auto` where a GPU does the work."""
    on_gpu = config.machine.device != "cpu" and torch.cuda.is_available()
    return on_gpu if config.logging.system == "auto" else config.logging.system == "yes"


def _open(config: Config, folder: Path, run_id: str, name: str, about: Mapping[str, Any], **options: Any) -> Any:
    """A W&B run with its files in WANDB_DIR or else in `folder`, new or going on with what has the same id.

    Args:
        options: mode, job_type, and whether to take system statistics (`system`).

    Raises: ValueError if W&B is to be online, and there is no key or it cannot be reached.
    """
    import wandb  # here, as it takes a second that runs without it need not spend

    logging = config.logging
    if options["mode"] == "online":
        check_key()  # W&B would ask for it at a terminal, in the middle of everything
    try:
        return wandb.init(
            project=logging.project,
            entity=logging.entity,
            dir=None if os.environ.get("WANDB_DIR") else folder,
            id=run_id,
            resume="allow",
            name=name,
            group=group_of(config, folder),
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


def _known_of(run_dir: Path) -> dict[str, float]:
    """What a run's summary has had so far: the last value of each key, the final values, the errors of evaluations.

    Each part of a W&B run sends a summary of its own, which may take the place of the one before, so it repeats that.
    """
    known: dict[str, float] = {}
    for event in read_events(run_dir / "metrics.jsonl"):
        if event["event"] in MIRRORED:
            values = {f"{event['event']}/{key}": event[key] for key in event if key not in ("event", "step")}
            known |= {"train/step": event["step"], **values}
    summary, evaluation = run_dir / "summary.json", run_dir / "evaluation.json"
    if summary.exists():
        known |= json.loads(summary.read_text())
    if evaluation.exists():
        known |= values_of_evaluation(json.loads(evaluation.read_text()))
    return known


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
    known = _known_of(run_dir)
    run = _open(config, run_dir, run_id, name, about, mode=mode, job_type=TRAINING, system=False)
    run.summary.update(known)
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
    drawn = replace(config, logging=replace(config.logging, group=group_of(config, run_dir)))
    about = {**_training_of(run_dir), "drawing": name}
    run = _open(drawn, folder, run_id, name, about, mode=mode, job_type=DRAWING, system=False)
    return WandbMirror(run, drawn, folder)
