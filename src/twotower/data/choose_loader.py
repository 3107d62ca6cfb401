"""Chooses the loader that decodes the images: DALI, or where it is missing the one that needs torch alone."""

from dataclasses import replace
from functools import cache

from twotower.config import InputConfig
from twotower.data.batch import Share
from twotower.data.dali_loader import DaliLoader
from twotower.data.dataset import Split
from twotower.data.loader import Cutting, Loader, Source
from twotower.data.torch_loader import TorchLoader

LOADERS = ("auto", "dali", "torch")


def dali_problem() -> str:
    """The reason why DALI cannot be imported; empty if it can."""
    try:
        import nvidia.dali  # noqa: F401
    except Exception as error:  # an OSError where one of its libraries is missing, or whatever else it raises
        return str(error) or type(error).__name__
    return ""


def choose_loader(config: InputConfig) -> str:
    """The loader to use: `dali` or `torch`.

    Raises: ValueError for a loader that is not known, or a setting that needs DALI where that is not chosen or cannot
        be imported.
    """
    if config.loader not in LOADERS:
        raise ValueError(f"input.loader={config.loader} is not known; choose one of {', '.join(LOADERS)}.")
    if config.loader == "torch":
        if config.device == "gpu":
            raise ValueError("input.device=gpu is for input.loader=dali; use input.device=auto.")
        return "torch"
    problem = dali_problem()
    if problem and (config.loader == "dali" or config.device == "gpu"):
        raise ValueError(
            f"input.{'loader=dali' if config.loader == 'dali' else 'device=gpu'} needs DALI, which cannot be "
            f"imported here ({problem}); use input.loader=auto input.device=auto, or install DALI, which Linux has."
        )
    return "torch" if problem else "dali"


def check_loader(config: InputConfig) -> None:
    """Checks, before any work, that the loader can be used. Raises: ValueError as `choose_loader`."""
    # auto always finds a loader, and importing DALI takes long.
    if config.loader != "auto" or config.device == "gpu":
        choose_loader(config)


def describe_loader(config: InputConfig) -> str:
    """Says how images are decoded, for the first lines on the screen."""
    return {"dali": "by DALI", "torch": "by torch, without DALI"}[choose_loader(config)]


def notice_fallback(config: InputConfig) -> str | None:
    """Says that `input.loader=auto` does without DALI; None where it has DALI, or was not asked for."""
    problem = dali_problem() if config.loader == "auto" else ""
    if not problem:
        return None
    return (
        f"DALI cannot be imported here ({problem}), so input.loader=torch: the same images, decoded by "
        "libjpeg-turbo, Pillow and torch"
    )


@cache
def _print_once(line: str) -> None:
    print(line, flush=True)


def say_fallback(config: InputConfig) -> None:
    """Prints the sentence of `notice_fallback`, once in a process."""
    notice = notice_fallback(config)
    if notice is not None:
        _print_once(notice)


def adapt_to_machine(config: InputConfig) -> InputConfig:
    """The input settings of a run, for another machine, which may lack the DALI or the GPU that the run used."""
    return replace(
        config,
        loader="auto" if config.loader == "dali" else config.loader,
        device="auto" if config.device == "gpu" else config.device,
    )


def open_loader(source: Source, split: Split, cutting: Cutting, config: InputConfig, share: Share) -> Loader:
    """Opens the loader of `config`. Raises: ValueError for a loader or a device that this machine lacks."""
    if config.device == "gpu" and share.device.type != "cuda":
        raise ValueError("input.device=gpu, but the towers are on the CPU; use input.device=auto.")
    if choose_loader(config) == "torch":
        return TorchLoader(source, split, cutting, share)
    on_gpu = share.device.type == "cuda" and config.device != "cpu"
    return DaliLoader(source, split, cutting, share, "gpu" if on_gpu else "cpu")
