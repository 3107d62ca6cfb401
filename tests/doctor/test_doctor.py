"""The doctor's page on a machine without a GPU, and that it sees what is wrong."""

import os
import shutil
import signal
import socket
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.commands import command, finish
from helpers.composing import compose
from helpers.processes import run_processes
from twotower.benchmarks.take_turns import Contestant
from twotower.config import DoctorConfig
from twotower.doctor import images, machine, towers
from twotower.doctor.findings import Finding, look
from twotower.doctor.images import examine_images
from twotower.doctor.machine import examine_builds, examine_gpus, examine_machine
from twotower.doctor.towers import examine_towers
from twotower.ground import gpu_check

SMALL = ("network.width=0.0625", "optim.batch_size=4", "num_classes=10", "machine.threads=1")
Usage = namedtuple("Usage", "total used free")


def settings(*overrides: str) -> DoctorConfig:
    """Small towers on the CPU."""
    config = compose("network=alexnet_2012", "network.width=0.0625", "optim.batch_size=4", *overrides)
    return DoctorConfig(config.network, config.input, config.optim, config.machine, num_classes=10)


def advice(findings: list[Finding], title: str) -> str:
    (found,) = [finding.advice for finding in findings if finding.title == title]
    return found


@pytest.mark.slow
def test_the_page_of_a_sound_machine(tmp_path: Path) -> None:
    page = tmp_path / "doctor.md"
    done = run_doctor(tmp_path, *SMALL, "machine.device=cpu", f"output={page}")
    assert done[0] == 0, done
    text = page.read_text()
    assert text in done[1]
    for section in ("Machine", "Builds", "GPUs", "Input", "Towers"):
        assert f"\n## {section}\n" in text
    for line in (
        r"- memory: ",
        r"- disk: ",
        r"- host name: has ",
        r"- torch: ",
        r"- decoded by torch on cpu: 100 JPEGs at ",
        r"exchange over gloo",
        r"- swaps: before conv3 ",
        r" of tower 0 over the exchange agree with one process on the CPU to ",
        r"images/s from random images",
    ):
        assert line in text
    assert "**" not in text
    assert text.endswith("\nAll is well.\n")


@pytest.mark.slow
def test_what_cannot_work_is_in_bold_and_in_the_exit_status(tmp_path: Path) -> None:
    status, screen = run_doctor(tmp_path, *SMALL, "machine.device=cuda")
    assert status == 1
    assert "- first contact: failed: **" in screen
    assert "machine.device=cpu" in screen
    assert "- not tried: swaps, gradients" in screen  # all of which need the first contact
    assert "1 to look at: the lines in bold say what to do." in screen
    assert "Traceback" not in screen


def run_doctor(folder: Path, *arguments: str) -> tuple[int, str]:
    return finish(command(*arguments, cwd=folder, script="doctor.py"))


