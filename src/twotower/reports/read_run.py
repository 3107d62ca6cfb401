"""Reads one run from its folder, and says what became of it and why."""

import hashlib
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from twotower.config import Config
from twotower.config.stored_config import read_config
from twotower.data.dataset import MEAN_IMAGE
from twotower.data.folder_cache import find_root
from twotower.ground.links import refuse_links
from twotower.ground.wording import epochs_done, on_one_line, word_error
from twotower.reports.kept_runs import read_kept
from twotower.reports.run_records import FinishedRun, Run, Trace
from twotower.reports.stored_results import read_stored_results
from twotower.runs import checkpoint, failure
from twotower.runs.events import check_values, read_events
from twotower.runs.history import read_history
from twotower.runs.rundir import own_mean
from twotower.runs.status import Status
from twotower.runs.summary import read_summary

_NEEDED = ("top1_error", "top5_error", "images_per_second", "seconds", "epochs")  # keys of summary.json


def read_run(
    run_dir: Path, name: str, data_root: str | None = None, verified: checkpoint.Manifest | None = None
) -> Trace:
    """Reads one run; the remark names whatever is wrong with it.

    Args:
        data_root: where the images are now; None: where the run was trained on them.
        verified: manifest of its last checkpoint, if that has been verified already.

    Returns: a `FinishedRun`, a `Run` that has not finished, or the bare `Trace` of one that cannot be read.
    """
    try:
        refuse_links(run_dir)
        ended = _read_trace(run_dir, name)
        return ended if ended is not None else _read_begun(run_dir, name, data_root, verified)
    except (ValueError, OSError) as error:
        remark = f"left out: {on_one_line(word_error(error))}"
        return Trace(run_dir=run_dir, name=name, status=Status.DAMAGED, remark=remark)


def _find_last(events: list[dict[str, Any]], kind: str) -> dict[str, Any] | None:
    return next((event for event in reversed(events) if event["event"] == kind), None)


def _read_trace(run_dir: Path, name: str) -> Trace | None:
    """The trace of a job that never began; None for a run."""
    failed, inapplicable = failure.read_failure(run_dir), failure.read_not_applicable(run_dir)
    if inapplicable is not None:
        reason = inapplicable["not_applicable"]
        return Trace(run_dir=run_dir, name=name, status=Status.NOT_APPLICABLE, remark=reason)
    if failed is not None and not (run_dir / "config.yaml").exists():
        return Trace(run_dir=run_dir, name=name, status=Status.FAILED, remark=failed["error"])
    return None


def _read_begun(run_dir: Path, name: str, data_root: str | None, verified: checkpoint.Manifest | None) -> Run:
    config, summary = read_config(run_dir), read_summary(run_dir, _NEEDED)
    events = read_events(run_dir / "metrics.jsonl")
    memory, last = _find_last(events, "memory") or {}, _find_last(events, "train")
    reached = "before its first steps"
    if last is not None:
        check_values(run_dir / "metrics.jsonl", last, ("epoch",))
        reached = f"at epoch {epochs_done(last['epoch'])} of {config.schedule.epochs}"
    mean_image = run_dir / MEAN_IMAGE
    kept = read_kept(run_dir)
    own_mean(run_dir)  # raises for a damaged image, which would be taken for that of another data set
    manifest = _read_manifest(run_dir, verified)
    begun = Run(
        run_dir=run_dir,
        name=name,
        status=Status.UNFINISHED,
        remark=f"stopped, or still training, {reached}",
        config=config,
        history=read_history(run_dir) if _find_last(events, "validation") is not None else None,
        megabytes=tuple(memory[key] for key in ("tower0", "tower1") if key in memory),
        mean_image=hashlib.sha256(mean_image.read_bytes()).hexdigest() if mean_image.exists() else None,
        num_val=manifest.identity.get("num_val") if manifest is not None else None,
        manifest=manifest,
    )
    if kept is not None:
        begun = replace(begun, is_kept=True, mean_image=kept.mean_image, num_val=kept.num_val)
    failed = failure.read_failure(run_dir)
    if failed is not None:
        return replace(begun, status=Status.FAILED, remark=f"{failed['error']} It stopped {reached}.")
    if summary is None:
        return begun
    if kept is not None:
        return _finish(begun, summary, kept.errors, "kept without its weights")
    return _finish(begun, summary, *_read_errors(begun, summary, data_root))


def _read_manifest(run_dir: Path, verified: checkpoint.Manifest | None) -> checkpoint.Manifest | None:
    """The manifest of the last checkpoint. Raises: ValueError if that is damaged."""
    folder = run_dir / "checkpoints"
    steps = checkpoint.checkpoint_steps(folder)
    if not steps:
        return None
    if verified is not None and verified.step == steps[-1]:
        return verified
    return checkpoint.verify_checkpoint(checkpoint.place(folder, steps[-1]))


def _finish(run: Run, summary: dict[str, Any], errors: dict[str, tuple[float, float]], remark: str) -> Run:
    if run.history is None:
        reason = "summary.json is there, metrics.jsonl has no epoch"
        return replace(run, status=Status.DAMAGED, remark=f"left out: {reason}")
    known = {key.name: getattr(run, key.name) for key in fields(run)}
    ended = {"status": Status.FINISHED, "remark": remark, "summary": summary, "errors": errors}
    return FinishedRun(**{**known, **ended})


def _read_errors(
    run: Run, summary: dict[str, Any], data_root: str | None
) -> tuple[dict[str, tuple[float, float]], str]:
    """Top-1 and top-5 error by view on the run's own validation set, and a remark on a missing view."""
    errors = {"centre": (summary["top1_error"], summary["top5_error"])}
    if not run.has_checkpoint:
        return errors, "no checkpoint: no ten crops, no kernels"
    remark, quoted = "", shlex.quote(str(run.run_dir))
    try:
        for result in read_stored_results(run.run_dir):
            identity = result.identity
            if identity["split"] == "val" and _is_same_root(identity["data"]["root"], run.config, data_root):
                errors[result.crops] = (result.top1_error, result.top5_error)
    except (ValueError, OSError) as error:
        reason = on_one_line(word_error(error))
        remark = f"its evaluation cannot be read ({reason}); python launch/evaluate.py {quoted} crops=ten"
    if "ten" not in errors:
        remark = remark or f"ten crops not evaluated: python launch/evaluate.py {quoted} crops=ten"
    return errors, remark


def _is_same_root(stored: str, config: Config, data_root: str | None) -> bool:
    """Whether predictions were made on the run's own data, wherever the command that reads them is given."""
    if data_root is not None and stored == str(Path(data_root).resolve()):
        return True
    root = Path(config.data.root) if config.data.root is not None else find_root(config.data)
    if root.is_absolute():
        return stored in (str(root), str(root.resolve()))
    return Path(stored).match(str(root))  # a run of earlier versions
