"""Finds the runs below some folders, and what became of each: finished, unfinished, failed, damaged.

A run is a folder with config.yaml and metrics.jsonl; a sweep leaves failure.json and not_applicable.json for jobs
that went another way. Only finished runs count in comparisons, and only runs of one data set may stand in one table.
"""

import hashlib
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from twotower.config import Config
from twotower.config.stored import read_config
from twotower.data.folder_cache import find_root
from twotower.ground.words import counted, epochs_done
from twotower.reports.stored_results import read_stored_results
from twotower.runs import checkpoint, failure
from twotower.runs.events import read_events
from twotower.runs.history import History, read_history
from twotower.runs.rundir import MEAN_IMAGE, own_mean

FINISHED, UNFINISHED, FAILED, DAMAGED, NOT_APPLICABLE = (
    "finished",
    "unfinished",
    "failed",
    "damaged",
    "not applicable",
)
_NEEDED = ("top1_error", "top5_error", "images_per_second", "seconds", "epochs")  # in summary.json
_INNER = {  # folders within a run
    "checkpoints",
    "wandb",
    "tensorboard",
    "predictions",
    "features",
    "figures",
    "export",
    ".twotower",
}


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
        mean_image: SHA-256 of the training set's mean image, which stands for the set wherever it lies.
        num_val: images of the validation set.
        manifest: of the last checkpoint, verified; None without one.
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
    mean_image: str | None = None
    num_val: int | None = None
    manifest: checkpoint.Manifest | None = None

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


def find_runs(
    roots: Sequence[str],
    data_root: str | None = None,
    verified: Mapping[Path, checkpoint.Manifest | None] = MappingProxyType({}),
) -> list[Found]:
    """All runs below `roots`, each once, under different names.

    Args:
        data_root: where the images of all runs are now; None: where each was trained on them.
        verified: by run, the manifest of its last checkpoint, where that has been checked already.

    Raises: ValueError for a folder that does not exist or holds no run.
    """
    if not roots:
        raise ValueError("give the folders of sweeps and runs: python launch/report.py DIR [DIR ...]")
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
            name = str(below) if below != Path(".") else folder.resolve().name
            if len(roots) > 1 and below != Path("."):
                name = f"{Path(root).resolve().name}/{name}"
            found.setdefault(folder.resolve(), look_at(folder, name, data_root, verified.get(folder)))
    names = [run.name for run in found.values()]
    return [
        replace(run, name=str(path.relative_to(path.parents[1]))) if names.count(run.name) > 1 else run
        for path, run in found.items()
    ]


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


