"""The results of our own runs for the lab book: what each counts for, and which images it was measured on."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twotower.config import Config
from twotower.config.stored_config import read_config
from twotower.ground.wording import counted
from twotower.reports.counterpart import COUNTERPARTS, find_counterpart, list_overridden
from twotower.reports.labbook import read_labbook
from twotower.reports.recipe import list_other_experiment, list_other_training
from twotower.reports.stored_results import read_stored_results

VIEW_NAMES = {"centre": "centre", "ten": "10-view"}  # crops of an evaluation -> view in the words of the notes


@dataclass(frozen=True)
class OwnResult:
    """Errors of one of our runs, in percent.

    Attributes:
        name: the key of `COUNTERPARTS`.
        images: the images that it was measured on, in words for the heading.
        comparable: whether these are the images of the paper, at the paper's width.
        view: centre or 10-view.
    """

    name: str
    images: str
    comparable: bool
    view: str
    top1_error: float
    top5_error: float


def describe_images(identity: dict[str, Any]) -> tuple[str, bool]:
    """Describes the images of predictions for a heading, and whether they are comparable with the paper's.

    A folder is called ILSVRC only if it has 1000 classes and 50,000 images (or the 150,000 of 2010's test set).
    """
    data, split = identity["data"], identity["split"]
    size = (data["num_classes"], data["num_images"])
    comparable = data["kind"] == "folder" and size in ((1000, 50_000), (1000, 150_000))
    if comparable:
        is_2010 = data["source"] == "ilsvrc2010" or size[1] == 150_000
        description = f"{'ILSVRC-2010' if is_2010 else 'ILSVRC-2012'} {split}"
    elif data["kind"] == "folder":
        classes = counted(size[0], "class", "classes")
        description = f"folder {Path(data['root']).name}, {classes}, {counted(size[1], 'image')}"
    else:
        description = f"{data['kind']}, {counted(size[1], 'image')}"
    if identity["width"] != 1:
        return f"{description}, width {identity['width']:g}", False
    return description, comparable


def _read_evaluated(run_dir: Path, name: str) -> list[OwnResult]:
    """One result for each set of images and view."""
    results: dict[tuple[str, str], OwnResult] = {}
    for stored in read_stored_results(run_dir):
        images, comparable = describe_images(stored.identity)
        result = OwnResult(
            name=name,
            images=images,
            comparable=comparable,
            view=VIEW_NAMES[stored.crops],
            top1_error=stored.top1_error,
            top5_error=stored.top5_error,
        )
        results.setdefault((images, stored.crops), result)
    return list(results.values())


def _why_left_out(run: str, config: Config, name: str | None) -> str | None:
    """The remark on a run that counts for no row; None for one that counts."""
    if name is None:
        weights = "" if config.initial_weights.path is None else ", with initial weights of another run"
        names = f"network={config.network.name}, ablation={config.ablation}{weights}"
        return f"{run} is {names}, which is no run of the lab book"
    changes = list_overridden(config) + list_other_experiment(config)
    if changes:
        return f"{run} is not the run that its yamls describe ({', '.join(changes)} differ), so it is left out"
    return None


def _list_not_evaluated(run: str, name: str, results: Sequence[OwnResult]) -> list[str]:
    """Remarks on the views that the lab book has and this run has not, with the commands that evaluate them."""
    wanted = {entry.view for entry in read_labbook() if entry.run in COUNTERPARTS[name]}
    evaluated = {result.view for result in results}
    return [
        f"{run}, {view}, not evaluated: python launch/evaluate.py {shlex.quote(run)} crops={crops}"
        for crops, view in VIEW_NAMES.items()
        if view in wanted - evaluated
    ]


def read_own_results(runs: Sequence[str]) -> tuple[list[OwnResult], set[str], list[str]]:
    """The results of our runs, the keys of `COUNTERPARTS` that they have, and remarks on missing results.

    A run whose files are damaged is left out with a remark.

    Raises: ValueError for a folder without a run, or if all of them are damaged.
    """
    results: list[OwnResult] = []
    names: set[str] = set()
    remarks: list[str] = []
    damaged: list[str] = []
    trained_apart: dict[str, list[str]] = {}  # differences in training -> runs
    for run in runs:
        if not (Path(run) / "config.yaml").exists():
            raise ValueError(f"{run} is not the folder of a run: it has no config.yaml.")
        try:
            config = read_config(Path(run))
            name = find_counterpart(config)
            reason = _why_left_out(run, config, name)
            if name is None or reason is not None:
                remarks.append(str(reason))
                continue
            apart = ", ".join(list_other_training(config, name))
            evaluated = _read_evaluated(Path(run), name)
        except (ValueError, OSError) as error:
            damaged.append(f"{run} is left out: {error}")
            continue
        trained_apart.setdefault(apart, []).append(run)
        names.add(name)
        results += evaluated
        remarks += _list_not_evaluated(run, name, evaluated)
    if damaged and len(damaged) == len(runs):
        raise ValueError(damaged[0].partition(" is left out: ")[2])
    remarks += damaged
    for differences, members in trained_apart.items():
        if differences:
            first, more = members[0], len(members) - 1
            which = f"{first} and {more} more count" if more else f"{first} counts"
            remarks.append(f"{which}, though not trained as in 2012: {differences}")
    return results, names, remarks
