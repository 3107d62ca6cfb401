"""Finished runs without their weights, some 20 kB each: for later reports, with runs of other days and machines.

A kept run is a folder like that of a run, with the files that reports read, one `train` line for each epoch, and
kept.json in place of what was computed from the files that are not there.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Len
from omegaconf import OmegaConf
from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict

from twotower.config.paths import without_places
from twotower.config.stored_config import read_config
from twotower.ground.files import write_json, write_text, write_whole
from twotower.ground.links import refuse_links
from twotower.ground.stored_files import Count, Percent, read_json
from twotower.reports.run_records import FinishedRun
from twotower.runs.events import read_events
from twotower.runs.history import merge_windows
from twotower.runs.variants import select_for_comparison

KEPT = "kept.json"
_COPIED = ("summary.json", "versions.json", "energy.json")
_REMEDY = "keep the run again from its folder, or leave it out"
_LARGEST = 1 << 16  # bytes


class _Kept(TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    mean_image: Annotated[str, Len(64, 64)] | None
    num_val: Count | None
    errors: dict[Literal["centre", "ten"], Annotated[list[Percent], Len(2, 2)]]


_FORM: TypeAdapter[_Kept] = TypeAdapter(_Kept)


@dataclass(frozen=True)
class Kept:
    """What kept.json has of a run.

    Attributes:
        mean_image: SHA-256 of the training set's mean image, as `Run` has it.
        num_val: number of images of the validation set.
        errors: as `FinishedRun` has them.
    """

    mean_image: str | None
    num_val: int | None
    errors: dict[str, tuple[float, float]]


def read_kept(run_dir: Path) -> Kept | None:
    """None for a run that has its own files. Raises: ValueError for a damaged kept.json."""
    path = run_dir / KEPT
    if not path.exists():
        return None
    content = read_json(path, _FORM, _REMEDY, _LARGEST)
    errors = {str(view): (pair[0], pair[1]) for view, pair in content["errors"].items()}
    return Kept(content["mean_image"], content["num_val"], errors)


def keep_runs(runs: Sequence[FinishedRun], folder: Path) -> None:
    """Writes each run to `folder`/SWEEP/RUN, over what was kept of it before.

    Raises: ValueError, before anything is written, if two runs, or a run and what is kept, would share a place, or a
        link leads out of the folder.
    """
    places: dict[Path, FinishedRun] = {}
    for run in runs:
        run_dir = run.run_dir.resolve()
        if run_dir.is_relative_to(folder.resolve()):
            continue  # it is kept there
        place = folder / run_dir.parent.name / run_dir.name
        refuse_links(folder, run_dir.parent.name)
        problem = None
        if place in places:
            problem = f"{places[place].run_dir} and {run.run_dir} would both be kept at {place}"
        elif place.exists() and not _holds(place, run):
            problem = f"{run.run_dir} would be kept at {place}, which holds something else"
        if problem is not None:
            raise ValueError(f"{problem}; rename the folder of a sweep, or give another folder as keep.")
        places[place] = run
    for place, run in places.items():
        _keep(run, place)


def _holds(place: Path, run: FinishedRun) -> bool:
    """Whether a folder holds the same experiment with the same seed, or what a stopped report has begun to keep."""
    if not (place / "config.yaml").exists():
        ours = {*_COPIED, KEPT, "metrics.jsonl"}
        return place.is_dir() and all(path.name in ours or path.name.endswith(".pending") for path in place.iterdir())
    try:
        config = read_config(place)
    except ValueError:
        return False
    return config.seed == run.config.seed and select_for_comparison(config) == select_for_comparison(run.config)


def _keep(run: FinishedRun, place: Path) -> None:
    """Writes one run, config.yaml last, by which others tell that a folder is a run."""
    place.mkdir(parents=True, exist_ok=True)
    events = merge_windows(read_events(run.run_dir / "metrics.jsonl"))
    write_whole(place / "metrics.jsonl", "".join(json.dumps(event) + "\n" for event in events).encode())
    for name in _COPIED:
        if (run.run_dir / name).is_file():
            write_whole(place / name, (run.run_dir / name).read_bytes())
    content: dict[str, Any] = {"mean_image": run.mean_image, "num_val": run.num_val, "errors": run.errors}
    write_json(place / KEPT, content)
    write_text(place / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(without_places(run.config))))
