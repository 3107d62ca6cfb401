"""Sweeps: which jobs there are and where they lie, what becomes of each, and that they go on after a kill."""

import importlib.util
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import time
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import product
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import hydra
import pytest
import yaml
from hydra.errors import HydraException

from helpers.commands import DEADLINE, NO_WANDB, SMALL, command, events, finish
from helpers.fake_runs import fake_config
from helpers.paths import ROOT
from twotower.config import Config, register_schemas, resolve
from twotower.distributed.place import Place
from twotower.distributed.transport import TowerLostError
from twotower.runs import checkpoint
from twotower.runs.failure import NotApplicableError, forget_failure, note_failure, note_not_applicable, read_failure
from twotower.training.configure import resolve_ablated
from twotower.training.explain import AlreadyExplainedError, explain
from twotower.training.processes import _await_end, start_towers
from twotower.training.ready_run import ReadyRun
from twotower.training.sweep import Job, Sweep
from twotower.training.trainer import NonFiniteLossError

CONF = ROOT / "conf"
SUMMARY = {
    "top1_error": 30.0,
    "top5_error": 9.0,
    "best_top1_error": 29.0,
    "images_per_second": 70.0,
    "seconds": 60.0,
    "epochs": 1.0,
}
DATA = ("data=folder", "data.root=nowhere")


