"""Campaigns are found, counted, and run in short; `make campaigns` runs them in full.

Here kills, disk_full, soak and overrides are run; test_damaged_files has files, test_mutated_images has images, and
test_nodes is one trial of nodes. A campaign changes signals, limits and the folder of its process, so each has a
process of its own.
"""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import campaigns
from campaigns import ATTEMPTS, FAILURES, HITS, list_campaigns, overrides, run_all
from campaigns.kills import has_traceback
from helpers.commands import environment
from helpers.paths import ROOT

DEADLINE = 500  # seconds, for one short campaign; far above what it takes

pytestmark = pytest.mark.timeout(DEADLINE + 60)


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


def cells(output: str) -> list[list[str]]:
    """The rows of the tables that were printed."""
    lines = [line.replace("┃", "│") for line in output.splitlines() if line.startswith(("│", "┃"))]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def counted(output: str, outcome: str) -> int:
    return next(int(row[2]) for row in cells(output) if len(row) == 3 and row[1] == outcome)


def summed(output: str) -> dict[str, list[str]]:
    """Seed, attempts, hits and failures by campaign."""
    return {row[0]: row[1:] for row in cells(output) if len(row) == 5}


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
    assert summed(capsys.readouterr().out)["second"] == ["3", "5", "", str(failures[1])]
    assert run_all([]) == status
    assert given == 2 * [(5, 3)] + 2 * [(campaigns.FULL, 0)]
    assert counted(capsys.readouterr().out, "fine") == campaigns.FULL
    monkeypatch.setattr(campaigns, "list_campaigns", dict)
    assert run_all([]) == 1, "nothing was run"


def test_a_campaign_that_breaks_ends_no_other_and_is_in_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def break_down(count: int, seed: int, say: campaigns.Say) -> dict[str, int]:
        raise RuntimeError("undisturbed, it ends with 1\nand more")

    def go_on(count: int, seed: int, say: campaigns.Say) -> dict[str, int]:
        return {FAILURES: 0, ATTEMPTS: 12, HITS: 7, "fine": 12}

    found = {"broken": SimpleNamespace(run=break_down), "whole": SimpleNamespace(run=go_on)}
    monkeypatch.setattr(campaigns, "list_campaigns", lambda: found)
    monkeypatch.setenv("COLUMNS", "120")
    assert run_all([]) == 1
    assert summed(capsys.readouterr().out) == {
        "campaign": ["seed", "attempts", "hits", "failures"],
        "broken": ["0", "", "", "did not end: RuntimeError: undisturbed, it ends with 1"],
        "whole": ["0", "12", "7", "0"],
    }


def test_random_overrides_are_taken_or_refused_in_a_sentence() -> None:
    status, output = start("campaigns.overrides", "--count", str(overrides.SHORT), "--seed", "0")
    assert status == 0, output
    assert summed(output)["overrides"][1::2] == [str(overrides.SHORT), "0"]
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


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.parametrize("name", ["kills", "disk_full"])
def test_what_is_cut_off_goes_on_to_the_same_bits(name: str) -> None:
    """Two attempts on the command that takes least; they may come too late on a machine that has other work."""
    for seed in ("1", "2", "3"):
        status, output = start(f"campaigns.{name}", "--count", "2", "--seed", seed, "--work", "prepare_data")
        assert status == 0, output
        _, attempts, hits, failures = summed(output)[name]
        assert (attempts, failures) == ("2", "0"), output
        if hits != "0":
            return
    raise AssertionError(output)


SOAK = """
from campaigns import soak
soak.MINUTE, soak.EVERY_SECONDS = 4.0, 0.5
soak.MOST_GROWTH = soak.Measured(megabytes=200, descriptors=10, threads=20)  # libraries still start theirs
counts = soak.run(1, 0, print)
assert counts["failures"] == 0, counts
assert counts["steps"] > 0 and counts["whole checkpoints at the end"] > 0, counts
print("all was well")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_a_training_that_soaks_for_some_seconds_is_measured_and_ends_politely() -> None:
    status, output = start(script=SOAK)
    assert status == 0, output
    assert "all was well" in output
    assert "tower 1: megabytes" in output


def test_a_traceback_is_excused_only_where_it_is_nobodys() -> None:
    """One of torchrun's agent, one of a process that was being started when its parent was killed, and ours."""
    agents = 'Traceback (most recent call last):\n  File "/lib/torch/distributed/run.py", line 9, in main\n'
    starts = 'Traceback (most recent call last):\n  File "<string>", line 1\n  File "/multiprocessing/a.py", line 2\n'
    ours = '[rank0]: Traceback (most recent call last):\n[rank0]:   File "/src/twotower/runs/a.py", line 3, in x\n'
    others = 'Traceback (most recent call last):\n  File "/lib/wandb/sdk/run.py", line 4, in x\n'
    assert not has_traceback("error: one sentence", torchrun=False, killed=False)
    assert not has_traceback(agents, torchrun=True, killed=False)
    assert has_traceback(agents, torchrun=False, killed=True)
    assert not has_traceback(starts + agents, torchrun=True, killed=True)
    assert has_traceback(starts, torchrun=True, killed=False)
    for wrong in (ours, others, agents + ours):
        assert has_traceback(wrong, torchrun=True, killed=True)