def _last(events: list[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    return next((event for event in reversed(events) if event["event"] == kind), None)


def look_at(
    run_dir: Path, name: str, data_root: str | None = None, verified: checkpoint.Manifest | None = None
) -> Found:
    """Reads one run. Whatever is wrong with it is said in its remark."""
    try:
        return _look_at(run_dir, name, data_root, verified)
    except OmegaConfBaseException as error:
        return Found(run_dir, name, DAMAGED, f"left out: config.yaml does not fit ({str(error).splitlines()[0]})")
    except ValueError as error:
        return Found(run_dir, name, DAMAGED, f"left out: {error}")
    except (KeyError, TypeError, AttributeError) as error:
        return Found(run_dir, name, DAMAGED, f"left out: its files lack something, or have it otherwise ({error})")
    except YAMLError:
        return Found(run_dir, name, DAMAGED, "left out: config.yaml cannot be read")


def _look_at(run_dir: Path, name: str, data_root: str | None, verified: checkpoint.Manifest | None) -> Found:
    failed, inapplicable = _json(run_dir / failure.FAILURE), _json(run_dir / failure.NOT_APPLICABLE)
    if inapplicable is not None:
        return Found(run_dir, name, NOT_APPLICABLE, inapplicable["not_applicable"])
    if failed is not None and not (run_dir / "config.yaml").exists():
        return Found(run_dir, name, FAILED, failed["error"])
    config, summary = read_config(run_dir), _json(run_dir / "summary.json")
    events = read_events(run_dir / "metrics.jsonl")
    memory, last = _last(events, "memory") or {}, _last(events, "train")
    reached = (
        f"at epoch {epochs_done(last['epoch'])} of {config.schedule.epochs}" if last else "before its first steps"
    )
    mean_image = run_dir / MEAN_IMAGE
    own_mean(run_dir)  # a damaged one would be that of another data set
    steps = checkpoint.checkpoint_steps(run_dir / "checkpoints")
    manifest = None
    if steps:
        last_place = checkpoint.place(run_dir / "checkpoints", steps[-1])
        is_verified = verified is not None and verified.step == steps[-1]
        manifest = verified if is_verified else checkpoint.verify_checkpoint(last_place)
    begun = Found(
        run_dir,
        name,
        UNFINISHED,
        f"stopped, or still training, {reached}",
        config,
        history=read_history(run_dir) if _last(events, "validation") is not None else None,
        megabytes=tuple(memory[key] for key in ("tower0", "tower1") if key in memory),
        mean_image=hashlib.sha256(mean_image.read_bytes()).hexdigest() if mean_image.exists() else None,
        manifest=manifest,
        num_val=manifest.identity.get("num_val") if manifest is not None else None,
    )
    if failed is not None:
        return replace(begun, status=FAILED, remark=f"{failed['error']} It stopped {reached}.")
    if summary is None:
        return begun
    if begun.history is None:
        return replace(begun, status=DAMAGED, remark="left out: summary.json is there, metrics.jsonl has no epoch")
    missing = [key for key in _NEEDED if not math.isfinite(summary.get(key, math.nan))]
    if missing:
        return replace(begun, status=DAMAGED, remark=f"left out: summary.json has no finite {missing[0]}")
    return _finished(begun, config, summary, data_root)


def _is_same_root(stored: str, config: Config, data_root: str | None) -> bool:
    """Whether predictions were made on the run's own data, wherever the command is given that looks at them."""
    if data_root is not None and stored == str(Path(data_root).resolve()):
        return True
    root = Path(config.data.root) if config.data.root is not None else find_root(config.data)
    if root.is_absolute():
        return stored in (str(root), str(root.resolve()))
    return Path(stored).match(str(root))  # a run of earlier versions


def _finished(begun: Found, config: Config, summary: dict[str, Any], data_root: str | None) -> Found:
    """With the errors on the validation set of its own data."""
    run_dir, errors, remark = begun.run_dir, {"centre": (summary["top1_error"], summary["top5_error"])}, ""
    if not begun.has_checkpoint:
        remark = "no checkpoint: no ten crops, no kernels"
        return replace(begun, status=FINISHED, remark=remark, summary=summary, errors=errors)
    quoted = shlex.quote(str(run_dir))
    try:
        for result in read_stored_results(run_dir):
            identity = result.identity
            if identity["split"] == "val" and _is_same_root(identity["data"]["root"], config, data_root):
                errors[result.crops] = (result.top1_error, result.top5_error)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        remark = f"its evaluation cannot be read ({error}); python launch/evaluate.py {quoted} crops=ten"
    if "ten" not in errors:
        remark = remark or f"ten crops not evaluated: python launch/evaluate.py {quoted} crops=ten"
    return replace(begun, status=FINISHED, remark=remark, summary=summary, errors=errors)


def _differing_data(one: Found, other: Found) -> str | None:
    """In what the images of two runs differ; None if they are the same, as far as the runs noted them."""
    assert one.config is not None
    assert other.config is not None
    if one.mean_image is not None and other.mean_image is not None:
        if one.mean_image != other.mean_image:
            return "their training sets have different mean images"
    elif (one.config.data.kind, one.config.data.root) != (other.config.data.kind, other.config.data.root):
        return "data and data.root differ"
    if one.num_val is not None and other.num_val is not None and one.num_val != other.num_val:
        return f"their validation sets have {one.num_val} and {counted(other.num_val, 'image')}"
    return None


def check_one_data_set(runs: Sequence[Found]) -> None:
    """Raises: ValueError naming two runs that have different images; their errors say nothing together."""
    begun = [run for run in runs if run.config is not None]
    for run in begun[1:]:
        differing = _differing_data(begun[0], run)
        if differing is not None:
            raise ValueError(
                f"{begun[0].run_dir} ({describe_data(begun[0])}) and {run.run_dir} ({describe_data(run)}) have "
                f"different images: {differing}. Their errors cannot stand in one table; give runs of one data set."
            )


def describe_data(run: Found) -> str:
    """`folder imagenette, 10 classes`."""
    assert run.config is not None
    data = run.config.data
    what = f"{data.kind} {Path(data.root).name}" if data.kind == "folder" and data.root is not None else data.kind
    classes = run.summary["num_classes"] if run.summary is not None else None
    return f"{what}, {counted(classes, 'class', 'classes')}" if classes else what
