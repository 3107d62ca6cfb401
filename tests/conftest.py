"""Fixtures that several rooms share."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hydra
import pytest
import torch

from helpers.commands import draw_images
from helpers.paths import ROOT
from helpers.slow_tests import SLOW_FILES
from twotower.command_line import command
from twotower.config import register_schemas

TESTS = Path(__file__).resolve().parent


def pytest_configure(config: pytest.Config) -> None:
    """GPUs are for `make test-gpu`; all else means the CPU, also on a machine that has some."""
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: its kernels then run on the CPU
    # Hundreds of processes are started, and each would compile the sources anew: a third of what a start takes.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        room, _, file = item.path.relative_to(TESTS).as_posix().partition("/")
        if file.removesuffix(".py") in SLOW_FILES.get(room, ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def pytests_own_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that is called as a function leaves Ctrl-C and the alarm of the time-outs to pytest."""
    monkeypatch.setattr(command, "catch_stops", lambda: None)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 + 7 noisy images of three colours, as a folder to train on."""
    return draw_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Of torch, for a module: more of them only wait for each other on small networks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def composing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within Hydra, in a folder where no sweep has been."""
    monkeypatch.chdir(tmp_path)
    register_schemas()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield
