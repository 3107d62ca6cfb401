"""The commit in versions.json is that of this package, or unknown; files that commands write are no changes."""

import shutil
import subprocess
from pathlib import Path

import pytest

from helpers.paths import ROOT
from twotower.ground.versions import read_commit, read_versions

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
# Files that the commands in the README and in the yamls' headers write into the current folder.
WRITTEN = (
    *("runs/a/config.yaml", "sweeps/a/b/config.yaml", "datasets/shapes/shapes.json", "wandb/a", "report/report.html"),
    *("benchmark.json", "figure1.png", "figure1.svg", "figure1.csv", "figure1.json", "figure2.svg", "curves.png"),
    *("curves.csv", "labbook.csv", "labbook.md", "ensemble.json"),
    *("predict.png", "predict.csv", "timeline.svg", "timeline.json", "memory.svg", "doctor.md", "features/conv2.npy"),
)


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a package in it. Returns a module of the package."""
    module = tmp_path / "project" / "src" / "module.py"
    module.parent.mkdir(parents=True)
    module.write_text("a = 1\n")
    shutil.copy(ROOT / ".gitignore", tmp_path / "project")
    git(tmp_path / "project", "init", "--quiet")
    assert read_commit(module) == "unknown", "there is no commit yet"
    git(tmp_path / "project", "add", ".")
    git(tmp_path / "project", "commit", "--quiet", "--message", "first")
    return module


def test_the_commit_is_that_of_the_repository_that_tracks_the_package(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = git(checkout.parent, "rev-parse", "HEAD")
    assert len(head) == 40
    assert read_commit(checkout) == head
    (checkout.parent / "notes.txt").write_text("what a command wrote")
    assert read_commit(checkout) == head
    (tmp_path / "link.py").symlink_to(checkout)
    assert read_commit(tmp_path / "link.py") == head
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "another.git"))  # the environment of a hook of another repository
    assert read_commit(checkout) == head
    checkout.write_text("a = 2\n")
    assert read_commit(checkout) == f"{head}+changes"


def test_an_environment_within_somebodys_repository_has_not_its_commit(checkout: Path, tmp_path: Path) -> None:
    installed = tmp_path / "project" / "venv" / "lib" / "module.py"
    installed.parent.mkdir(parents=True)
    shutil.copy(checkout, installed)
    assert read_commit(installed) == "unknown"
    (tmp_path / "alone.py").write_text("")
    assert read_commit(tmp_path / "alone.py") == "unknown"


def test_without_git_it_is_unknown(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_commit(checkout) == "unknown"
    assert read_versions()["commit"] == "unknown"


def test_what_commands_write_is_ignored_and_results_are_not(checkout: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    for name in WRITTEN:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("")
    assert git(project, "status", "--porcelain") == ""
    (project / "results" / "mine").mkdir(parents=True)
    for name in ("figure1.png", "curves.csv", "runs.csv", "labbook.md"):
        (project / "results" / "mine" / name).write_text("")
    git(project, "add", ".")
    assert len(git(project, "diff", "--cached", "--name-only").splitlines()) == 4