def test_a_host_without_an_address_is_told_what_torchrun_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said, and no failure: without torchrun nothing meets at that name."""
    for name, said in (("no-such-host.invalid", "--local-addr=127.0.0.1"), ("localhost", "has an address")):
        monkeypatch.setattr(socket, "getfqdn", lambda name=name: name)
        (found,) = [finding for finding in examine_machine(Path()) if finding.title == "host name"]
        assert said in found.text
        assert not found.advice


def test_an_error_is_what_to_do() -> None:
    def fail(error: Exception) -> str:
        raise error

    assert look("a", lambda: "fine") == Finding("a", "fine")
    assert look("a", lambda: fail(ValueError("do this.\nand more"))) == Finding("a", "failed:", "do this.")
    assert look("a", lambda: fail(OSError("no such file"))).advice == "OSError: no such file"
    assert Finding("a", "failed:", "do this.").render() == "- a: failed: **do this.**"


def test_a_full_disk_and_little_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 10, 64 << 20))
    monkeypatch.setattr(machine, "has_gpu", lambda: True)
    findings = examine_machine(tmp_path)
    assert "0.1 GB are free here, and checkpoints need 2; make room." in advice(findings, "disk")
    assert "--shm-size=1g" in advice(findings, "shared memory (/dev/shm)")
    monkeypatch.setattr(machine, "has_gpu", lambda: False)
    assert not advice(examine_machine(tmp_path), "shared memory (/dev/shm)")  # nothing on a CPU needs it


def test_a_gpu_that_torch_does_not_see(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = tmp_path / "nvidia0"
    device.touch()
    monkeypatch.setattr(gpu_check, "SIGNS_OF_A_GPU", (device,))
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "is a build for CPUs; install one for CUDA" in advice(examine_gpus(), "GPUs")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not advice(examine_gpus(), "GPUs")


def test_a_broken_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_builds", lambda: {"nvidia-dali-cuda130": "2.4.0"})
    monkeypatch.setattr(machine, "find_dali_problem", lambda: "libdali.so: cannot open")
    assert "is installed, but cannot be imported (libdali.so: cannot open)" in advice(examine_builds(), "DALI")
    monkeypatch.setattr(machine, "find_builds", dict)
    assert not advice(examine_builds(), "DALI")  # which is not needed


def test_what_cannot_end_well_is_refused_before_any_work(tmp_path: Path) -> None:
    for arguments, sentence in (
        (("network=one_tower",), "error: the doctor tries the exchange of two towers, and network=one_tower has one"),
        (
            (f"output={tmp_path}",),
            f"error: output={tmp_path} is a folder; name a file, as output={tmp_path}/doctor.md.",
        ),
        (
            ("output=no/doctor.md",),
            "error: output=no/doctor.md: there is no folder no; make it, or name another one.",
        ),
    ):
        status, screen = run_doctor(tmp_path, *arguments)
        assert status == 1
        assert sentence in screen
        assert "#" not in screen


def be_killed(pipe: Any) -> None:
    pipe.recv()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_tower_that_is_killed_is_named() -> None:
    contestant = Contestant(be_killed, [()], threads=1)
    with pytest.raises(
        ChildProcessError, match=r"process 0 of 1 was ended by SIGKILL, as the system does when memory"
    ):
        contestant.turn("go")
    contestant.end()


@pytest.mark.slow
def test_ctrl_c_is_one_word_and_no_failure(tmp_path: Path) -> None:
    # So many images that the towers are still at work when the signal comes.
    process = command(*SMALL, "optim.batch_size=512", "machine.device=cpu", cwd=tmp_path, script="doctor.py")
    assert process.stdout is not None
    for line in process.stdout:  # until the towers have met
        if "first contact" in line:
            break
    os.killpg(process.pid, signal.SIGINT)
    status, rest = finish(process)
    assert status == 130
    assert "Traceback" not in rest
    assert rest.endswith("stopped\n")


def compare(world: Any, mistake: bool) -> str:
    if mistake:
        finish = towers.WireExchange.finish
        towers.WireExchange.finish = lambda self, flight: [x.detach() for x in finish(self, flight)]  # type: ignore[method-assign]
    try:
        return towers._compare(world, settings())
    except ValueError as error:
        return f"refused: {error}"


@pytest.mark.slow
def test_gradients_that_do_not_come_back_are_noticed(tmp_path: Path) -> None:
    """The classic mistake of model parallelism, with every loss right."""
    for said in run_processes(compare, tmp_path / "right", False).values():
        assert "of tower 0 over the exchange agree with one process on the CPU" in said
    for said in run_processes(compare, tmp_path / "wrong", True).values():
        assert said.startswith("refused: the gradient of conv")
        assert "do not trust a training on this machine" in said


@pytest.mark.slow
def test_images_that_differ_are_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    decode = images._decode

    def swap_colours(dataset: Any, config: Any, device: Any) -> Any:
        pixels, seconds = decode(dataset, config, device)
        return (pixels[:, ::-1] if config.loader == "dali" else pixels), seconds

    monkeypatch.setattr(images, "find_dali_problem", lambda: "")
    monkeypatch.setattr(images, "_decode", swap_colours)
    findings = list(examine_images(settings("input.loader=torch"), tmp_path))
    assert findings[0].is_ok
    if findings[1].advice.startswith("input.loader=dali needs DALI"):
        pytest.skip("DALI is not installed")
    assert "the images differ from those that torch decodes by" in findings[1].advice


@pytest.mark.slow
def test_a_tower_that_dies_is_no_end_without_a_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(towers, "_run_tower", die)
    findings = list(examine_towers(settings(), tmp_path))
    assert [finding.title for finding in findings] == ["first contact", "not tried"]
    assert findings[0].advice == "a process has ended; its error is printed above"


def die(*arguments: Any) -> None:
    raise SystemExit(3)
