"""Chooses the loader that decodes the images: DALI, or where it is missing the one that needs torch alone."""

from contextlib import suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

from twotower.config import InputConfig, MachineConfig
from twotower.data.batch import Share
from twotower.data.dali_loader import DaliLoader
from twotower.data.dataset import Split
from twotower.data.decoded_squares import DecodedSplit
from twotower.data.device_loader import DeviceLoader
from twotower.data.loader import Cutting, Loader, Source
from twotower.data.torch_loader import TorchLoader

DALI_BUILDS = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")


def check_one_build() -> None:
    """Raises: ValueError if both builds of DALI are installed, of which each has overwritten files of the other."""
    found = [f"{name} {number}" for name, number in find_builds().items()]
    if len(found) > 1:
        raise ValueError(
            f"{' and '.join(found)} are both installed, and write the same files, so neither can be trusted; remove "
            f"both (pip uninstall -y {' '.join(DALI_BUILDS)}), then install one: pip install -e '.[cuda13]' or "
            "'.[cuda12]'."
        )


def find_builds() -> dict[str, str]:
    """The builds of DALI that are installed, with their versions."""
    found = {}
    for name in DALI_BUILDS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def advise_dali() -> str:
    """How DALI comes where it cannot be imported."""
    for build, number in find_builds().items():
        return f"install it again: pip install --force-reinstall --no-deps {build}=={number}"
    return "install DALI, which exists for Linux: pip install -e '.[cuda13]'"


def find_dali_problem() -> str:
    """The reason why DALI cannot be imported; empty if it can."""
    try:
        import nvidia.dali  # noqa: F401
    except Exception as error:  # an OSError where one of its libraries is missing, or whatever else it raises
        return str(error) or type(error).__name__
    return ""


def choose_loader(loader: str, device: str = "auto") -> str:
    """The loader to use: `dali` or `torch`.

    Args:
        loader: `input.loader`.
        device: `machine.loader_device`.

    Raises: ValueError for a setting that needs DALI where that is not chosen or cannot be imported.
    """
    if loader == "torch":
        if device == "gpu":
            raise ValueError("machine.loader_device=gpu is for input.loader=dali; use machine.loader_device=auto.")
        return "torch"
    check_one_build()
    problem = find_dali_problem()
    if problem and (loader == "dali" or device == "gpu"):
        raise ValueError(
            f"{'input.loader=dali' if loader == 'dali' else 'machine.loader_device=gpu'} needs DALI, which cannot be "
            f"imported here ({problem}); use input.loader=auto machine.loader_device=auto, or {advise_dali()}."
        )
    return "torch" if problem else "dali"


NO_GPU_FOR_LOADER = "machine.loader_device=gpu, but the towers are on the CPU; use machine.loader_device=auto."


def check_loader(loader: str, machine: MachineConfig, cache: str = "none") -> None:
    """Checks, before any work, that the loader and `input.cache` can be used. Raises: ValueError as `open_loader`."""
    device = machine.loader_device
    on_cpu = machine.device == "cpu" or not torch.cuda.is_available()
    if device == "gpu" and on_cpu:
        raise ValueError(NO_GPU_FOR_LOADER)
    if cache == "device" and on_cpu:
        raise ValueError("input.cache=device is for GPUs, and the towers are on the CPU; use input.cache=host.")
    # auto always finds a loader, and importing DALI takes long.
    if loader != "torch":
        check_one_build()
    if loader != "auto" or device == "gpu":
        choose_loader(loader, device)


def describe_loader(loader: str, cache: str = "none") -> str:
    """Says how images are decoded, for the first lines on the screen."""
    if cache != "none":
        return "decoded once"
    return {"dali": "by DALI", "torch": "by torch, without DALI"}[choose_loader(loader)]


def notice_fallback(loader: str) -> str | None:
    """Says that `input.loader=auto` does without DALI; None where it has DALI, or was not asked for."""
    problem = find_dali_problem() if loader == "auto" else ""
    if not problem:
        return None
    return (
        f"DALI cannot be imported here ({problem}), so input.loader=torch: the same images, decoded by "
        "libjpeg-turbo, Pillow and torch"
    )


@cache
def _print_once(line: str) -> None:
    print(line, flush=True)


def say_fallback(loader: str) -> None:
    """Prints the sentence of `notice_fallback`, once in a process."""
    notice = notice_fallback(loader)
    if notice is not None:
        _print_once(notice)


def adapt_to_machine(config: InputConfig) -> InputConfig:
    """The input settings of a run, for another machine, which may lack the DALI or the pixels that the run used."""
    return replace(config, loader="auto" if config.loader == "dali" else config.loader, cache="none")


def open_loader(source: Source, split: Split, cutting: Cutting, config: InputConfig, share: Share) -> Loader:
    """Opens the loader that `input.loader` asks for, or `input.cache` for pixels that are decoded already.

    Raises: ValueError for a loader or a device that this machine lacks.
    """
    if share.loader_device == "gpu" and share.device.type != "cuda":
        raise ValueError(NO_GPU_FOR_LOADER)
    if isinstance(split, DecodedSplit):
        cached = DeviceLoader if config.cache == "device" else TorchLoader
        return cached(source, split, cutting, share)
    if choose_loader(config.loader, share.loader_device) == "torch":
        return TorchLoader(source, split, cutting, share)
    on_gpu = share.device.type == "cuda" and share.loader_device != "cpu"
    return DaliLoader(source, split, cutting, share, "gpu" if on_gpu else "cpu")
