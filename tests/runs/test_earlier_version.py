"""What an earlier version wrote is read by this one: runs, checkpoints, sweeps and exported files.

The folder `earlier_version` was made by that version; its README says how. Its figures are the oracle here.
"""

import json
import shutil
from pathlib import Path

import hydra
import pytest
import torch
import yaml
from safetensors.torch import load_file

from twotower.command_line.start import check_command_line
from twotower.config import EvaluateConfig, ExportConfig, check, resolve
from twotower.config.moved_keys import MOVED
from twotower.config.stored_config import read_config
from twotower.evaluation.evaluate import evaluate_run
from twotower.evaluation.predictions import Predictions, read, store
from twotower.reports.collect import find_runs
from twotower.runs.checkpoint import verify_checkpoint
from twotower.training.ready_run import get_ready
from twotower.training.sweep import Sweep
from twotower.weights.export import export_run
from twotower.weights.verify import verify

STORED = Path(__file__).parent / "earlier_version"
JOB = "ablation=none,seed=0"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STORED / "sweep", tmp_path / "sweep"))


def overrides_of(run: Path) -> list[str]:
    """The overrides of a run's command, with each key where it stands now."""
    command = read_config(run).command
    assert command is not None
    moved = []
    for override in command.split()[2:]:
        key, _, value = override.partition("=")
        moved.append(f"{MOVED.get(key, key)}={value}")
    return moved


def test_keys_that_have_moved_are_read_where_they_stand_now(sweep: Path) -> None:
    stored = yaml.safe_load((sweep / JOB / "config.yaml").read_text())
    assert (stored["input"]["threads"], stored["input"]["decode_once"]) == (1, "no")
    config = read_config(sweep / JOB)
    machine = config.machine
    assert (machine.loader_threads, machine.decode_once, machine.loader_device) == (1, "no", "auto")
    assert not hasattr(config.input, "decode_once")
    check(config)


@pytest.mark.parametrize("old", MOVED)
@pytest.mark.usefixtures("composing")
def test_a_key_that_has_moved_is_named_by_where_it_stands_now(old: str) -> None:
    with pytest.raises(ValueError, match=rf"^{old}=1: {old} is called {MOVED[old]} now\.$"):
        check_command_line([f"{old}=1"], "config")
    check_command_line([f"{MOVED[old]}=1"], "config")


def test_its_evaluation_gives_the_same_errors(sweep: Path) -> None:
    stored = json.loads((sweep / JOB / "evaluation.json").read_text())
    result = evaluate_run(EvaluateConfig(run=str(sweep / JOB), crops="ten", device="cpu"))
    for view in ("centre", "ten"):
        assert result[view]["top1_error"] == stored[view]["top1_error"]
        assert result[view]["loss"] == pytest.approx(stored[view]["loss"], rel=1e-5)
    assert result["num_images"] == stored["num_images"] == 128


def test_predictions_that_it_stored_count(sweep: Path, tmp_path: Path) -> None:
    """Their identity has the machine's keys among those of the input."""
    earlier = json.loads((sweep / JOB / "evaluation.json").read_text())["identity"]
    result = evaluate_run(EvaluateConfig(run=str(sweep / JOB), device="cpu"))
    ours = result["identity"] | {"data": earlier["data"], "version": earlier["version"]}
    assert ours != earlier
    path = tmp_path / "predictions.safetensors"
    size = (earlier["data"]["num_images"], earlier["data"]["num_classes"])
    empty = Predictions(torch.zeros(size), torch.zeros(size[0], dtype=torch.int64), 1.0, "centre")
    store(path, empty, earlier)
    assert read(path, ours) is not None
    assert read(path, ours | {"split": "test"}) is None
    assert read(path, ours | {"input": ours["input"] | {"offsets": 32}}) is None


def test_its_exported_network_is_what_its_run_exports_now(sweep: Path, tmp_path: Path) -> None:
    [earlier] = STORED.glob("*.safetensors")
    assert verify(earlier).step == "4"  # which computes the answer that is stored with it
    export_run(ExportConfig(run=str(sweep / JOB), output=str(tmp_path), force=True))
    theirs, ours = load_file(earlier), load_file(tmp_path / earlier.name)
    assert len(theirs) > 16
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


@pytest.mark.usefixtures("composing")
def test_its_run_goes_on_from_its_checkpoint(sweep: Path, tmp_path: Path) -> None:
    run = (sweep / JOB).rename(tmp_path / "run")
    typed = [*overrides_of(run), "schedule.epochs=2", f"resume={run}", f"run_dir={tmp_path / 'on'}"]
    with get_ready(resolve(hydra.compose("config", typed)), 1) as job:
        assert job.resume_from is not None
        assert verify_checkpoint(job.resume_from).step == 4
    different = [*typed, "network.lrn.n=3"]
    with (
        pytest.raises(ValueError, match=r"another network: network\.lrn differs"),
        get_ready(resolve(hydra.compose("config", different)), 1),
    ):
        raise AssertionError("it was taken")


@pytest.mark.usefixtures("composing")
def test_its_sweep_is_reported_and_not_run_again(sweep: Path) -> None:
    runs = find_runs([str(sweep)])
    assert [run.name for run in runs] == ["ablation=no_lrn,seed=0", "ablation=none,seed=0"]
    assert {run.status for run in runs} == {"finished"}
    swept = ("ablation=", "seed=")
    fixed = [override for override in overrides_of(sweep / JOB) if not override.startswith(swept)]
    planned = Sweep.plan([*fixed, "ablation=none,no_lrn", "seed=0,1", f"sweep_dir={sweep}"])
    statuses = {job.run_dir.name: planned.outcome(job).status for job in planned.jobs}
    assert statuses == {
        "ablation=none,seed=0": "skipped",
        "none-seed1": "unfinished",
        "ablation=no_lrn,seed=0": "skipped",
        "no_lrn-seed1": "unfinished",
    }
