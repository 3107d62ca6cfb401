"""One process at a time works in a run, a sweep or a set under preparation; a killed one holds no lock."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime as true_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.commands import environment
from helpers.contents import contents
from helpers.fake_runs import fake_config
from twotower.config import Config
from twotower.ground.locks import HeldError, held
from twotower.runs import rundir
from twotower.runs.failure import read_failure
from twotower.runs.rundir import LOCK, hold_home
from twotower.training.processes import run
from twotower.training.ready_run import receive_run
from twotower.training.sweep import Job, Sweep

HOLDER = """
import os, subprocess, sys, time
from pathlib import Path
from twotower.ground.locks import held
with held(Path(sys.argv[1]), "it is held"):
    children = [subprocess.Popen(["sleep", "60"], close_fds=False).pid]
    begun, tell = os.pipe()
    if not (forked := os.fork()):
        os.write(tell, b".")
        time.sleep(60)
        os._exit(0)
    os.read(begun, 1)  # only a child that has begun to run can have closed its copy of the lock
    print(*children, forked, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_lock_ends_with_its_process_and_not_with_what_that_leaves_behind(tmp_path: Path) -> None:
    """The parent is killed while a started and a forked child live on."""
    lock = tmp_path / "run" / LOCK
    arguments = [sys.executable, "-c", HOLDER, str(lock)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout is not None
    children = [int(pid) for pid in process.stdout.readline().split()]
    assert len(children) == 2
    try:
        expected = rf"^it is held by another process \(process {process.pid} on .+\); wait for it or stop it\.$"
        with pytest.raises(HeldError, match=expected), held(lock, "it is held"):
            pass
        process.kill()
        process.wait()
        for child in children:
            os.kill(child, 0)  # the child lives
        with held(lock, "it is held"), pytest.raises(HeldError), held(lock, "it is held"):
            pass
        assert lock.exists(), "a folder that was there before is left as it is"
    finally:
        for pid in (process.pid, *children):
            if process.poll() is None or pid != process.pid:
                os.kill(pid, signal.SIGKILL)
        process.wait()


def test_a_folder_that_was_made_for_a_lock_goes_unless_something_came_into_it(tmp_path: Path) -> None:
    with held(tmp_path / "runs" / "a" / LOCK, "it is held"):
        pass
    assert list(tmp_path.iterdir()) == []
    with held(tmp_path / "runs" / "a" / LOCK, "it is held"):
        (tmp_path / "runs" / "a" / "metrics.jsonl").write_text("")
    assert sorted(path.name for path in (tmp_path / "runs" / "a").iterdir()) == [LOCK, "metrics.jsonl"]


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that has begun and has an evaluation."""
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "run"
    (run_dir / "predictions").mkdir(parents=True)
    for name in ("metrics.jsonl", "summary.json", "failure.json", "evaluation.json", "predictions/a.safetensors"):
        (run_dir / name).write_text(json.dumps({"error": name}))
    return run_dir


def run_plain(config: Config) -> Any:
    return run(config)


def run_under_torchrun(config: Config) -> Any:
    world = SimpleNamespace(num_replicas=1, from_first=lambda _name, make: make())
    with ExitStack() as stack:
        return receive_run(config, world, stack)  # type: ignore[arg-type]


@pytest.mark.parametrize("start", [run_plain, run_under_torchrun])
@pytest.mark.parametrize("resume", ["auto", "none"])
def test_a_second_training_is_refused_before_it_does_anything(
    training: Path, start: Callable[[Config], Any], resume: str
) -> None:
    """The second process reads neither the missing data nor the folder, whose files are about to change."""
    if resume == "none":  # it has only begun
        (training / "metrics.jsonl").unlink()
    with held(training / LOCK, "it is held"):
        before = contents(training)
        config = fake_config(training / "no data", "run_dir=run", f"resume={resume}")
        sentence = rf"^run_dir=run is being trained by another process \(process {os.getpid()} on .*\); wait for it"
        with pytest.raises(ValueError, match=sentence):
            start(config)
        assert contents(training) == before
    with pytest.raises(ValueError, match=r"data\.root=run/no data does not exist"):
        start(config)
    assert contents(training) == before


def test_runs_that_begin_in_one_second_have_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = fake_config(tmp_path)
    now = true_datetime.now()
    monkeypatch.setattr(rundir, "datetime", SimpleNamespace(now=lambda: now))
    with hold_home(config) as first:
        # A second process that checked before the first one made its folder sees this.
        monkeypatch.setattr(Path, "exists", _absent_once(first.run_dir, Path.exists))
        with hold_home(config) as second:
            assert sorted(path.name for path in Path("runs").iterdir()) == [first.run_dir.name, second.run_dir.name]
    assert second.run_dir != first.run_dir
    assert not Path("runs").exists()


def _absent_once(path: Path, exists: Callable[[Path], bool]) -> Callable[[Path], bool]:
    told: list[Path] = []

    def answer(asked: Path) -> bool:
        if asked == path and not told:
            told.append(asked)
            return False
        return exists(asked)

    return answer


def test_one_sweep_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Sweep("trial", [Job("a=0", tmp_path / "trial" / "a=0")])
    with sweep.alone():
        with (
            pytest.raises(ValueError, match=r"^sweep_dir=.*trial is being worked on by another process"),
            sweep.alone(),
        ):
            pass
        # A job that another process trains, here or on another host, is left alone: no note, no failure.
        run_dir = sweep.jobs[0].run_dir
        with held(run_dir / LOCK, "it is held"):
            before = contents(run_dir)
            sweep.run_job(0, lambda: fake_config(tmp_path / "no data"), run)
            assert contents(run_dir) == before
    assert "is being trained by another process" in capsys.readouterr().out
    assert read_failure(run_dir) is None
    assert sweep.outcome(sweep.jobs[0]).status == "unfinished"
    assert sweep.exit_status() == 1
