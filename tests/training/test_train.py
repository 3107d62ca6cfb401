"""Whole runs in processes of their own: they leave what they promise, resume to the same bits, and never hang."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers.commands import DEADLINE, NO_WANDB, SMALL, command, events, find_children, finish, numbers, train
from twotower.config.presets import preset
from twotower.distributed.place import Place, check_room
from twotower.model.volume import measure_volume
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
    assert 0 < summary["seconds"] / 3600 < summary["hours"]
    assert re.match(r"processors ([\d.]+ Wh|not measurable here: .)", summary["energy"])
    assert ("watt_hours_cpu" in summary) == ("Wh" in summary["energy"])
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
    network = replace(preset("alexnet_2012"), width=0.0625)  # and those of launch/volume.py
    assert measure_volume(network, 3, 8, 1).exchange_bytes == events(reference)[0]["exchange_bytes"]


def test_wandb_is_there_offline(reference: Path) -> None:
    files = list((reference / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1
    content = files[0].read_bytes()
    for key in ("train/loss", "train/exchange_wait_ms", "train/step", "validation/top1_error", "ablation:none"):
        assert key.encode() in content, key


def test_a_run_killed_in_mid_epoch_resumes_to_the_same_bits(images: Path, reference: Path, tmp_path: Path) -> None:
    """Weights, velocities, order of images and metrics; a random stream with hidden state would show here."""
    arguments = (*SMALL, f"data.root={images}", *NO_WANDB, "checkpoint.every_steps=1", "run_dir=run")
    process = command(*arguments, cwd=tmp_path)
    wait_for_checkpoint(process, tmp_path / "run", 4)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "run" / "summary.json").exists()
    spent = json.loads((tmp_path / "run" / "energy.json").read_text())["seconds"]
    status, output = train(images, tmp_path, "checkpoint.every_steps=1", "run_dir=run", "resume=auto")
    assert status == 0, output
    assert "from step" in output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert 0 < spent < 3600 * summary["hours"]
    assert f"in all; energy: {summary['energy']}" in output
    assert numbers(tmp_path / "run") == numbers(reference)
    assert_same_bits(tmp_path / "run", reference)


def wait_for_checkpoint(process: subprocess.Popen[str], run_dir: Path, step: int) -> None:
    deadline = time.monotonic() + DEADLINE
    while not any(found >= step for found in checkpoint.checkpoint_steps(run_dir / "checkpoints")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_torchrun_starts_the_towers_again_after_one_was_killed_to_the_same_bits(
    images: Path, reference: Path, tmp_path: Path
) -> None:
    arguments = (*SMALL, f"data.root={images}", *NO_WANDB, "checkpoint.every_steps=1", "run_dir=run", "resume=auto")
    process = command(*arguments, cwd=tmp_path, torchrun=2, options=("--max-restarts=3",))
    try:
        wait_for_checkpoint(process, tmp_path / "run", 2)
        os.kill(find_children(process.pid, b"two_gpu.py")[1], signal.SIGKILL)
        status, output = finish(process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert status == 0, output
    assert len(re.findall(r"from (step [1-9]|random weights)", output)) == 2, output
    assert "from step" in output
    assert numbers(tmp_path / "run") == numbers(reference)
    assert_same_bits(tmp_path / "run", reference)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit on the size of files")
def test_a_full_disk_is_a_sentence_each_time_and_the_run_goes_on_to_the_same_bits(
    images: Path, reference: Path, tmp_path: Path
) -> None:
    """The limits are below the mean image, below both towers' tensors, and between the two."""
    arguments = (*SMALL, f"data.root={images}", *NO_WANDB, "run_dir=run", "resume=auto")
    sizes = [file.stat().st_size for file in sorted(checkpoint.find(reference).glob("*.safetensors"))]
    mean_size = (reference / "mean_image.npy").stat().st_size
    assert mean_size < sizes[1] - 10 < sizes[1] + 10 < sizes[0]
    for largest, file in (
        (mean_size - 1, r"mean_image\.npy"),
        (sizes[1] - 10, r"checkpoints/\S+/tower[01]\.safetensors"),
        (sizes[1] + 10, r"checkpoints/\S+/tower0\.safetensors"),
    ):
        status, output = finish(command(*arguments, cwd=tmp_path, largest_file=largest))
        assert status == 1, output
        sentence = (
            rf"error: \S*{file} cannot be written \(File too large\): it takes [\d,]+ bytes, and [\d,]+ are free"
        )
        assert re.search(sentence, output), output
        assert output.count("error:") == 1
        assert "Traceback" not in output
        assert not list((tmp_path / "run").rglob("*pending*"))
    assert checkpoint.checkpoint_steps(tmp_path / "run" / "checkpoints") == []
    status, output = finish(command(*arguments, cwd=tmp_path))
    assert status == 0, output
    assert numbers(tmp_path / "run") == numbers(reference)
    assert_same_bits(tmp_path / "run", reference)


