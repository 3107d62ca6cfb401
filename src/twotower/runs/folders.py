"""The folders of runs below another, such as a sweep's."""

import os
from pathlib import Path

from twotower.runs import failure

_INNER = {  # folders within a run
    "checkpoints",
    "wandb",
    "tensorboard",
    "predictions",
    "features",
    "figures",
    "export",
    "huggingface",
    ".twotower",
}


def list_folders(root: Path) -> list[Path]:
    """Folders of runs, and of jobs that failed before they were one, below `root`, itself included, by name."""
    folders = []
    for path, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if name not in _INNER)
        if {"config.yaml", *failure.NOTES} & set(files):
            folders.append(Path(path))
    return folders
