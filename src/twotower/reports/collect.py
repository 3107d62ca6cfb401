"""Finds the runs below some folders, and reads each.

A run is a folder with config.yaml and metrics.jsonl; a sweep leaves failure.json and not_applicable.json for jobs
that went another way. Only finished runs count in comparisons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from twotower.reports.read_run import read_run
from twotower.reports.run_records import Trace
from twotower.runs.checkpoint import Manifest
from twotower.runs.folders import list_folders


def find_runs(
    roots: Sequence[str],
    data_root: str | None = None,
    verified: Mapping[Path, Manifest | None] = MappingProxyType({}),
) -> list[Trace]:
    """All runs below `roots`, each once, under different names.

    Args:
        data_root: where the images of all runs are now; None: where each was trained on them.
        verified: by run, the manifest of its last checkpoint, where that has been verified already.

    Raises: ValueError for a folder that does not exist or holds no run.
    """
    if not roots:
        raise ValueError("give the folders of sweeps and runs: python launch/report.py DIR [DIR ...]")
    runs: dict[Path, Trace] = {}
    for root in roots:
        if not Path(root).is_dir():
            raise ValueError(f"{root} is no folder; give the folder of a sweep or of a run, such as sweeps/NAME.")
        folders = list_folders(Path(root))
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
            runs.setdefault(folder.resolve(), read_run(folder, name, data_root, verified.get(folder)))
    names = [run.name for run in runs.values()]
    return [
        replace(run, name=str(path.relative_to(path.parents[1]))) if names.count(run.name) > 1 else run
        for path, run in runs.items()
    ]