def test_a_run_folder_that_is_removed_is_missed_at_the_next_checkpoint(images: Path, tmp_path: Path) -> None:
    """Nothing is written where it was, and no rank but the first speaks."""
    arguments = (*SMALL, f"data.root={images}", *NO_WANDB, "schedule.epochs=100000", "run_dir=run")
    process = command(*arguments, cwd=tmp_path)
    try:
        wait_for_checkpoint(process, tmp_path / "run", 3)
        (tmp_path / "run").rename(tmp_path / "elsewhere")
        shutil.rmtree(tmp_path / "elsewhere")
        status, output = finish(process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert status == 1, output
    assert output.count("error:") == 1
    assert "Traceback" not in output
    lost = r"(metrics\.jsonl, config\.yaml, mean_image\.npy|the checkpoint that was being written)"
    assert re.search(rf"error: {lost} in run_dir=\S*run was removed or replaced", output), output
    assert not (tmp_path / "run").exists()


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


def test_a_run_goes_on_with_fewer_replicas_on_the_same_batch(images: Path, reference: Path, tmp_path: Path) -> None:
    """Two replicas, then one: the images and steps of the whole run, from which sums differ in their order alone."""
    status, output = train(
        images, tmp_path, "run_dir=run", "optim.global_batch_size=8", "machine.replicas=2", "schedule.max_steps=2"
    )
    assert status == 0, output
    assert "2 replicas of 2 towers" in output
    # Without the key the batch would be another one.
    status, output = train(images, tmp_path, "run_dir=run", "optim.batch_size=4", "resume=auto")
    assert status == 1
    assert "global_batch_size was 8 and is 4 now" in output
    assert "optim.global_batch_size=8" in output
    status, output = train(images, tmp_path, "run_dir=run", "optim.global_batch_size=8", "resume=auto")
    assert status == 0, output
    assert "9 steps of 8 images, from step 2" in output
    found, true = ([e for e in events(folder) if e["event"] == "train"] for folder in (tmp_path / "run", reference))
    assert [event["step"] for event in found] == [event["step"] for event in true]
    # Up to step 4, of which the last two are of one replica; then rounding flips single ReLUs, and grows.
    assert [event["loss"] for event in found[:3]] == pytest.approx([event["loss"] for event in true[:3]], rel=0.01)
    assert [event["loss"] for event in found] == pytest.approx([event["loss"] for event in true], rel=0.2)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(images: Path, tmp_path: Path) -> None:
    status, output = train(images, tmp_path, "run_dir=run", "optim.learning_rate=1e6", "logging.every_steps=1")
    assert status == 1
    assert "error: The loss is " in output
    assert "at step " in output
    assert output.count("error:") == 1
    assert "Traceback" not in output


def test_an_update_that_only_the_validation_sees_to_be_ruinous_fails_the_run(images: Path, tmp_path: Path) -> None:
    """The loss of the only step is that of the first weights; what became of them shows behind it."""
    status, output = train(images, tmp_path, "run_dir=run", "optim.learning_rate=1e9", "schedule.max_steps=1")
    assert status == 1
    assert "error: The validation loss is nan after step 1. A lower optim.learning_rate than 1e+09" in output
    assert output.count("error:") == 1
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not checkpoint.checkpoint_steps(tmp_path / "run" / "checkpoints")
    assert "validation loss" in json.loads((tmp_path / "run" / "failure.json").read_text())["error"]


def test_too_little_memory_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In whichever process it happens, because the others may have enough."""
    with pytest.raises(RuntimeError) as torchs:
        torch.empty(2**60)
    for error in (torchs.value, MemoryError("Unable to allocate 9 TiB"), torch.OutOfMemoryError("CUDA\nfull")):
        explain(error, Place(1, 2, 1, 2), tmp_path)
        said = capsys.readouterr().err
        assert said.startswith("error: There is not enough memory (")
        assert said.endswith("network.image_size needs less.\n")
        assert said.count("\n") == 1
    assert "not enough memory" in json.loads((tmp_path / "failure.json").read_text())["error"]


def test_more_processes_than_a_host_can_hold_are_refused() -> None:
    check_room(64)
    with pytest.raises(ValueError, match=r"machine\.replicas would start 4,000 processes on this host, which has "):
        check_room(4000)


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
    assert "going on from" in output
    assert "with a change: schedule.epochs was 3 and is 4 now" in output

    def refuse_constant(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    summary = json.loads((run_dir / "summary.json").read_text(), parse_constant=refuse_constant)
    assert summary["steps"] == 12


def test_checkpoints_of_others_are_refused(images: Path, reference: Path, tmp_path: Path) -> None:
    status, output = train(images, tmp_path, f"resume={reference}", "network.width=0.125", "run_dir=new")
    assert status == 1
    assert "another network: network.width differs" in output
    status, output = train(images, tmp_path, f"run_dir={reference}")
    assert status == 1
    assert "already holds a run" in output
    before = (reference / "config.yaml").read_bytes()
    for resume in ("resume=auto", f"resume={reference}"):
        changed = (f"run_dir={reference}", resume, "optim.momentum=0.5", "schedule.epochs=4")
        status, output = train(images, tmp_path, *changed)
        assert status == 1
        assert "cannot go on with other settings (optim.momentum was 0.9 and is 0.5 now)" in output
        assert output.count("error:") == 1
        assert (reference / "config.yaml").read_bytes() == before
        assert (reference / "summary.json").exists()
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in checkpoint.find(reference).iterdir():
        content = file.read_bytes()
        (copy / file.name).write_bytes(content[:-10] if file.name == "tower0.safetensors" else content)
    status, output = train(images, tmp_path, f"resume={copy}", "run_dir=new")
    assert status == 1
    assert "tower0.safetensors is missing, cut short or changed" in output
