"""What `make` installs: training less than the tests, the small torch where it is asked for, and its sentences."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from helpers.paths import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout without .venv, as far as make looks at it."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(folder: Path, *arguments: str) -> tuple[int, str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "TORCH", "PYTHON"))}
    done = subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


def installs(text: str) -> list[str]:
    return [line.partition("pip install ")[2] for line in text.splitlines() if "pip install" in line]


def test_training_installs_less_than_the_tests(folder: Path) -> None:
    for target, wanted in (("train", "--editable ."), ("install", "--editable ."), ("test", "--editable '.[dev]'")):
        status, text = make(folder, "-n", target)
        assert status == 0
        assert [line.removeprefix("--quiet --disable-pip-version-check ") for line in installs(text)] == [wanted]


def test_what_is_installed_is_not_installed_again(folder: Path) -> None:
    """The tests' packages are enough for training, and not the other way round."""
    (folder / ".venv").mkdir()
    for name in ("made", "torch-default", "installed"):
        (folder / ".venv" / name).touch()
    assert not installs(make(folder, "-n", "train")[1])
    assert len(installs(make(folder, "-n", "test")[1])) == 1
    (folder / ".venv" / "installed-dev").touch()
    assert not installs(make(folder, "-n", "test")[1])
    os.utime(folder / "pyproject.toml", (2e9, 2e9))
    assert len(installs(make(folder, "-n", "train")[1])) == 1


@pytest.mark.parametrize("target", ["train", "test"])
@pytest.mark.parametrize("index", ["", "https://example.org/wheels"])
def test_the_small_torch_comes_first_and_from_its_index(folder: Path, target: str, index: str) -> None:
    arguments = [f"TORCH_INDEX={index}"] if index else []
    status, text = make(folder, "-n", target, "TORCH=cpu", *arguments)
    assert status == 0
    first, second = installs(text)
    assert f"--index-url {index or 'https://download.pytorch.org/whl/cpu'} " in first
    assert "--editable" in second
    # The requirement is taken from pyproject.toml by a line of Python, which is run here.
    program = first.partition("-c '")[2].partition("')")[0]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=60, check=True
    )
    dependencies = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["dependencies"]
    assert done.stdout.strip() in dependencies
    assert done.stdout.startswith("torch>=")


def test_another_build_is_refused(folder: Path) -> None:
    status, text = make(folder, "-n", "train", "TORCH=gpu")
    assert status != 0
    assert "TORCH=gpu is not known; TORCH=cpu takes" in text


def test_a_torch_for_gpus_is_not_taken_for_the_small_one(folder: Path) -> None:
    """A .venv with the other build: said, and nothing is downloaded beside it."""
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    for name in ("made", "torch-default", "installed"):
        (folder / ".venv" / name).touch()
    python.write_text("#!/bin/sh\nexit 0\n")  # torch.version.cuda is something
    python.chmod(0o755)
    status, text = make(folder, "install", "TORCH=cpu")
    assert status != 0
    assert "has torch's build for GPUs, which TORCH=cpu does not replace; remove it first: make clean" in text
    assert not (folder / ".venv" / "torch-cpu").exists()


def test_a_python_without_venv_is_told_of(folder: Path) -> None:
    """As Debian's python3 is without python3-venv, which has ensurepip."""
    python = folder / "fake"
    python.write_text(f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    status, text = make(folder, "train", f"PYTHON={python}")
    assert status != 0
    assert "cannot make virtual environments" in text
    assert "apt install python3-venv" in text
    assert "Traceback" not in text
    assert not (folder / ".venv").exists()


def test_an_old_python_is_told_of(folder: Path) -> None:
    python = folder / "fake"
    python.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c \"import sys; sys.version_info = (3, 9); sys.version = '3.9.2 x'; "
        'exec(sys.argv[1])" "$2"\n'
    )
    python.chmod(0o755)
    status, text = make(folder, "train", f"PYTHON={python}")
    assert status != 0
    assert "twotower needs Python 3.11 or newer; this is 3.9.2. Try: make PYTHON=python3.12" in text
    assert not (folder / ".venv").exists()


def test_conda_installs_what_make_train_does() -> None:
    dependencies = OmegaConf.to_container(OmegaConf.load(ROOT / "environment.yml"))
    assert isinstance(dependencies, dict)
    assert dependencies["dependencies"][-1] == {"pip": ["--editable ."]}
