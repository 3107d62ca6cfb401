"""The versions that a result depends on, and the commit of the source it was computed with."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

UNKNOWN = "unknown"
# What a git hook sets; it would have git look into the repository that the hook belongs to.
_ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")


def commit_of(file: Path) -> str:
    """The commit that the repository of `file` is at, with "+changes" if files that it tracks differ from it.

    "unknown" unless the repository tracks `file`: an environment within somebody's own repository lies in a
    repository, but is not of it. Untracked files are what commands have written, and change nothing.
    """
    file = file.resolve()
    git = ["git", "--no-optional-locks", "-C", str(file.parent)]
    environment = {key: value for key, value in os.environ.items() if key not in _ELSEWHERE}

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


def versions() -> dict[str, str]:
    """The versions a result depends on, and the commit of the source, or "unknown": see `commit_of`."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
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
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    found["commit"] = commit_of(Path(__file__))
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found
