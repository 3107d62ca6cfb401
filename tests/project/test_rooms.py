"""The rooms of the package: few, and a wrong import is found."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import ROOT

PACKAGE = ROOT / "src" / "twotower"
WRONG = {
    "an import upwards": ("model/layers.py", "import twotower.training.optim", "model is not allowed to import"),
    "a circle": ("runs/events.py", "import twotower.runs.journal", "No cycles are allowed"),
    "W&B in training": ("training/layer_scales.py", "import wandb", "twotower is not allowed to import wandb"),
    "DALI in the towers": ("model/tower.py", "import nvidia.dali", "twotower is not allowed to import nvidia"),
    "matplotlib in training": ("training/stuck_loss.py", "import matplotlib", "is not allowed to import matplotlib"),
}


def test_the_package_has_few_rooms() -> None:
    entries = [path for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 20
    assert 10 <= len([path for path in entries if path.is_dir()]) <= 14


def test_tests_have_the_same_rooms() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    tests = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert tests - {"helpers", "project", "campaigns", "course"} == rooms
    assert not list((ROOT / "tests").glob("test_*.py"))


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter on a copy of the package, with the contracts of pyproject.toml."""
    script = (
        f"import sys; sys.path.insert(0, {str(folder / 'src')!r}); from importlinter.cli import lint_imports; "
        "sys.exit(lint_imports(no_cache=True))"
    )
    return subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rooms")
    shutil.copytree(PACKAGE, folder / "src" / "twotower", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_wrong_imports_are_found(copy: Path) -> None:
    """All at once, because each look at the whole package takes a second; and none before they are made."""
    right = lint(copy)
    assert right.returncode == 0, right.stdout
    assert "0 broken" in right.stdout
    for name, line, _ in WRONG.values():
        path = copy / "src" / "twotower" / name
        path.write_text(path.read_text() + f"\n{line}\n")
    wrong = lint(copy)
    assert wrong.returncode == 1
    told = " ".join(wrong.stdout.split())
    assert [name for name, (_, _, sentence) in WRONG.items() if sentence not in told] == []


def test_torch_distributed_is_for_the_wire_alone(copy: Path) -> None:
    (copy / "src" / "twotower" / "model" / "wrong.py").write_text("import torch.distributed as dist\n\nprint(dist)\n")
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "TID251", "src"],
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "only distributed/ knows of other processes" in done.stdout
    assert "src/twotower/model/wrong.py" in done.stdout
    assert "src/twotower/distributed" not in done.stdout
