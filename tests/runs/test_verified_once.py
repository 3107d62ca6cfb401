"""Each command hashes a checkpoint once: half a gigabyte at full width takes seconds."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import twotower
from helpers.fake_runs import draw_images, fake_config, fake_run
from twotower.config import EvaluateConfig, ExportConfig
from twotower.data.dataset import MEAN_IMAGE
from twotower.evaluation.evaluate import evaluate_run
from twotower.evaluation.subject import open_subject
from twotower.figures.figure3 import read_kernels
from twotower.reports.collect import find_runs
from twotower.runs import checkpoint
from twotower.runs.rundir import check_resumable
from twotower.weights.export import export_run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("once")
    run = fake_run(folder / "run", draw_images(folder / "images"), "data.size=72")
    subject = open_subject(str(run), EvaluateConfig(run=str(run), device="cpu"))
    np.save(run / MEAN_IMAGE, subject.dataset.mean_image)
    (run / "metrics.jsonl").write_text("")
    return run


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file of a checkpoint was hashed."""
    counts: Counter[str] = Counter()
    original = checkpoint.hash_file

    def count(path: Path) -> str:
        counts[path.name] += 1
        return original(path)

    monkeypatch.setattr(checkpoint, "hash_file", count)
    return counts


def _resume(run: Path, tmp_path: Path) -> None:
    config = fake_config(run.parent / "images", "data.size=72")
    classes = [f"c{label}" for label in range(7)]
    check_resumable(checkpoint.find(run), config, classes, {})


COMMANDS: dict[str, Callable[[Path, Path], object]] = {
    "evaluate": lambda run, folder: evaluate_run(EvaluateConfig(run=str(run), device="cpu", fresh=True)),
    "load_network": lambda run, folder: twotower.load_network(run, device="cpu"),
    "export": lambda run, folder: export_run(ExportConfig(run=str(run), output=str(folder), force=True)),
    "figure3": lambda run, folder: read_kernels(run),
    "report": lambda run, folder: find_runs([str(run)]),
    "resume": _resume,
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_hashes_a_checkpoint_once(run: Path, tmp_path: Path, hashed: Counter[str], name: str) -> None:
    COMMANDS[name](run, tmp_path)
    assert hashed == {"tower0.safetensors": 1, "tower1.safetensors": 1}


def test_a_report_that_looks_twice_hashes_once(run: Path, hashed: Counter[str]) -> None:
    first = find_runs([str(run)])
    again = find_runs([str(run)], None, {each.run_dir: each.manifest for each in first})
    assert again[0].manifest == first[0].manifest is not None
    evaluate_run(EvaluateConfig(run=str(run), device="cpu", fresh=True), first[0].manifest)
    assert set(hashed.values()) == {1}
