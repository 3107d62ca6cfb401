"""Finds the runs below some folders, and what became of each: finished, unfinished, failed, damaged.

A run is a folder with config.yaml and metrics.jsonl; a sweep leaves failure.json and not_applicable.json for jobs
that went another way. Only finished runs count in comparisons, and only runs of one data set may stand in one table.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twotower import checkpoint, failure
from twotower.config import Config
from twotower.data.prepare import root_of
from twotower.evaluate import read_config
from twotower.history import History, read_history
from twotower.journal import read_events
from twotower.rundir import MEAN_IMAGE
from twotower.tables import stored_results

FINISHED, UNFINISHED, FAILED, DAMAGED, NOT_APPLICABLE = (
    "finished",
    "unfinished",
    "failed",
    "damaged",
    "not applicable",
)
_INNER = {"checkpoints", "wandb", "predictions", "features", "figures", "export", ".twotower"}  # of a run


@dataclass(frozen=True)
class Found:
    """One run, or the trace of a job that never began.

    Attributes:
        name: its folder below the one that was given.
        status: one of the five words above.
        remark: why it has this status, or what it lacks; empty for nothing.
        config: None where none can be read.
        summary: of a finished run (summary.json).
        history: None without a finished epoch.
        errors: view (`centre`, `ten`) -> top-1 and top-5 error in percent, on the validation set at the end.
        megabytes: peak memory of each tower in MiB; empty where the run did not note it.
        data: what stands for the images that it was trained on.
    """

    run_dir: Path
    name: str
    status: str
    remark: str
    config: Config | None = None
    summary: dict[str, Any] | None = None
    history: History | None = None
    errors: dict[str, tuple[float, float]] | None = None
    megabytes: tuple[float, ...] = ()
    data: str = ""

    @property
    def has_checkpoint(self) -> bool:
        return bool(checkpoint.checkpoint_steps(self.run_dir / "checkpoints"))


def _folders(root: Path) -> list[Path]:
    """Folders of runs below `root`, itself included, by name."""
    found = []
    for path, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if name not in _INNER)
        if {"config.yaml", *failure.NOTES} & set(files):
            found.append(Path(path))
    return found


def find_runs(roots: Sequence[str]) -> list[Found]:
    """All runs below `roots`, each once.

    Raises: ValueError for a folder that does not exist or holds no run.
    """
    if not roots:
        raise ValueError("give the folders of sweeps and runs: python launch/report.py DIR [DIR ...].")
    found: dict[Path, Found] = {}
    for root in roots:
        if not Path(root).is_dir():
            raise ValueError(f"{root} is no folder; give the folder of a sweep or of a run, such as sweeps/NAME.")
        folders = _folders(Path(root))
        if not folders:
            raise ValueError(
                f"{root} holds no run, that is, no folder with config.yaml and metrics.jsonl; give the folder of a "
                "sweep or of a run, such as sweeps/NAME."
            )
        for folder in folders:
            below = folder.relative_to(root)
            name = str(below) if len(folders) > 1 else folder.resolve().name
            found.setdefault(folder.resolve(), look_at(folder, name))
    return list(found.values())


def _json(path: Path) -> dict[str, Any] | None:
    """Raises: ValueError for a file that is no JSON object."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} cannot be read (it is no object)")
    return content


def _data_of(run_dir: Path, config: Config) -> str:
    """The mean image stands for the training set, wherever that lies; synthetic data have none."""
    path = run_dir / MEAN_IMAGE
    if path.exists():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{config.data.kind} {config.data.root} {config.data.num_classes} {config.data.num_train}"


def _last(events: list[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    return next((event for event in reversed(events) if event["event"] == kind), None)


def look_at(run_dir: Path, name: str) -> Found:
    """What became of one run. Whatever is wrong with it is said in its remark."""
    try:
        failed, inapplicable = _json(run_dir / failure.FAILURE), _json(run_dir / failure.NOT_APPLICABLE)
        if inapplicable is not None:
            return Found(run_dir, name, NOT_APPLICABLE, inapplicable["not_applicable"])
        if failed is not None and not (run_dir / "config.yaml").exists():
            return Found(run_dir, name, FAILED, failed["error"])
        config, summary = read_config(run_dir), _json(run_dir / "summary.json")
        events = read_events(run_dir / "metrics.jsonl")
    except (ValueError, KeyError) as error:
        return Found(run_dir, name, DAMAGED, f"left out: {error}")
    except Exception as error:  # OmegaConf has many kinds of error for a yaml that is not ours
        return Found(run_dir, name, DAMAGED, f"left out: config.yaml cannot be read ({type(error).__name__})")
    memory = _last(events, "memory") or {}
    megabytes = tuple(memory[key] for key in ("tower0", "tower1") if key in memory)
    history = read_history(run_dir) if any(event["event"] == "validation" for event in events) else None
    last = _last(events, "train")
    reached = f"at epoch {last['epoch']:.3g} of {config.schedule.epochs}" if last else "before its first steps"
    begun = Found(run_dir, name, UNFINISHED, f"stopped, or still training, {reached}", config)
    begun = replace(begun, history=history, megabytes=megabytes, data=_data_of(run_dir, config))
    if failed is not None:
        return replace(begun, status=FAILED, remark=f"{failed['error']} It stopped {reached}.")
    if summary is None:
        return begun
    if history is None:
        return replace(begun, status=DAMAGED, remark="left out: summary.json is there, metrics.jsonl has no epoch")
    return _finished(begun, config, summary)


def _finished(begun: Found, config: Config, summary: dict[str, Any]) -> Found:
    """With the errors on the validation set of its own data."""
    run_dir, errors, remark = begun.run_dir, {"centre": (summary["top1_error"], summary["top5_error"])}, ""
    if not begun.has_checkpoint:
        remark = "no checkpoint: no ten crops, no kernels"
        return replace(begun, status=FINISHED, remark=remark, summary=summary, errors=errors)
    root = str(root_of(config.data).resolve())
    try:
        for result in stored_results(run_dir):
            if result.identity["split"] == "val" and result.identity["data"]["root"] == root:
                errors[result.view] = (result.top1_error, result.top5_error)
    except ValueError as error:
        remark = str(error)
    if "ten" not in errors:
        remark = remark or f"ten crops not evaluated: python launch/evaluate.py run={run_dir} crops=ten"
    return replace(begun, status=FINISHED, remark=remark, summary=summary, errors=errors)


def check_one_data_set(runs: Sequence[Found]) -> None:
    """Raises: ValueError naming two runs that were trained on different images; their errors say nothing together."""
    started = [run for run in runs if run.data]
    for run in started[1:]:
        if run.data != started[0].data:
            raise ValueError(
                f"{started[0].run_dir} ({describe_data(started[0])}) and {run.run_dir} ({describe_data(run)}) were "
                "trained on different images, and their errors cannot stand in one table; give runs of one data set."
            )


def describe_data(run: Found) -> str:
    """`folder imagenette, 10 classes`."""
    assert run.config is not None
    data = run.config.data
    what = f"{data.kind} {Path(data.root).name}" if data.root is not None else data.kind
    classes = run.summary["num_classes"] if run.summary is not None else None
    return f"{what}, {classes} classes" if classes else what
