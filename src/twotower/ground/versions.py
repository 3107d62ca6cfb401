"""Reads the versions that a result depends on, and the commit of the source that computed it."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from pydantic import TypeAdapter

UNKNOWN = "unknown"
VERSIONS = TypeAdapter(dict[str, str])  # the form of a run's versions.json
# Variables that a git hook sets, and that would lead git to the repository of the hook.
_HOOK_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")


def read_commit(file: Path) -> str:
    """The commit of the repository of `file`, with "+changes" if files that it tracks differ from the commit.

    It is "unknown" unless the repository tracks `file`, because an installed package may lie inside somebody's own
    repository. Untracked files do not count, because commands write such files.
    """
    file = file.resolve()
    git = ["git", "--no-optional-locks", "-C", str(file.parent)]
    environment = {key: value for key, value in os.environ.items() if key not in _HOOK_VARIABLES}

    def ask(*arguments: str) -> str:
        done = subprocess.run(
            [*git, *arguments], capture_output=True, text=True, timeout=10, env=environment, check=True
        )
        return done.stdout.strip()

    try:
        ask("ls-files", "--error-unmatch", file.name)
        changes = ask("status", "--porcelain", "--untracked-files=no")
        return ask("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):  # no git, no repository, not tracked, no commit yet
        return UNKNOWN


def read_versions() -> dict[str, str]:
    """Versions by package, and `commit`, the commit of the source as `read_commit` gives it."""
    numbers = {"python": platform.python_version(), "machine": platform.machine()}
    for package in (
        "twotower",
        "torch",
        "nvidia-dali-cuda130",
        "nvidia-dali-cuda120",
        "numpy",
        "hydra-core",
        "wandb",
    ):
        try:
            numbers[package] = version(package)
        except PackageNotFoundError:
            continue
    numbers["commit"] = read_commit(Path(__file__))
    if torch.cuda.is_available():
        numbers["gpu"] = torch.cuda.get_device_name()
    return numbers
