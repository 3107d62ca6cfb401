"""What the machine has: processor, memory, disk, GPUs, their ways to each other, and the libraries' builds."""

import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch

from twotower.data.choose_loader import advise_dali, check_one_build, find_builds, find_dali_problem
from twotower.distributed.place import check_distributed
from twotower.doctor.findings import Finding, look
from twotower.ground.gpu_check import check_capability, explain_unseen, has_gpu, read_driver
from twotower.ground.processes import cores
from twotower.ground.versions import read_versions

GIGABYTE = 1e9
LEAST_SHARED_MEMORY = 1.0  # GB; gloo needs none, NCCL between GPUs without P2P and DALI's decoders do
LEAST_DISK = 2.0  # GB; two checkpoints of the paper's network have one
LEAST_MEMORY = 4.0  # GB; two towers at full width and 128 images take more


def examine_machine(output: Path) -> list[Finding]:
    """Args: output: a folder; its disk is where runs would go."""
    return [
        Finding("system", f"{platform.platform()}, {platform.machine()}"),
        Finding("processor", f"{_processor()}, {cores()} of {os.cpu_count()} cores for this process"),
        look("memory", _memory),
        look("shared memory (/dev/shm)", _shared_memory),
        look("disk", lambda: _disk(output)),
        Finding("host name", _look_up_host()),
    ]


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown processor"
    for line in text.splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    else:
        name = platform.machine()
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in text]
    return f"{name} ({', '.join(flags) or 'no AVX2'})"


def _memory() -> str:
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIGABYTE
    if whole < LEAST_MEMORY:
        raise ValueError(f"{whole:.1f} GB are few for the paper's network; use network.width=0.25 or less.")
    return f"{whole:.1f} GB, {_available() / GIGABYTE:.1f} GB of them free at this moment"


def _available() -> float:
    """Bytes that programs could still take; the cache of files is free for them."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(text.partition("MemAvailable:")[2].split()[0]) * 1024


def _shared_memory() -> str:
    path = Path("/dev/shm")
    if not path.is_dir():
        return "none, as this system has no such folder"
    free = shutil.disk_usage(path).free / GIGABYTE
    if has_gpu() and free < LEAST_SHARED_MEMORY:
        raise ValueError(
            f"{free:.2f} GB are free, which is little for NCCL; start the container with --ipc=host or --shm-size=1g."
        )
    return f"{free:.1f} GB free"


def _disk(output: Path) -> str:
    free = shutil.disk_usage(output).free / GIGABYTE
    if free < LEAST_DISK:
        raise ValueError(f"{free:.1f} GB are free here, and checkpoints need {LEAST_DISK:g}; make room.")
    return f"{free:.1f} GB free in this folder, where runs go"


def _look_up_host() -> str:
    """Whether torchrun's processes can meet at the host's name, as it wants them to. The name itself is private."""
    try:
        socket.getaddrinfo(socket.getfqdn(), None)
    except OSError:
        return (
            "has no address here, so torchrun would wait for itself until it gives up; on a machine alone give it "
            "--local-addr=127.0.0.1"
        )
    return "has an address"


def examine_builds() -> list[Finding]:
    """The builds of what the towers stand on."""
    versions = read_versions()
    findings = [
        Finding(name, version) for name, version in versions.items() if name in ("python", "twotower", "commit")
    ]
    cuda = "a build for CPUs"
    if torch.version.cuda:
        cuda = f"a build for CUDA {torch.version.cuda} with kernels for {', '.join(torch.cuda.get_arch_list())}"
    findings.append(Finding("torch", f"{torch.__version__}, {cuda}"))
    findings.append(look("torch.distributed", _backends))
    findings.append(look("DALI", _dali))
    return findings


def _backends() -> str:
    check_distributed()
    nccl = torch.cuda.is_available() and hasattr(torch.cuda, "nccl")
    version = ".".join(str(part) for part in torch.cuda.nccl.version()) if nccl else ""
    return "gloo" + (f", NCCL {version}" if version else "")


def _dali() -> str:
    check_one_build()
    problem = find_dali_problem()
    builds = [f"{name} {version}" for name, version in find_builds().items()]
    if problem and builds:
        raise ValueError(
            f"{builds[0]} is installed, but cannot be imported ({problem}), so torch decodes the images; "
            f"{advise_dali()}"
        )
    return builds[0] if builds else "not installed; torch decodes the images instead"


def examine_gpus() -> list[Finding]:
    """The GPUs as torch sees them, and as the driver connects them."""
    unseen = explain_unseen()
    if unseen is not None:
        return [Finding("GPUs", "none that torch can use", f"{unseen}.")]
    if not torch.cuda.is_available():
        return [Finding("GPUs", "none; the towers run on the CPU")]
    findings = [Finding("driver", read_driver() or "of unknown version")]
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    findings += [look(str(device), lambda device=device: _gpu(device)) for device in devices]  # type: ignore[misc]
    findings += list(_ways(devices))
    topology = _ask_driver("topo", "-m")
    if topology and len(devices) > 1:
        findings.append(Finding("nvidia-smi topo -m", f"\n\n```\n{topology}\n```\n"))
    return findings


def _gpu(device: torch.device) -> str:
    check_capability(device)
    properties = torch.cuda.get_device_properties(device)
    mode = _ask_driver("--query-gpu=compute_mode", "--format=csv,noheader", f"--id={device.index}")
    return (
        f"{properties.name}, {properties.total_memory / GIGABYTE:.1f} GB, compute capability "
        f"{properties.major}.{properties.minor}, {properties.multi_processor_count} multiprocessors"
        + (f", compute mode {mode}" if mode else "")
    )


def _ways(devices: list[torch.device]) -> Iterator[Finding]:
    for first, second in zip(devices[::2], devices[1::2], strict=False):
        has_way = torch.cuda.can_device_access_peer(first, second)
        text = "direct (P2P over NVLink or PCIe)" if has_way else "no P2P: through the host's shared memory, slower"
        yield Finding(f"{first} to {second}", text)


def _ask_driver(*arguments: str) -> str:
    """What nvidia-smi says; empty if there is none, or it fails."""
    try:
        done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
