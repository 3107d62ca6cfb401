"""Whole runs in processes of their own: they leave what they promise, resume to the same bits, and never hang."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers.commands import DEADLINE, NO_WANDB, SMALL, command, events, finish, numbers, train
from twotower.distributed.place import Place
from twotower.runs import checkpoint
from twotower.training.explain import explain


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    path = checkpoint.find(run_dir)
    return {f"{t}/{k}": v for t in (0, 1) for k, v in load_file(path / f"tower{t}.safetensors").items()}


def assert_same_bits(first: Path, second: Path) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    assert len(ours) == 80  # 20 parameters and velocities in each tower
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture(scope="session")
def reference(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One uninterrupted run of 3 epochs of 3 steps, with W&B offline."""
    cwd = tmp_path_factory.mktemp("reference")
    status, output = finish(command(*SMALL, f"data.root={images}", "run_dir=run", cwd=cwd))
    assert status == 0, output
    (cwd / "run" / "output.txt").write_text(output)
    return cwd / "run"


def test_a_run_leaves_what_it_promises(reference: Path) -> None:
    found = events(reference)
    assert [e["step"] for e in found if e["event"] == "train"] == [2, 3, 4, 6, 8, 9]
    assert [e["step"] for e in found if e["event"] == "validation"] == [3, 6, 9]
    promised = {"loss", "top1_error", "top5_error", "images_per_second"}
    promised |= {"exchange_wait_ms", "exchange_bytes", "input_wait_ms"}
    assert promised | {"learning_rate", "epoch", "step", "event"} == set(found[0])
    measured = [e for e in found if e["event"] in ("train", "validation")]
    assert all(np.isfinite(e["loss"]) and 0 <= e["top1_error"] <= 100 for e in measured)
    scales = [e for e in found if e["event"] == "scales"]
    assert [e["step"] for e in scales] == [3, 6, 9]
    layers = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    names = {f"tower{t}/{name}/{what}" for t in (0, 1) for name in layers for what in ("weight", "update", "output")}
    names |= {"tower0/conv1/colour", "tower1/conv1/colour"}
    assert all(set(e) == names | {"event", "step"} and all(e[name] > 0 for name in names) for e in scales)
    assert found[0]["learning_rate"] == pytest.approx(0.01)
    assert found[-2]["learning_rate"] == found[-3]["learning_rate"] if found[-2]["event"] == "train" else True
    assert [e for e in found if e["event"] == "train"][-1]["learning_rate"] == pytest.approx(0.001)
    summary = json.loads((reference / "summary.json").read_text())
    assert {"top1_error", "top5_error", "best_top1_error", "images_per_second", "steps", "seconds"} <= set(summary)
    assert summary["steps"] == 9
    assert summary["top1_error"] == [e for e in found if e["event"] == "validation"][-1]["top1_error"]
    assert "commit" in json.loads((reference / "versions.json").read_text())
    assert checkpoint.checkpoint_steps(reference / "checkpoints") == [6, 9]
    assert "torch" in json.loads((reference / "versions.json").read_text())
    output = (reference / "output.txt").read_text()
    assert "2 towers in 2 processes, cpu, fp32, exchange over gloo" in output
    assert output.count("epoch ") == 3


def test_exchanged_bytes_are_those_of_the_arithmetic(reference: Path) -> None:
    """conv3 8 x 13 x 13 maps, fc6 8 x 6 x 6, fc7 and fc8 128 units a half, there and back, and half the logits."""
    per_image = 2 * (8 * 13 * 13 + 8 * 6 * 6 + 128 + 128)
    halves = {2 * 4 * 8, 1 * 4 * 8}  # tower 0 has two of the three classes; float32, batch 8
    sent = events(reference)[0]["exchange_bytes"] - per_image * 4 * 8
    assert sent in halves


