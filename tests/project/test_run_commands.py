"""Printed commands that take a second are run, in this process: --help of each script, and what needs no run."""

import os
import runpy
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hydra._internal.config_repository import ConfigRepository

from helpers.command_checks import lines_of, load_once
from helpers.paths import ROOT
from helpers.printed_commands import collect

SCRIPTS = sorted(path.stem for path in (ROOT / "launch").glob("*.py"))


@pytest.fixture(autouse=True)
def as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of its own; signals and variables of this process as they were."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(ConfigRepository, "load_config", load_once)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    variables = dict(os.environ)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(variables)


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Of `python words`: the script, as if it were started."""
    monkeypatch.setattr(sys, "argv", [str(ROOT / words[0]), *words[1:]])
    runpy.run_path(str(ROOT / words[0]), run_name="__main__")


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 10


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_the_command(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with suppress(SystemExit):
        run(monkeypatch, f"launch/{script}.py", "--help")
    assert f"python launch/{script}.py" in capsys.readouterr().out


def printed(*words: str) -> tuple[str, ...]:
    """The words, if they are a printed command."""
    lines = [line for one in collect() if "launch/" in one.text and not one.problem for line in lines_of(one)]
    assert shlex.join(["python", *words]) in lines
    return words


def test_what_needs_no_run_is_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, *printed("launch/describe.py", "network=alexnet", "output=figure2.svg"))
    assert "drawn: figure2.svg" in capsys.readouterr().out
    assert Path("figure2.svg").stat().st_size > 10_000
    run(monkeypatch, *printed("launch/labbook.py"))
    assert "Table 1" in capsys.readouterr().out
    run(monkeypatch, *printed("launch/two_gpu.py", "network=caffenet"), "--cfg", "job")
    assert "name: caffenet" in capsys.readouterr().out


def test_the_dashboard_is_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb_workspaces")
    run(monkeypatch, *printed("launch/dashboard.py"))
    assert "valid, not saved" in capsys.readouterr().out
