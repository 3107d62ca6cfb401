"""What `make` installs: training less than the tests, the small torch where it is asked for, and its sentences."""

import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
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
    for target, wanted in (("train", "cuda13"), ("install", "cuda13"), ("test", "dev,cuda13")):
        status, text = make(folder, "-n", target)
        assert status == 0
        wanted = f"--editable '.[{wanted}]'"
        assert [line.removeprefix("--quiet --disable-pip-version-check ") for line in installs(text)] == [wanted]


@pytest.mark.parametrize(("torch", "dali"), [("cpu", "cuda13"), ("cuda12", "cuda12"), ("default", "cuda13")])
def test_one_build_of_dali_is_installed(folder: Path, torch: str, dali: str) -> None:
    """Two of them overwrite each other's files."""
    for target, extras in (("train", dali), ("test", f"dev,{dali}")):
        status, text = make(folder, "-n", target, f"TORCH={torch}")
        assert status == 0
        assert installs(text)[-1].endswith(f"--editable '.[{extras}]'")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert not [requirement for requirement in project["dependencies"] if "dali" in requirement]
    builds = {name: part for name, part in project["optional-dependencies"].items() if "dali" in " ".join(part)}
    assert {name: len(part) for name, part in builds.items()} == {"cuda13": 1, "cuda12": 1}


def test_the_small_torch_trains_on_the_cpu(folder: Path) -> None:
    """Also where there is a GPU, which it could not use, and which it would be refused for."""
    assert "two_gpu.py machine.device=cpu" in make(folder, "-n", "train", "TORCH=cpu")[1]
    assert "two_gpu.py \n" in make(folder, "-n", "train")[1]


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
@pytest.mark.parametrize(("torch", "folder_of_index"), [("cpu", "cpu"), ("cuda12", "cu126")])
def test_another_torch_comes_first_and_from_its_index(
    folder: Path, target: str, index: str, torch: str, folder_of_index: str
) -> None:
    arguments = [f"TORCH_INDEX={index}"] if index else []
    status, text = make(folder, "-n", target, f"TORCH={torch}", *arguments)
    assert status == 0
    first, second = installs(text)
    assert f"--index-url {index or f'https://download.pytorch.org/whl/{folder_of_index}'} " in first
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


@pytest.mark.parametrize(
    ("torch", "has", "fits"),
    [
        ("cpu", "None", True),
        ("cpu", "'13.0'", False),
        ("cuda12", "'12.6'", True),
        ("cuda12", "'13.0'", False),
        ("cuda12", "None", False),
    ],
)
def test_another_build_is_not_taken_for_the_one_asked_for(folder: Path, torch: str, has: str, fits: bool) -> None:
    """A .venv with the other build: said, and nothing is downloaded beside it."""
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    for name in ("made", "torch-default", "installed"):
        (folder / ".venv" / name).touch()
    # It answers what is asked of torch, and installs nothing.
    (folder / "torch.py").write_text(f"from types import SimpleNamespace\nversion = SimpleNamespace(cuda={has})\n")
    python.write_text(f'#!/bin/sh\ncase "$1" in -m) exit 0;; esac\nPYTHONPATH={folder} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    status, text = make(folder, "install", f"TORCH={torch}")
    refused = f"has another build of torch, which TORCH={torch} does not replace; remove it first: make clean" in text
    assert refused != fits
    assert (status == 0) == fits
    assert (folder / ".venv" / f"torch-{torch}").exists() == fits


@pytest.mark.parametrize("lists", [True, False])
def test_an_audit_is_of_all_that_is_installed(folder: Path, lists: bool) -> None:
    """By its name and version without the build; and of nothing at all it is no audit."""
    python, audit = folder / ".venv" / "bin" / "python", folder / ".venv" / "audit" / "bin" / "pip-audit"
    for program, body in (
        (python, f'{"exec" if lists else "exit 1 #"} {sys.executable} "$@"'),
        (audit, f'echo "$@" > {folder}/asked; cp .venv/audit/installed.txt {folder}/compared'),
    ):
        program.parent.mkdir(parents=True)
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    for name in ("made", "torch-default", "installed", "installed-dev"):
        (folder / ".venv" / name).touch()
    status, text = make(folder, "audit")
    assert (status == 0) == lists, text
    assert (folder / "compared").exists() == lists
    if lists:
        assert "--strict" in (folder / "asked").read_text()
        compared = dict(line.split("==") for line in (folder / "compared").read_text().splitlines())
        assert {name: compared[name] for name in ("torch", "numpy", "hydra-core")} == {
            name: version(name).partition("+")[0] for name in ("torch", "numpy", "hydra-core")
        }
        assert "twotower" not in compared


def test_an_audit_compares_with_a_copy_on_disk_where_one_is_named(folder: Path) -> None:
    for given, wanted in (
        ([], None),
        (["ADVISORIES=some copy"], ".venv/bin/python deploy/audit_offline.py 'some copy' "),
    ):
        status, text = make(folder, "-n", "audit", *given)
        assert status == 0
        (line,) = [line for line in text.splitlines() if "--strict" in line]
        assert line.startswith(f"{wanted or ''}.venv/audit/bin/pip-audit --strict")


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
    assert dependencies["dependencies"][-1] == {"pip": ["--editable .[cuda13]"]}
