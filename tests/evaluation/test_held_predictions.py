"""Stored predictions are held by the one process that computes them; reading them holds nothing."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import command, environment, finish
from helpers.contents import contents
from helpers.fake_runs import draw_images, fake_run
from helpers.paths import ROOT
from twotower.config import EvaluateConfig, ReportConfig
from twotower.evaluation import evaluate
from twotower.evaluation.evaluate import evaluate_run
from twotower.ground.locks import HeldError, held
from twotower.reports import make
from twotower.runs.rundir import LOCK

pytestmark = pytest.mark.usefixtures("one_thread")

REFUSED = "predictions of {run} are being computed by another process (process {pid} on "
# An evaluation that stops when it begins to compute, until it is killed.
COMPUTER = """
import sys, time
from twotower.config import EvaluateConfig
from twotower.evaluation import evaluate
def compute(*_):
    print("computing", flush=True)
    time.sleep(120)
evaluate._compute = compute
evaluate.evaluate_run(EvaluateConfig(run=sys.argv[1], device="cpu", fresh=True))
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("images"), num_val=1)


@pytest.fixture
def run(images: Path, tmp_path: Path) -> Path:
    return fake_run(tmp_path / "run", images)


def settings(run: Path, **changes: Any) -> EvaluateConfig:
    return EvaluateConfig(run=str(run), device="cpu", batch_size=8, **changes)


@contextmanager
def computing(run: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that computes predictions of the run, and does not end by itself."""
    variables = environment() | {"PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        [sys.executable, "-c", COMPUTER, str(run)], stdout=subprocess.PIPE, text=True, env=variables
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "computing\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.timeout(300)
def test_a_second_evaluation_is_refused_and_a_killed_one_holds_nothing(run: Path) -> None:
    evaluate_run(settings(run))
    with computing(run) as process:
        before = contents(run)
        sentence = re.escape(REFUSED.format(run=run, pid=process.pid))
        for changes in ({"crops": "ten"}, {"fresh": True}):
            with pytest.raises(HeldError, match=rf"^{sentence}.*\); wait for it or stop it\.$"):
                evaluate_run(settings(run, **changes))
        assert contents(run) == before
        status, output = finish(command(str(run), "crops=ten", "device=cpu", cwd=run.parent, script="evaluate.py"))
        assert (status, output.strip().count("\n")) == (1, 0)
        assert output.startswith("error: " + REFUSED.format(run=run, pid=process.pid))
        assert contents(run) == before
        assert evaluate_run(settings(run))["centre"]["stored"], "what is complete can be read"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not evaluate_run(settings(run, crops="ten"))["ten"]["stored"]
    assert len(list((run / "predictions").glob("*.safetensors"))) == 2


def test_it_is_held_while_it_computes_and_not_longer(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of one process stand for two; the second one finds what the first one has stored."""
    begun, go_on = threading.Event(), threading.Event()
    compute: Callable[..., Any] = evaluate._compute

    def slowly(*arguments: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return compute(*arguments)

    monkeypatch.setattr(evaluate, "_compute", slowly)
    results: list[dict[str, Any]] = []
    first = threading.Thread(target=lambda: results.append(evaluate_run(settings(run))))
    first.start()
    try:
        assert begun.wait(60)
        with pytest.raises(HeldError, match=re.escape(REFUSED.format(run=run, pid=os.getpid()))):
            evaluate_run(settings(run))
    finally:
        go_on.set()
        first.join()
    monkeypatch.undo()
    assert evaluate_run(settings(run))["centre"] == results[0]["centre"] | {"stored": True}
    with held(run / "predictions" / LOCK, "it is held"):
        assert evaluate_run(settings(run))["centre"]["stored"]


def test_what_another_one_has_just_stored_is_not_computed_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had looked before that one had ended."""
    look, looks = evaluate._read_stored, []

    def look_late(*arguments: Any) -> Any:
        looks.append(arguments)
        if len(looks) == 1:
            with monkeypatch.context() as patch:
                patch.setattr(evaluate, "_read_stored", look)
                evaluate_run(settings(run))
            return {}
        return look(*arguments)

    monkeypatch.setattr(evaluate, "_read_stored", look_late)
    assert evaluate_run(settings(run))["centre"]["stored"]
    assert len(looks) == 2


def test_a_run_that_trains_is_evaluated_and_others_are_too(run: Path, images: Path, tmp_path: Path) -> None:
    other = fake_run(tmp_path / "other", images)
    with held(run / LOCK, "it is trained"):
        assert not evaluate_run(settings(run))["centre"]["stored"]
        with held(run / "predictions" / LOCK, "it is held"):
            assert not evaluate_run(settings(other))["centre"]["stored"]


def test_a_report_goes_on_without_and_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ReportConfig(folders=[str(run)], evaluate=True)
    finished = [type("Finished", (), {"name": "r", "run_dir": run, "errors": {}, "manifest": None})]
    monkeypatch.setattr(make, "list_finished", lambda runs: finished)
    monkeypatch.setattr(make, "has_kernels", lambda one: True)
    with held(run / "predictions" / LOCK, "it is held"):
        (remark,) = make._complete([], asked)
    assert remark.startswith("r: " + REFUSED.format(run=run, pid=os.getpid()))
