"""Campaigns are found and run, each in short here; `make campaigns` runs them in full.

A campaign changes signals, limits and the folder of its process, so each has a process of its own.
"""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import campaigns
from campaigns import FAILURES, list_campaigns, overrides, run_all
from helpers.commands import environment
from helpers.paths import ROOT

DEADLINE = 200  # seconds, for one short campaign; far above what it takes


def start(*arguments: str, script: str = "") -> tuple[int, str]:
    command = [sys.executable, *(("-c", script) if script else ("-m", *arguments))]
    done = subprocess.run(
        command,
        cwd=ROOT / "tests",
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    return done.returncode, done.stdout


def counted(output: str, outcome: str) -> int:
    line = next(line for line in output.splitlines() if f" {outcome} " in line)
    return int(line.strip("│ ").rpartition("│")[2])


def test_every_campaign_is_found() -> None:
    """Modules without `run` are what campaigns have in common."""
    files = [path for path in Path(campaigns.__file__).parent.glob("*.py") if not path.stem.startswith("_")]
    found = {path.stem for path in files if "\ndef run(" in path.read_text()}
    assert {"overrides", "files", "kills"} <= found
    assert set(list_campaigns()) == found
    assert "python -m campaigns" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize(("failures", "status"), [((0, 0), 0), ((0, 2), 1)])
def test_one_failure_in_any_campaign_is_the_status_of_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failures: tuple[int, int], status: int
) -> None:
    given: list[tuple[int, int]] = []

    def campaign(number: int) -> SimpleNamespace:
        def run(count: int, seed: int, say: campaigns.Say) -> dict[str, int]:
            given.append((count, seed))
            return {"fine": count - number, FAILURES: number}

        return SimpleNamespace(run=run, SHORT=5)

    found = {name: campaign(number) for name, number in zip(("first", "second"), failures, strict=True)}
    monkeypatch.setattr(campaigns, "list_campaigns", lambda: found)
    assert run_all(["--short", "--seed", "3"]) == status
    assert run_all([]) == status
    assert given == 2 * [(5, 3)] + 2 * [(campaigns.FULL, 0)]
    assert counted(capsys.readouterr().out.replace("┃", "│"), FAILURES) in failures
    monkeypatch.setattr(campaigns, "list_campaigns", dict)
    assert run_all([]) == 1, "nothing was run"


def test_random_overrides_are_taken_or_refused_in_a_sentence() -> None:
    status, output = start("campaigns.overrides", "--count", str(overrides.SHORT), "--seed", "0")
    assert status == 0, output
    assert counted(output, FAILURES) == 0
    assert counted(output, overrides.ACCEPTED) >= overrides.SHORT // 10
    assert counted(output, overrides.SENTENCE) >= overrides.SHORT // 10


BROKEN = """
from campaigns import overrides
from twotower.training import ready_run
from twotower.config import value_bounds
lines = []
with overrides._prepared() as patch:
    base = ["two_gpu", *overrides.GIVEN["two_gpu"]]
    assert overrides.try_one([*base, "optim.momentum=2"])[0] == overrides.SENTENCE
    assert overrides.try_one([*base, "optim.momentum=x"])[0] == overrides.COMPOSED
    assert overrides.try_one([*base, "seed=3"]) == (overrides.ACCEPTED, "")
    patch.setattr("twotower.config.keys.Bounds.contain", lambda bounds, number: True)
    outcome, said = overrides.try_one([*base, "network.pool.size=0"])
    assert outcome == overrides.TRACEBACK, said
    patch.setattr(ready_run, "check", lambda config: 1 / 0)
    outcome, said = overrides.try_one([*base, "seed=3"])
    assert (outcome, said.split()[0]) == (overrides.TRACEBACK, "ZeroDivisionError")
    patch.setattr(ready_run, "check", lambda config: [i for i in range(10**9)])
    patch.setattr(overrides, "LONGEST_SECONDS", 0.5)
    assert overrides.try_one([*base, "seed=3"])[0] == overrides.SLOW
assert overrides.Draw(1, 2).stream.random() == overrides.Draw(1, 2).stream.random()
print("all was seen")
"""


def test_a_fault_is_seen() -> None:
    """A value that is wrongly taken, a traceback and a hang are not counted as anything else."""
    status, output = start(script=BROKEN)
    assert status == 0, output
    assert "all was seen" in output