@pytest.fixture(scope="module")
def two_gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("two_gpu", ROOT / "launch" / "two_gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names(*overrides: str) -> list[str]:
    return [job.name for job in Sweep.plan([*DATA, *overrides]).jobs]


@pytest.mark.usefixtures("composing")
def test_all_ways_to_name_values_give_hydras_jobs_in_hydras_order() -> None:
    ablations = sorted(path.stem for path in (CONF / "ablation").glob("*.yaml"))
    assert len(ablations) > 10
    assert names("ablation=glob(*)", "seed=range(1,3)") == [
        f"ablation={ablation},seed={seed}" for ablation, seed in product(ablations, (1, 2))
    ]
    assert names("seed=choice(4,2)", "network.width=1,0.5") == [
        f"seed={seed},network.width={width}" for seed, width in product((4, 2), ("1", "0.5"))
    ]
    assert names("seed=3") == ["defaults"]
    # Lists and quoted commas are values, not sweeps.
    assert names("schedule.drop_epochs=[1,2]", "logging.notes='a, b'", "seed=0,1") == ["seed=0", "seed=1"]
    assert names("++network.layers.fc6.rate=0,1") == ["++network.layers.fc6.rate=0", "++network.layers.fc6.rate=1"]


def test_a_yaml_may_bring_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Hydra's documentation has it: hydra.sweeper.params, before what the command line sweeps."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(CONF, tmp_path / "conf")
    mine = "# @package _global_\nhydra: {sweeper: {params: {seed: '0,1'}}}\n"
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(mine)
    register_schemas()
    with hydra.initialize_config_dir(str(tmp_path / "conf"), version_base="1.3"):
        assert names("experiment=mine", "optim.momentum=0.8,0.9") == [
            f"seed={seed},optim.momentum={momentum}" for seed, momentum in product((0, 1), (0.8, 0.9))
        ]


@pytest.mark.usefixtures("composing")
def test_a_zoo_is_three_seeds_with_their_trajectories(two_gpu: ModuleType) -> None:
    """Of whatever is trained; other seeds may be given, and without -m there must be one."""
    assert names("sweep=zoo") == ["seed=0", "seed=1", "seed=2"]
    assert names("experiment=cifar_80sec", "sweep=zoo", "seed=7,9") == ["seed=7", "seed=9"]
    assert Sweep.plan([*DATA, "sweep=zoo", "seed=7"]).jobs[0].run_dir.name == "seed7"
    assert Sweep.plan([*DATA, "sweep=zoo", "seed=7,9"]).name.startswith("folder-seed-")
    assert "seed-seed" not in Sweep.plan([*DATA, "sweep=zoo", "seed=7,9"]).name
    composed = hydra.compose("config", [*DATA, "sweep=zoo"], return_hydra_config=True)
    assert (composed.checkpoint.rule, hydra.compose("config", [*DATA]).checkpoint.rule) == ("trajectory", "last")
    params = composed.hydra.sweeper.params
    with pytest.raises(ValueError, match=r"one run for each of seed=0,1,2; give -m for all of them, or seed=N for a"):
        two_gpu.check_single(params, ["sweep=zoo"])
    two_gpu.check_single(params, ["sweep=zoo", "seed=1"])
    two_gpu.check_single(None, [])


@pytest.mark.usefixtures("composing")
def test_folders_are_readable_and_never_shared() -> None:
    sweep = Sweep.plan([*DATA, "ablation=none,no_lrn", "seed=0,1"])
    assert re.fullmatch("folder-ablation-seed-[0-9a-f]{6}", sweep.name)
    assert [str(job.run_dir) for job in sweep.jobs[:2]] == [
        f"sweeps/{sweep.name}/none-seed0",
        f"sweeps/{sweep.name}/none-seed1",
    ]
    # Other settings are another sweep; more values and another place to compute are not.
    assert Sweep.plan([*DATA, "ablation=none,no_lrn", "seed=0,1", "optim.momentum=0.8"]).name != sweep.name
    assert Sweep.plan([*DATA, "hydra/launcher=basic", "ablation=glob(*)", "seed=range(0,9)"]).name == sweep.name
    assert Sweep.plan([*DATA, "seed=0,1", "sweep_dir=here"]).jobs[0].run_dir == Path("here/seed0")
    alike = Sweep.plan(["data=folder", "data.root=a/b,a_b,a%b"])
    folders = [job.run_dir.name for job in alike.jobs]
    assert len(set(folders)) == 3
    assert folders[1] == "root_a_b"
    others = Sweep.plan([*DATA, "schedule=fixed,plateau", "++network.layers.fc6.rate=0,1"])
    assert [job.run_dir.name for job in others.jobs][:2] == ["schedule_fixed-rate0", "schedule_fixed-rate1"]
    assert Sweep.plan([*DATA, "seed=3"]).jobs[0].run_dir.name == "defaults"
    same = Sweep.plan([*DATA, "network.layers.fc6.rate=0,1", "network.layers.fc7.rate=0,1"])
    assert len({job.run_dir for job in same.jobs}) == 4
    for job in (*sweep.jobs, *alike.jobs, *others.jobs, *same.jobs):
        assert shlex.quote(job.run_dir.name) == job.run_dir.name
        assert "," not in job.run_dir.name
    long = Sweep.plan([*DATA, f"logging.notes={'a' * 300},{'a' * 301}"])
    assert len({job.run_dir for job in long.jobs}) == 2
    assert all(len(job.run_dir.name.encode()) < 255 for job in long.jobs)


@pytest.mark.usefixtures("composing")
def test_jobs_of_earlier_versions_stay_where_they_are(tmp_path: Path) -> None:
    """Their folders are called ablation=none,seed=0; what is finished there is not run again."""
    earlier = tmp_path / "ablation=none,seed=1"
    earlier.mkdir()
    (earlier / "summary.json").write_text(json.dumps(SUMMARY))
    sweep = Sweep.plan([*DATA, "ablation=none,no_lrn", "seed=0,1", f"sweep_dir={tmp_path}"])
    assert [job.run_dir.name for job in sweep.jobs] == ["none-seed0", earlier.name, "no_lrn-seed0", "no_lrn-seed1"]
    assert sweep.outcome(sweep.jobs[1]).status == "skipped"
    assert sweep.outcome(sweep.jobs[0]).status == "unfinished"


@pytest.mark.usefixtures("composing")
def test_a_sweep_that_another_process_has_is_refused(two_gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep.plan([*DATA, "seed=0,1", "sweep_dir=here"])
    monkeypatch.setattr(two_gpu, "sweep", sweep)
    with sweep.alone():
        sentence = r"^error: sweep_dir=here is being worked on by another process"
        with pytest.raises(SystemExit, match=sentence), two_gpu.hold_sweep():
            raise AssertionError("it began")
        assert [path.name for path in Path("here").iterdir()] == [".lock"]
    with two_gpu.hold_sweep():
        pass
    assert not Path("here").exists()


@pytest.mark.usefixtures("composing")
def test_a_run_that_is_repeated_from_its_own_folder_is_the_same(two_gpu: ModuleType) -> None:
    """Its configuration has absolute paths, its command those that were typed."""
    typed = ["data=folder", "data.root=photos", "run_dir=here/a", "seed=3"]
    config = two_gpu.configure(hydra.compose("config", typed), typed)
    assert (config.data.root, config.run_dir) == (str(Path.cwd() / "photos"), str(Path.cwd() / "here" / "a"))
    assert config.command == "python launch/two_gpu.py data=folder data.root=photos seed=3"
    sweep = Sweep.plan([*DATA, "seed=0,1", "sweep_dir=here"])
    seen = []
    sweep.run_job(0, lambda: two_gpu.configure(hydra.compose("config", typed), typed), lambda c: seen.append(c) or {})
    assert (seen[0].run_dir, sweep.jobs[0].run_dir) == (str(Path.cwd() / "here" / "seed0"), Path("here/seed0"))


@pytest.mark.usefixtures("composing")
def test_one_folder_for_all_jobs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"run_dir is for a single run.*sweep_dir=DIR"):
        Sweep.plan([*DATA, "seed=0,1", "run_dir=here"])


@pytest.mark.usefixtures("composing")
def test_an_ablation_of_what_a_network_lacks_is_not_applicable(two_gpu: ModuleType) -> None:
    def resolved(*overrides: str) -> Config:
        given = [*DATA, *overrides]
        return resolve_ablated(hydra.compose("config", given), given)

    assert resolved("ablation=no_lrn").ablation == "no_lrn"
    with pytest.raises(NotApplicableError, match=r"ablation=no_lrn changes nothing in network=alexnet_v2"):
        resolved("ablation=no_lrn", "network=alexnet_v2")
    with pytest.raises(NotApplicableError, match=r"network=cifar_four_layer has no such layer"):
        resolved("ablation=no_overlap", "network=cifar_four_layer")
    with pytest.raises(NotApplicableError, match=r"leave_out names conv4, which network=cifar_four_layer does not"):
        resolved("ablation=no_conv4", "network=cifar_four_layer")
    assert "conv4" not in resolved("ablation=no_conv4", "network=no_exchange").network.layers
    # A layer that nobody's ablation named is a mistake.
    with pytest.raises(ValueError, match=r"fc9 is changed") as caught:
        resolved("ablation=no_lrn", "+network.layers={fc9:{rate:1}}")
    assert not isinstance(caught.value, NotApplicableError)


def jobs_in(folder: Path, *names: str) -> Sweep:
    sweep = Sweep("trial", [Job(name, folder / name) for name in names])
    sweep.done_before |= {job.run_dir for job in sweep.jobs if (job.run_dir / "summary.json").exists()}
    return sweep


def finished(config: Config) -> dict[str, Any]:
    """Leaves what a run leaves, as far as a sweep reads it."""
    assert config.run_dir is not None
    Path(config.run_dir).mkdir(parents=True, exist_ok=True)
    forget_failure(Path(config.run_dir))
    (Path(config.run_dir) / "summary.json").write_text(json.dumps(SUMMARY))
    return SUMMARY


def not_applicable() -> Config:
    raise NotApplicableError("Nothing of the kind is there.")


def failing(reason: Exception) -> Any:
    def fail(_config: Config) -> dict[str, Any]:
        raise reason

    return fail


def test_each_outcome_is_told_noted_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = fake_config(tmp_path)
    sweep = jobs_in(tmp_path, "a=0", "a=1", "a=2", "a=3", "a=4")
    ran: list[Config] = []

    def run(config: Config) -> dict[str, Any]:
        ran.append(config)
        return finished(config)

    sweep.run_job(0, lambda: config, run)
    assert ran[0].run_dir == str(tmp_path / "a=0")
    assert (ran[0].resume, ran[0].logging.group) == ("auto", "trial")
    sweep.run_job(1, not_applicable, finished)
    sweep.run_job(2, lambda: config, failing(ValueError("The width is odd.")))
    sweep.run_job(3, lambda: config, failing(KeyError("a bug")))
    output = capsys.readouterr().out
    assert "job 3 of 5: a=2" in output
    assert "error: The width is odd." in output
    assert "not applicable: Nothing of the kind is there." in output
    assert re.search(r"1 of 5 finished, 1 failed, 1 not applicable, about \d+ s left", output)
    assert [sweep.outcome(job).status for job in sweep.jobs] == [
        *("finished", "not applicable", "failed", "failed", "unfinished")
    ]
    failure = read_failure(tmp_path / "a=2")
    assert failure is not None
    assert (failure["error"], failure["job"]) == ("The width is odd.", "a=2")
    assert abs(datetime.now().astimezone() - datetime.fromisoformat(failure["time"])) < timedelta(minutes=1)
    assert json.loads((tmp_path / "a=1" / "not_applicable.json").read_text()) == {
        "not_applicable": "Nothing of the kind is there.",
        "job": "a=1",
    }
    assert not (tmp_path / "a=1" / "failure.json").exists()
    assert sweep.exit_status() == 1
    # The same command once more: what failed is tried again, what is done is not.
    again = jobs_in(tmp_path, "a=0", "a=1", "a=2", "a=3", "a=4")
    again.run_job(0, lambda: config, failing(AssertionError("run twice")))
    again.run_job(1, not_applicable, finished)
    for number in (2, 3, 4):
        again.run_job(number, lambda: config, finished)
    assert [again.outcome(job).status for job in again.jobs] == [
        *("skipped", "not applicable", "finished", "finished", "finished")
    ]
    assert read_failure(tmp_path / "a=2") is None
    assert again.exit_status() == 0
    again.print_table()
    table = capsys.readouterr().out
    assert table.count("30.00") == 4
    assert "skipped" in table


def test_a_sweep_without_any_result_has_not_succeeded(tmp_path: Path) -> None:
    sweep = jobs_in(tmp_path, "a=0")
    sweep.run_job(0, not_applicable, finished)
    assert sweep.exit_status() == 1


def test_an_error_of_the_system_is_noted_with_what_to_do(tmp_path: Path) -> None:
    def run(config: Config) -> dict[str, Any]:
        (tmp_path / "no" / "x").touch()
        return {}

    sweep, expected = jobs_in(tmp_path, "a=0"), f"{tmp_path}/no/x cannot be used (No such file or directory); check "
    sweep.run_job(0, lambda: fake_config(tmp_path), run)
    assert sweep.outcome(sweep.jobs[0]).error.startswith(expected)
    (tmp_path / "run").mkdir()
    try:
        run(fake_config(tmp_path))
    except OSError as error:
        explain(error, Place(0, 2, 0, 2), tmp_path / "run")
    assert (read_failure(tmp_path / "run") or {})["error"].startswith(expected)


def test_a_failure_that_the_towers_explained_keeps_their_sentence(tmp_path: Path) -> None:
    def run(config: Config) -> dict[str, Any]:
        assert config.run_dir is not None
        if config.run_dir.endswith("0"):
            note_failure(Path(config.run_dir), "The loss is nan at step 7.")
        raise AlreadyExplainedError

    config = fake_config(tmp_path)
    sweep = jobs_in(tmp_path, "a=0", "a=1")
    for number in (0, 1):
        sweep.run_job(number, lambda: config, run)
    told = [sweep.outcome(job).error for job in sweep.jobs]
    assert told == ["The loss is nan at step 7.", "A tower's process ended and left no reason."]
    assert (read_failure(tmp_path / "a=0") or {})["job"] == "a=0"


def test_the_time_left_is_that_of_the_jobs_that_will_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 6 jobs: one done before, 40 and 80 minutes for two, so an hour each for the two that are left; one more of
    the rest was done before, too.
    """
    config = fake_config(tmp_path)
    for name in ("a=0", "a=4"):
        finished(replace(config, run_dir=str(tmp_path / name)))
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def lasting(minutes: float) -> Any:
        def run(config: Config) -> dict[str, Any]:
            clock[0] += 60 * minutes
            return finished(config)

        return run

    sweep = jobs_in(tmp_path, *(f"a={i}" for i in range(6)))
    sweep.run_job(0, lambda: config, lasting(1000))
    assert "2 of 6 finished\n" in capsys.readouterr().out
    sweep.run_job(1, lambda: config, lasting(40))
    assert "3 of 6 finished, about 2 h 00 min left" in capsys.readouterr().out  # 3 x 40 minutes
    sweep.run_job(2, lambda: config, lasting(80))
    assert "4 of 6 finished, about 2 h 00 min left" in capsys.readouterr().out  # 2 x 60 minutes
    sent: Sweep = pickle.loads(pickle.dumps(sweep))
    sent.elsewhere = True
    sent.run_job(3, lambda: config, lasting(1))
    assert "5 of 6 finished\n" in capsys.readouterr().out


def test_notes_come_and_go(tmp_path: Path) -> None:
    run_dir = tmp_path / "new" / "run"
    assert read_failure(run_dir) is None
    note_failure(run_dir, "No.")
    assert set(read_failure(run_dir) or {}) == {"error", "time"}
    note_not_applicable(run_dir, "Nothing.", "a=1")
    assert [path.name for path in run_dir.iterdir()] == ["not_applicable.json"]
    forget_failure(run_dir)
    assert list(run_dir.iterdir()) == []
    note_failure(Path("/proc/nowhere"), "The disk is full.")  # must not hide what it is about


@pytest.mark.parametrize("first_rank", [0, 1])
def test_that_a_tower_is_lost_does_not_hide_what_ended_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_rank: int
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    places = [Place(rank, 2, rank, 2) for rank in (first_rank, 1 - first_rank)]
    explain(RuntimeError("out of memory"), places[0], tmp_path)
    explain(TowerLostError("lost the other tower"), places[1], tmp_path)
    assert (read_failure(tmp_path) or {})["error"] == "RuntimeError: out of memory"
    forget_failure(tmp_path)
    explain(TowerLostError("lost the other tower"), places[1], tmp_path)
    assert (read_failure(tmp_path) or {})["error"] == "lost the other tower"
    forget_failure(tmp_path)
    for place in places:
        explain(NonFiniteLossError("The loss is nan"), place, tmp_path)
    assert (read_failure(tmp_path) or {})["error"] == "The loss is nan"
    explain(ValueError("told before there was a folder"), places[0])


def _end_by_a_kill(_local_rank: int, _ready: ReadyRun, _size: int, _rendezvous: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_tower_is_noted_by_the_process_that_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twotower.training.processes._run_tower", _end_by_a_kill)
    with pytest.raises(ChildProcessError, match=r"was ended by SIGKILL") as caught:
        start_towers(ReadyRun(fake_config(tmp_path, "network=half_tower"), tmp_path, None))
    assert (read_failure(tmp_path) or {})["error"] == str(caught.value)


class DiesAfterOneLook:
    """A process that runs when its status is read first, and has been killed when that is read again."""

    def __init__(self) -> None:
        self.looks = 0
        self.sentinel, end = os.pipe()
        os.close(end)

    @property
    def exitcode(self) -> int | None:
        self.looks += 1
        return None if self.looks == 1 else -signal.SIGKILL


def test_a_tower_that_is_killed_between_two_looks_has_not_ended_well() -> None:
    process = DiesAfterOneLook()
    try:
        assert _await_end([cast(BaseProcess, process)]) == 0
    finally:
        os.close(process.sentinel)


def test_a_sweep_that_was_killed_goes_on_by_the_same_command(images: Path, tmp_path: Path) -> None:
    """The first job is done, the second is killed in the middle, the third will not have a finite loss."""
    arguments = (*SMALL, f"data.root={images}", *NO_WANDB, "-m", "name=trial", "checkpoint.every_steps=1")
    arguments += (
        "network=half_tower",
        "logging.every_steps=1",
        "sweep_dir=here",
        "optim.learning_rate=choice(0.001,0.002,1e6)",
    )
    first, second, third = (tmp_path / "here" / f"learning_rate{rate}" for rate in ("0.001", "0.002", "1000000.0"))
    process = command(*arguments, cwd=tmp_path)
    deadline = time.monotonic() + DEADLINE
    while not any(step >= 3 for step in checkpoint.checkpoint_steps(second / "checkpoints")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    output = process.communicate()[0]
    assert "job 1 of 3: optim.learning_rate=0.001" in output
    assert re.search(r"1 of 3 finished, about \d+ (s|min \d\d s) left", output)
    assert (first / "summary.json").exists()
    assert not (second / "summary.json").exists()
    assert not third.exists()
    written = (first / "metrics.jsonl").stat().st_mtime_ns
    note_failure(second, "of an earlier attempt")

    status, output = finish(command(*arguments, cwd=tmp_path))
    assert status == 1, output
    assert (first / "metrics.jsonl").stat().st_mtime_ns == written
    assert "finished before, skipped" in output
    resumed = re.search(r"from step (\d+)", output)
    assert resumed is not None
    assert 3 <= int(resumed[1]) < 9
    assert [event["step"] for event in events(second) if event["event"] == "train"] == list(range(1, 10))
    assert not (second / "failure.json").exists()
    assert re.search(r"2 of 3 finished, about \d+ (s|min \d\d s) left", output)
    failure = read_failure(third)
    assert failure is not None
    assert failure["error"].startswith("The loss is ")
    assert failure["job"] == "optim.learning_rate=1000000.0"
    rows = dict(re.findall(r"│ optim.learning_rate=(\S+) +│ (\w+)", output))
    assert rows == {"0.001": "skipped", "0.002": "finished", "1000000.0": "failed"}


def test_a_job_runs_through_submitit(images: Path, tmp_path: Path) -> None:
    """In a process of its own, as on a cluster: names, notes, table and status are the same."""
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    arguments = (*SMALL, f"data.root={images}", *NO_WANDB, "-m", "hydra/launcher=submitit_local")
    arguments += ("network=half_tower", "schedule.max_steps=1", "sweep_dir=here", "seed=0,-1")
    status, output = finish(command(*arguments, cwd=tmp_path))
    assert status == 1, output
    rows = dict(re.findall(r"│ seed=(\S+) +│ (\w+)", output))
    assert rows == {"0": "finished", "-1": "failed"}, output
    assert json.loads((tmp_path / "here" / "seed0" / "summary.json").read_text())["steps"] == 1
    failure = read_failure(tmp_path / "here" / "seed-1")
    assert failure is not None
    assert "seed=-1 is not possible" in failure["error"]
    assert failure["job"] == "seed=-1"
    printed = "".join(path.read_text() for path in tmp_path.glob("here/.submitit/*/*_log.out"))
    assert "job 1 of 2: seed=0" in printed


@pytest.mark.usefixtures("composing")
def test_slurm_is_asked_for_two_gpus_and_one_task() -> None:
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    composed = hydra.compose("config", [*DATA, "hydra/launcher=slurm"], return_hydra_config=True)
    launcher = composed.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (1, 1, 2)
    mine = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=60"]
    assert hydra.compose("config", [*DATA, *mine], return_hydra_config=True).hydra.launcher.partition == "gpu"
    with pytest.raises(HydraException, match=r"hydra.launcher.no_such_key"):
        hydra.compose("config", [*DATA, "hydra/launcher=slurm", "hydra.launcher.no_such_key=1"])


def test_a_launcher_that_is_not_there_is_one_sentence(
    two_gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    two_gpu.check_launcher(["seed=0,1", "hydra/launcher=basic"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: object())
    two_gpu.check_launcher(["hydra/launcher=submitit_local"])
    with pytest.raises(ValueError, match=r"hydra/launcher=slurm needs SLURM, and there is no sbatch here"):
        two_gpu.check_launcher(["seed=0,1", "hydra/launcher=slurm"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[slurm\]'"):
        two_gpu.check_launcher(["hydra/launcher=slurm"])


@pytest.mark.usefixtures("composing")
def test_every_point_of_the_wandb_sweep_composes(two_gpu: ModuleType) -> None:
    sweep = yaml.safe_load((CONF / "wandb_sweep.yaml").read_text())
    assert (ROOT / sweep["program"]).is_file()
    assert sweep["metric"]["name"] in SUMMARY
    words = sweep["command"]
    assert words[:3] == ["${env}", "${interpreter}", "${program}"]
    assert words[-1] == "${args_no_hyphens}"
    fixed = words[3:-1]
    assert resolve(hydra.compose("config", [*DATA, *fixed])).logging.wandb == "online"
    values = {key: parameter["values"] for key, parameter in sweep["parameters"].items()}
    assert {"ablation", "seed"} <= set(values)
    for key, allowed in values.items():
        for value in allowed:
            point = [*DATA, *fixed, f"{key}={value}"]
            resolve_ablated(hydra.compose("config", point), point)
    with pytest.raises(HydraException):
        hydra.compose("config", [*DATA, *fixed, "ablation=no_such"])
