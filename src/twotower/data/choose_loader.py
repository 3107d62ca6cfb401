"""Which loader decodes the images: DALI, or where it is missing the one that needs torch alone."""

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
    """Why DALI cannot be imported; empty if it can."""
    try:
        import nvidia.dali  # noqa: F401
    except Exception as error:  # an OSError where one of its libraries is missing, and whatever else it raises
        return str(error) or type(error).__name__
    return ""


def choose_loader(config: InputConfig) -> str:
    """`dali` or `torch`.

    Raises: ValueError if it is neither, or what is asked for needs DALI, which was not chosen or cannot be imported.
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
    """Refuses what is not there, before any work. Raises: ValueError."""
    # Of auto there is nothing to refuse, and loading DALI takes long.
    if config.loader != "auto" or config.device == "gpu":
        choose_loader(config)


def describe_loader(config: InputConfig) -> str:
    """For the first lines that a person reads: how images are decoded."""
    return {"dali": "by DALI", "torch": "by torch, without DALI"}[choose_loader(config)]


def notice_fallback(config: InputConfig) -> str | None:
    """The sentence for `input.loader=auto` where DALI is missing; None where there is nothing to say."""
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
    """Prints that sentence, once in a process."""
    notice = notice_fallback(config)
    if notice is not None:
        _print_once(notice)


def elsewhere(config: InputConfig) -> InputConfig:
    """The input of a run on a machine that may have neither the DALI nor the GPU that it was told to use."""
    return replace(
        config,
        loader="auto" if config.loader == "dali" else config.loader,
        device="auto" if config.device == "gpu" else config.device,
    )


def open_loader(source: Source, split: Split, cutting: Cutting, config: InputConfig, share: Share) -> Loader:
    """Raises: ValueError for a loader or a device that is not there."""
    if config.device == "gpu" and share.device.type != "cuda":
        raise ValueError("input.device=gpu, but the towers are on the CPU; use input.device=auto.")
    if choose_loader(config) == "torch":
        return TorchLoader(source, split, cutting, share)
    on_gpu = share.device.type == "cuda" and config.device != "cpu"
    return DaliLoader(source, split, cutting, share, "gpu" if on_gpu else "cpu")
