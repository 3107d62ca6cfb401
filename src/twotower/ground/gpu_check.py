"""What keeps torch from using a GPU that is in the machine, found before any work, and said in one sentence.

Without these checks torch itself trains on the CPU after a warning, or fails at its first kernel with a traceback.
"""

import os
import re
from pathlib import Path

import torch

DRIVER_FILE = Path("/proc/driver/nvidia/version")
# Of Linux, inside of a container, and under WSL2.
SIGNS_OF_A_GPU = (DRIVER_FILE, Path("/dev/nvidia0"), Path("/usr/lib/wsl/lib/libnvidia-ml.so.1"))

# The oldest driver for Linux of each CUDA, from the table "CUDA Toolkit and Minimum Required Driver Version for CUDA
# Minor Version Compatibility" of NVIDIA's release notes.
OLDEST_DRIVER = {"12": 525, "13": 580}
DRIVER_FOR_CUDA_13, DRIVER_FOR_CUDA_12 = OLDEST_DRIVER["13"], OLDEST_DRIVER["12"]

INSTALL_CUDA_12 = "install the builds for CUDA 12 (make clean, then make train TORCH=cuda12; docs/installing.md)"


def is_hidden() -> bool:
    """Whether CUDA_VISIBLE_DEVICES hides all GPUs on purpose: empty, or -1."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1")


def has_gpu() -> bool:
    """Whether the machine shows an NVIDIA driver or device, whatever torch can do with it."""
    return any(path.exists() for path in SIGNS_OF_A_GPU)


def read_driver() -> str | None:
    """The version of the NVIDIA driver, as 550.54.15; None where the system does not tell it."""
    try:
        text = DRIVER_FILE.read_text()
    except OSError:
        return None
    match = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return match[1] if match else None


def explain_unseen() -> str | None:
    """Why torch sees no GPU although there is one; None where it sees one, there is none, or all are hidden.

    The sentence ends in what to do, without a full stop, so that a caller can add its own way out.
    """
    if torch.cuda.is_available() or is_hidden() or not has_gpu():
        return None
    driver, cuda = read_driver(), torch.version.cuda
    if cuda is None:
        return (
            f"This machine has an NVIDIA GPU, and torch {torch.__version__} is a build for CPUs; install one for "
            "CUDA (make clean, then make train, or as docs/installing.md says)"
        )
    major = cuda.partition(".")[0]
    oldest = OLDEST_DRIVER.get(major)
    if driver is not None and oldest is not None and int(driver.partition(".")[0]) < oldest:
        other = f", or {INSTALL_CUDA_12}" if major == "13" and int(driver.partition(".")[0]) >= 525 else ""
        return (
            f"This machine's NVIDIA driver {driver} is too old for torch {torch.__version__}, a build for CUDA "
            f"{cuda} that needs {oldest} or newer; update the driver{other}"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return (
            f"This machine has an NVIDIA GPU, but CUDA_VISIBLE_DEVICES={visible} names none that torch can see; "
            "unset it, or give numbers as nvidia-smi -L prints them"
        )
    which = f"driver {driver}" if driver else "driver of unknown version"
    return (
        f"This machine has an NVIDIA GPU ({which}), but torch {torch.__version__}, a build for CUDA {cuda}, sees "
        "none; nvidia-smi must work here first (in a container it needs --gpus all)"
    )


def check_seen(setting: str) -> None:
    """Refuses to compute on the CPU in silence where there is a GPU that torch cannot use.

    Args:
        setting: the key that chooses the device, as `machine.device`.

    Raises: ValueError.
    """
    reason = explain_unseen()
    if reason is not None:
        raise ValueError(f"{reason}; or choose the CPU by {setting}=cpu.")


def _version(architecture: str) -> tuple[int, int]:
    digits = re.sub(r"\D", "", architecture.partition("_")[2])
    return int(digits[:-1]), int(digits[-1])


def runs_on(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Whether a build of torch has kernels for a GPU.

    Code for sm_XY runs on GPUs of the same X and at least that Y; compute_XY is compiled for any newer one when it
    starts (CUDA C++ Programming Guide, "Binary Compatibility" and "PTX Compatibility").

    Args:
        capability: of the GPU, as (7, 5).
        architectures: of the build, as torch.cuda.get_arch_list() gives them.
    """
    for architecture in architectures:
        built = _version(architecture)
        if architecture.startswith("sm_") and built[0] == capability[0] and built[1] <= capability[1]:
            return True
        if architecture.startswith("compute_") and built <= capability:
            return True
    return False


def check_capability(device: torch.device) -> None:
    """Raises: ValueError for a GPU that this build of torch has no kernels for."""
    capability, architectures = torch.cuda.get_device_capability(device), torch.cuda.get_arch_list()
    if not architectures or runs_on(capability, architectures):
        return
    older = capability < min(_version(architecture) for architecture in architectures)
    cuda_13 = (torch.version.cuda or "").startswith("13")
    way_out = INSTALL_CUDA_12 if older and cuda_13 else "install a build of torch that has them"
    raise ValueError(
        f"{device} is a {torch.cuda.get_device_name(device)} of compute capability {capability[0]}.{capability[1]}, "
        f"and torch {torch.__version__} has kernels for {', '.join(architectures)} only; {way_out}, or choose "
        "another GPU by CUDA_VISIBLE_DEVICES."
    )


def check_free(device: torch.device) -> None:
    """Opens the GPU, so that what keeps this process from it is said now. Raises: ValueError."""
    try:
        torch.zeros(1, device=device)
    except RuntimeError as error:
        text = str(error).splitlines()[0]
        if "busy or unavailable" in text:
            raise ValueError(
                f"{device} lets no second process in, or is held by another one ({text}); nvidia-smi -q -d COMPUTE "
                "shows its mode: set it to DEFAULT by sudo nvidia-smi -c DEFAULT, start MPS by "
                "nvidia-cuda-mps-control -d, or use a GPU for each tower."
            ) from error
        if "out of memory" in text:
            raise ValueError(
                f"{device} has no memory left ({text}); nvidia-smi shows who holds it: end that process, or choose "
                "another GPU by CUDA_VISIBLE_DEVICES."
            ) from error
        raise ValueError(f"{device} cannot be used: {text}; see what nvidia-smi says of it.") from error