def test_wandb_is_there_offline(reference: Path) -> None:
    files = list((reference / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1
    content = files[0].read_bytes()
    for key in ("train/loss", "train/exchange_wait_ms", "train/step", "validation/top1_error", "ablation:none"):
        assert key.encode() in content, key


@pytest.mark.parametrize("stop_at", [2, 4])
def test_a_run_killed_in_mid_epoch_resumes_to_the_same_bits(
    images: Path, reference: Path, tmp_path: Path, stop_at: int
) -> None:
    """Weights, velocities, order of images and metrics; a random stream with hidden state would show here."""
    arguments = (*SMALL, f"data.root={images}", *NO_WANDB, "checkpoint.every_steps=1", "run_dir=run")
    process = command(*arguments, cwd=tmp_path)
    folder = tmp_path / "run" / "checkpoints"
    deadline = time.monotonic() + DEADLINE
    while not any(step >= stop_at for step in checkpoint.checkpoint_steps(folder)):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "run" / "summary.json").exists()
    status, output = train(images, tmp_path, "checkpoint.every_steps=1", "run_dir=run", "resume=auto")
    assert status == 0, output
    assert "from step" in output
    assert numbers(tmp_path / "run") == numbers(reference)
    assert_same_bits(tmp_path / "run", reference)


def children(pid: int, name: bytes = b"spawn_main") -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            text = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == pid and name in text:
            found.append(int(entry.name))
    return sorted(found)


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
@pytest.mark.parametrize(
    ("how", "torchrun"), [("killed", 0), ("stalled", 0), ("parent killed", 0), ("stalled", 2), ("parent killed", 2)]
)
def test_a_lost_tower_stops_the_other_and_leaves_no_orphans(
    images: Path, tmp_path: Path, how: str, torchrun: int
) -> None:
    arguments = (*SMALL, f"data.root={images}", *NO_WANDB, "schedule.epochs=100000", "run_dir=run")
    process = command(*arguments, "machine.timeout_seconds=4", cwd=tmp_path, torchrun=torchrun)
    try:
        deadline = time.monotonic() + DEADLINE
        while not (tmp_path / "run" / "metrics.jsonl").exists() or not events(tmp_path / "run"):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        towers = children(process.pid, b"two_gpu.py" if torchrun else b"spawn_main")
        assert len(towers) == 2
        began = time.monotonic()
        if how == "parent killed":
            process.kill()
        else:
            os.kill(towers[1], signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        output, _ = process.communicate(timeout=DEADLINE)
        deadline = time.monotonic() + 20
        while any(alive(pid) for pid in towers):
            assert time.monotonic() < deadline, "an orphan stays behind"
            time.sleep(0.1)
        assert process.returncode != 0
        if how == "killed":
            assert "Tower 1 " in output or "tower 1:" in output, output
        if how == "stalled":
            assert "lost tower" in output, output
            assert "nothing came from it for 4 s" in output, output
        if how != "parent killed":
            assert time.monotonic() - began < 4 + 15, "torchrun waits half a minute for a worker that hears no signal"
            assert "resume=auto" in output
            assert "Terminating process" not in output, "torch's word on the other tower"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_closes_its_files_and_says_how_to_go_on(
    images: Path, tmp_path: Path, stop: signal.Signals
) -> None:
    """Ctrl-C goes to all processes, a polite kill to the parent alone."""
    arguments = (*SMALL, f"data.root={images}", *NO_WANDB, "schedule.epochs=100000", "run_dir=run")
    process = command(*arguments, cwd=tmp_path)
    try:
        deadline = time.monotonic() + DEADLINE
        while not (tmp_path / "run" / "metrics.jsonl").exists() or not events(tmp_path / "run"):
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        if stop == signal.SIGINT:
            os.killpg(process.pid, stop)
        else:
            # A second training in the folder of one that runs: refused, and the first one goes on.
            status, output = train(images, tmp_path, "run_dir=run", "resume=auto")
            assert status == 1, output
            assert f"error: run_dir=run is being trained by another process (process {process.pid} on " in output
            assert process.poll() is None
            process.send_signal(stop)
        output, _ = process.communicate(timeout=DEADLINE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130, output
    assert "resume=auto" in output
    assert "Traceback" not in output, output


def test_torchrun_gives_the_same_run(images: Path, reference: Path, tmp_path: Path) -> None:
    status, output = train(images, tmp_path, "run_dir=run", torchrun=2)
    assert status == 0, output
    assert_same_bits(tmp_path / "run", reference)
    assert numbers(tmp_path / "run") == numbers(reference)


def test_torchrun_with_a_world_of_one_starts_both_towers(images: Path, tmp_path: Path) -> None:
    status, output = train(images, tmp_path, "run_dir=run", "schedule.max_steps=1", torchrun=1)
    assert status == 0, output
    assert "2 towers in 2 processes" in output


def test_two_replicas_are_one_with_the_double_batch(images: Path, tmp_path: Path) -> None:
    """The same images, crops, noise and dropout masks: gradients differ by rounding, and not by more.

    After one step, as rounding then flips single ReLUs and grows. How far off other images are, test_replicas shows.
    """
    for run_dir, batch_size, torchrun in (("one", 8, 0), ("two", 4, 4)):
        overrides = (f"run_dir={run_dir}", f"optim.batch_size={batch_size}", "schedule.max_steps=1")
        status, output = train(images, tmp_path, *overrides, torchrun=torchrun)
        assert status == 0, output
        assert ("2 replicas of 2 towers" in output) == (torchrun == 4)
    one, two = (weights(tmp_path / run_dir) for run_dir in ("one", "two"))
    velocities = [name for name in one if "velocity" in name]
    assert len(velocities) == 40
    for name in velocities:
        assert (two[name] - one[name]).norm() < 1e-4 * one[name].norm(), name
    validation = [
        next(event for event in events(tmp_path / run_dir) if event["event"] == "validation")
        for run_dir in ("one", "two")
    ]
    assert validation[0]["top1_error"] == validation[1]["top1_error"]
    assert validation[0]["loss"] == pytest.approx(validation[1]["loss"], rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(images: Path, tmp_path: Path) -> None:
    status, output = train(images, tmp_path, "run_dir=run", "optim.learning_rate=1e6", "logging.every_steps=1")
    assert status == 1
    assert "error: The loss is " in output
    assert "at step " in output
    assert output.count("error:") == 1
    assert "Traceback" not in output


def test_a_process_that_is_ended_while_another_explains_itself_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torchrun ends the others as soon as the first one has ended."""

    def end(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", end)
    explain(ValueError("told by the first"), Place(rank=1, size=2, local_rank=1, local_size=2))
    assert capsys.readouterr() == ("", "")


def test_evaluation_in_one_process_gives_the_runs_own_error(images: Path, reference: Path) -> None:
    summary = json.loads((reference / "summary.json").read_text())
    for crops in ("centre", "ten"):
        arguments = (f"run={reference}", f"crops={crops}", "batch_size=4", "device=cpu")
        status, output = finish(command(*arguments, cwd=reference, script="evaluate.py"))
        assert status == 0, output
        found = json.loads((reference / "evaluation.json").read_text())
        assert (found["crops"], found["num_images"]) == (crops, 7)
        if crops == "centre":
            assert found["top1_error"] == summary["top1_error"]
            assert found["top5_error"] == summary["top5_error"]
            assert found["loss"] == pytest.approx(summary["loss"], rel=1e-5)
        else:
            assert found["loss"] != pytest.approx(summary["loss"], rel=1e-7)


def test_a_sweep_goes_on_after_a_failure_and_skips_what_is_finished(images: Path, tmp_path: Path) -> None:
    arguments = (*SMALL, f"data.root={images}", *NO_WANDB, "-m", "schedule.max_steps=1", "name=trial")
    swept = "network.width=0.0625,0.3"  # the second cannot be cut in two
    status, output = finish(command(*arguments, swept, cwd=tmp_path))
    assert status == 1, output
    assert "network.width=0.3 gives conv1" in output
    finished = [path.parent for path in tmp_path.glob("sweeps/trial-network.width-*/*/summary.json")]
    assert [folder.name for folder in finished] == ["width0.0625"]
    assert "finished" in output
    assert "failed" in output
    written = (finished[0] / "metrics.jsonl").stat().st_mtime_ns
    status, output = finish(command(*arguments, swept, cwd=tmp_path))
    assert status == 1
    assert "skipped" in output
    assert (finished[0] / "metrics.jsonl").stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("optim.leraning_rate=1",), "leraning_rate"),
        (("ablation=no_such",), "no_such"),
        (("data.root=nowhere",), "data.root=nowhere does not exist"),
        (("network.width=0.3",), "network.width=0.3 gives conv1 28.8 kernels"),
        (("optim.batch_size=1000",), "The training set has 26 images"),
        (("resume=nowhere",), "nowhere does not exist"),
        (("run_dir=/proc/run",), "run_dir=/proc/run cannot be written"),
        (("machine.device=cuda",), "machine.device=cuda, but there is no NVIDIA GPU here"),
    ],
)
def test_bad_input_is_one_sentence_and_a_status(
    images: Path, tmp_path: Path, overrides: tuple[str, ...], expected: str
) -> None:
    if overrides == ("machine.device=cuda",) and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    status, output = train(images, tmp_path, *overrides)
    assert status != 0
    assert expected in output
    assert "Traceback" not in output
    assert not (tmp_path / "runs").exists()


def test_torchrun_is_told_about_odd_numbers_and_sweeps(images: Path, tmp_path: Path) -> None:
    status, output = train(images, tmp_path, torchrun=3)
    assert status != 0
    assert "3 processes were started, and each replica needs two" in output
    assert output.count("error: 3 processes") == 1
    status, output = train(images, tmp_path, "optim.leraning_rate=1", torchrun=2)
    assert status != 0
    assert "leraning_rate" in output
    assert 'two_gpu.py", line' not in output  # torchrun has a traceback of its own, we have none
    status, output = train(images, tmp_path, "-m", "seed=0,1", torchrun=2)
    assert status != 0
    assert "error: -m is for python, not for torchrun" in output


def test_a_finished_run_is_not_run_again_but_can_be_prolonged(images: Path, reference: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(reference, run_dir)
    before = (run_dir / "summary.json").read_text()
    for resume in ("resume=auto", f"resume={run_dir}"):
        status, output = train(images, tmp_path, f"run_dir={run_dir}", resume)
        assert status == 0, output
        assert "is finished already" in output
        assert (run_dir / "summary.json").read_text() == before
    status, output = train(images, tmp_path, f"run_dir={run_dir}", "resume=auto", "schedule.epochs=4")
    assert status == 0, output
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 12


def test_checkpoints_of_others_are_refused(images: Path, reference: Path, tmp_path: Path) -> None:
    status, output = train(images, tmp_path, f"resume={reference}", "network.width=0.125", "run_dir=new")
    assert status == 1
    assert "another network: network.width differs" in output
    status, output = train(images, tmp_path, f"run_dir={reference}")
    assert status == 1
    assert "already holds a run" in output
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in checkpoint.find(reference).iterdir():
        content = file.read_bytes()
        (copy / file.name).write_bytes(content[:-10] if file.name == "tower0.safetensors" else content)
    status, output = train(images, tmp_path, f"resume={copy}", "run_dir=new")
    assert status == 1
    assert "tower0.safetensors is missing, cut short or changed" in output
