"""Other systems than Linux, as far as they can be had here: without what Windows or macOS lack, under their names."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from helpers.fake_runs import fake_config
from helpers.marked import is_running
from helpers.paths import ROOT
from twotower.benchmarks.input_files import link_file
from twotower.config import MachineConfig
from twotower.distributed import world
from twotower.distributed.place import Place, choose_device, stay_on_this_host
from twotower.ground.memory import peak_megabytes
from twotower.runs import checkpoint
from twotower.training.processes import run

CPU = torch.device("cpu")

# Python, torch and the other libraries are Linux's own, so they are loaded before Linux is taken away.
WINDOWS = """
import importlib, json, multiprocessing, os, pkgutil, signal, sys, tempfile, time, types
from pathlib import Path
import hydra, matplotlib, pooch, requests, rich, scipy.io, simplejpeg, torch, torch.multiprocessing, wandb
from safetensors.torch import save_file
for name in ("SIGHUP", "SIGKILL", "SIGQUIT", "pthread_sigmask"):
    delattr(signal, name)
for name in ("pread", "sched_getaffinity", "statvfs", "getuid"):
    delattr(os, name)
sys.modules |= {"fcntl": None, "resource": None, "nvidia.dali": None, "msvcrt": types.ModuleType("msvcrt")}
sys.platform = "win32"
import twotower
modules = [m.name for m in pkgutil.walk_packages(twotower.__path__, "twotower.")]
needing_dali = ["twotower.data.dali_pipeline"]
for name in modules:
    if name not in needing_dali:
        importlib.import_module(name)

from twotower.data.preparing import shard_worker
from twotower.data.choose_loader import choose_loader
from twotower.data.sources.source import Entry
from twotower.ground.processes import catch_stops
from twotower.ground.memory import peak_megabytes
from twotower.ground.processes import interrupts_held
from twotower.distributed.place import stay_on_this_host
from twotower.ground.processes import cores, die_with_parent

found = {"modules": len(modules), "loader": choose_loader("auto"), "cores": cores()}
found["megabytes"] = peak_megabytes(torch.device("cpu"))
stay_on_this_host()
found["interface"] = os.environ.get("GLOO_SOCKET_IFNAME")
with tempfile.NamedTemporaryFile() as file:
    file.write(b"0123456789")
    file.flush()
    found["read"] = shard_worker.read_entry(Entry(file.name, 2, 3, "", "", "", "file")).decode()
with interrupts_held():
    found["held"] = True
catch_stops()
try:
    signal.raise_signal(signal.SIGTERM)
except KeyboardInterrupt:
    found["stopped"] = True

def orphan():
    die_with_parent()
    time.sleep(100)

sys.platform = "darwin"
child = multiprocessing.get_context("fork").Process(target=orphan)
child.start()
other = os.fork()  # as torchrun's workers, which multiprocessing knows nothing about
if other == 0:
    multiprocessing.process._parent_process = None
    orphan()
print(json.dumps(found | {"orphans": [child.pid, other]}), flush=True)
time.sleep(100)
"""


def test_all_modules_work_without_what_windows_lacks_and_no_orphan_computes_on() -> None:
    """Imports, stops, locks and reads; then the process is killed, and what it started ends as well."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GLOO")}
    process = subprocess.Popen([sys.executable, "-c", WINDOWS], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "it has ended with an error, which is printed above"
        found = json.loads(line)
        orphans = found.pop("orphans")
        assert found.pop("modules") > 90
        assert found.pop("cores") >= 1
        assert found == {
            "loader": "torch",
            "megabytes": 0.0,
            "interface": None,
            "read": "234",
            "held": True,
            "stopped": True,
        }
        assert all(is_running(one) for one in orphans)
    finally:
        process.kill()
        process.wait()
    end = time.monotonic() + 20
    while any(is_running(one) for one in orphans):
        assert time.monotonic() < end, "an orphan is still there"
        time.sleep(0.05)


@pytest.mark.parametrize(("system", "loopback"), [("linux", "lo"), ("darwin", "lo0"), ("win32", None)])
def test_gloo_stays_on_this_host(monkeypatch: pytest.MonkeyPatch, system: str, loopback: str | None) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(sys, "platform", system)
    stay_on_this_host()
    found = os.environ.pop("GLOO_SOCKET_IFNAME", None)  # not monkeypatch's to take back
    assert found == loopback
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "en7")
    stay_on_this_host()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "en7"


def test_memory_is_in_the_units_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux counts in KiB, macOS in bytes. Where there is /proc, the count is that of the process alone."""
    monkeypatch.setattr("twotower.ground.memory._STATUS", Path("/nowhere"))
    usage = type("Usage", (), {"ru_maxrss": 3 * 2**20})
    monkeypatch.setattr(resource, "getrusage", lambda who: usage)
    assert peak_megabytes(CPU) == 3 * 1024
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_megabytes(CPU) == 3


def test_folders_that_cannot_be_opened_are_not_synced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Windows opens no folders, and flushes only what was opened for writing."""
    file, folder = tmp_path / "file", tmp_path
    file.write_text("a")
    opened: list[Path] = []
    really = os.open

    def windows_opens(path: Path, flags: int) -> int:
        if path == folder or not flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        opened.append(path)
        return really(path, flags)

    with monkeypatch.context() as windows:
        windows.setattr(os, "open", windows_opens)
        windows.setattr(os, "name", "nt")
        checkpoint._sync(file)
        checkpoint._sync(folder)
    assert opened == [file]
    monkeypatch.setattr(os, "open", windows_opens)
    with pytest.raises(PermissionError):
        checkpoint._sync(folder)


def test_images_are_copied_where_they_cannot_be_linked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("A required privilege is not held by the client")

    (tmp_path / "a.jpg").write_bytes(b"pixels")
    monkeypatch.setattr(Path, "symlink_to", refuse)
    link_file(tmp_path / "b.jpg", tmp_path / "a.jpg")
    assert (tmp_path / "b.jpg").read_bytes() == b"pixels"


@pytest.mark.parametrize(
    ("absent", "missing"), [("is_available", "torch.distributed"), ("is_gloo_available", "gloo")]
)
def test_a_torch_that_connects_no_processes_is_told_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, absent: str, missing: str
) -> None:
    """Before anything is drawn or started."""
    monkeypatch.setattr(dist, absent, lambda: False)
    config = fake_config(tmp_path / "nothing", f"run_dir={tmp_path / 'run'}")
    with pytest.raises(ValueError, match=rf"has no {missing}, over which the towers' processes talk; install"):
        run(config)
    assert not list(tmp_path.iterdir())


def test_gpus_without_nccl_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under Windows."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    place = Place(1, 2, 1, 2)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    assert choose_device(MachineConfig(), place) == (torch.device("cuda", 1), "nccl")
    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    assert choose_device(MachineConfig(), place) == (torch.device("cuda", 0), "shared_gpu")
    with pytest.raises(ValueError, match=r"machine\.transport=nccl needs NCCL and a GPU for each process"):
        choose_device(MachineConfig(transport="nccl"), place)


def test_the_world_can_be_imported_without_torch_distributed() -> None:
    """Its annotations name classes that such a torch does not have."""
    source = (ROOT / "src" / "twotower" / "distributed" / "world.py").read_text()
    kept = {name: getattr(dist, name) for name in ("Store",)}
    try:
        for name in kept:
            delattr(dist, name)
        exec(compile(source, "world.py", "exec"), {"__name__": "twotower.distributed.world_again"})
    finally:
        for name, value in kept.items():
            setattr(dist, name, value)
    assert world.World is not None
