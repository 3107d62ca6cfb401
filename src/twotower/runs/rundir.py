"""A run's folder: where it lies, which earlier run or checkpoint it goes on from, what data belong to it."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.config import Config
from twotower.config.key_roles import Role, select_settings
from twotower.config.paths import from_here, make_absolute
from twotower.config.stored_config import read_config
from twotower.data.dataset import MEAN_IMAGE, DataSet
from twotower.ground.files import write_npy
from twotower.ground.links import refuse_links
from twotower.ground.locks import HeldError, held
from twotower.ground.stored_files import damaged, read_numbers
from twotower.runs import checkpoint
from twotower.runs.elsewhere import is_elsewhere

RUNS = Path("runs")
LOCK = ".lock"  # held by the one process that trains in the folder, has a sweep there, or stores predictions in it

# A run goes on only with these settings as they were; all others may change without changing its numbers.
TWIN = (Role.NUMBERS, Role.TRAINING, Role.SEED, Role.IMAGES, Role.NAME)


GLOBAL_BATCH = "global_batch_size"  # in a run's identity, and a key of optim

# What a run was whose version did not note it.
BEFORE = {"precision": "fp32"}


@dataclass(frozen=True)
class Home:
    """A run's folder, and the checkpoint it starts from."""

    run_dir: Path
    resume_from: Path | None


def _has_run(run_dir: Path) -> bool:
    return (run_dir / "metrics.jsonl").exists() or (run_dir / "checkpoints").exists()


def _select_twin(config: Config) -> dict[str, Any]:
    """What must be the same in a run for it to be this one, with whatever number of replicas that share its batch."""
    settings = select_settings(config, TWIN)
    if config.optim.global_batch_size is not None:
        settings = {k: v for k, v in settings.items() if k not in ("optim.batch_size", "machine.replicas")}
    return settings


def _interrupted_twin(config: Config) -> Path | None:
    """The newest unfinished run under runs/ with the same configuration and a checkpoint."""
    wanted = _select_twin(config)
    candidates = sorted(RUNS.glob("*/config.yaml"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in candidates:
        run_dir = path.parent
        if (run_dir / "summary.json").exists() or not checkpoint.checkpoint_steps(run_dir / "checkpoints"):
            continue
        try:
            # Runs of earlier versions noted relative paths, as they were typed, probably in this folder.
            stored = make_absolute(read_config(run_dir))
        except (ValueError, OSError):
            continue  # a run of this version could not go on there
        if _select_twin(stored) == wanted and checkpoint.find_whole(run_dir) is not None:
            return run_dir
    return None


def _new_run_dir(config: Config) -> Path:
    stem = f"{config.name}-{datetime.now():%Y%m%d-%H%M%S}"
    path, count = RUNS / stem, 1
    while path.exists():
        count += 1
        path = RUNS / f"{stem}-{count}"
    return path


def _go_on_in(run_dir: Path) -> Home:
    """Its last whole checkpoint. Raises: ValueError if there are some, and none is whole."""
    path = checkpoint.find_whole(run_dir)
    if path is None and checkpoint.checkpoint_steps(run_dir / "checkpoints"):
        checkpoint.verify_checkpoint(checkpoint.find(run_dir))  # raises what is wrong with the last one
    return Home(run_dir, path)


def find_kept_step(config: Config) -> int:
    """The step of the checkpoint on this host's disk from which the run would go on.

    -1: there is none; -2: there is none, because another host keeps the run.

    Looks and neither writes nor refuses anything: whoever gets the run ready does.
    """
    try:
        if config.resume == "none":
            return -1
        if config.resume != "auto":
            return checkpoint.read_manifest(checkpoint.find(from_here(config.resume))).step
        run_dir = _interrupted_twin(config) if config.run_dir is None else from_here(config.run_dir)
        if run_dir is None:
            return -1
        path = checkpoint.find_whole(run_dir)
        if path is None:
            return -2 if is_elsewhere(run_dir) else -1
        return checkpoint.read_manifest(path).step
    except (ValueError, OSError, TypeError):
        return -1


def find_home(config: Config) -> Home:
    """Chooses the run's folder from `run_dir` and `resume`; creates nothing.

    Raises: ValueError if the folder already holds another run, or there is nothing to resume, or a link leads out of
        it.
    """
    given = from_here(config.run_dir) if config.run_dir is not None else None
    if given is not None:
        refuse_links(given)
    if config.resume == "auto":
        if given is not None:
            return _go_on_in(given)
        twin = _interrupted_twin(config)
        if twin is not None:
            return _go_on_in(twin)
        print("resume=auto: no interrupted run of this configuration is found; a new one begins")
        return Home(_new_run_dir(config), None)
    if config.resume != "none":
        path = checkpoint.find(from_here(config.resume))
        own_run = path.parent.parent if path.parent.name == "checkpoints" else None
        run_dir = given or own_run or _new_run_dir(config)
        if run_dir != own_run and _has_run(run_dir):
            raise ValueError(f"run_dir={run_dir} already holds another run; give a new folder.")
        return Home(run_dir, path)
    if given is not None and _has_run(given):
        raise ValueError(f"run_dir={given} already holds a run; go on with it by resume=auto, or give a new folder.")
    return Home(given or _new_run_dir(config), None)


@contextmanager
def hold_home(config: Config) -> Iterator[Home]:
    """`find_home`, in a folder that no other process trains in while the block lasts; a new folder is made for it.

    Raises: HeldError if another process trains there; ValueError as `find_home`, or if it cannot be written, or has a
        link that leads out of it.
    """
    with ExitStack() as stack:
        while True:
            home = find_home(config)
            refuse_links(home.run_dir)
            check_writable(home.run_dir)
            try:
                stack.enter_context(held(home.run_dir / LOCK, f"run_dir={home.run_dir} is being trained"))
                break
            except HeldError:
                if config.run_dir is not None or home.resume_from is not None:
                    raise
                # Two new runs were begun in one second, and the other one has the name.
        # From here on nobody else changes the folder.
        yield find_home(replace(config, run_dir=str(home.run_dir)))


def own_mean(run_dir: Path) -> NDArray[np.float32] | None:
    """The mean image that a run keeps; None for synthetic data. Raises: ValueError if it is damaged."""
    path = run_dir / MEAN_IMAGE
    if not path.exists():
        return None
    remedy = (
        f"the command that started the run writes it again with run_dir={run_dir} resume=auto, also when the run is "
        "finished"
    )
    mean_image: NDArray[np.float32] = read_numbers(path, np.float32, (None, None, 3), remedy)
    if mean_image.shape[0] != mean_image.shape[1] or not len(mean_image):
        raise damaged(path, f"its shape is {mean_image.shape}", remedy)
    return mean_image


def keep_mean(run_dir: Path, dataset: DataSet) -> None:
    """Writes the mean image that training subtracts into the run's folder, unless it is there."""
    if dataset.mean_image is None:
        return
    try:
        stored = own_mean(run_dir)
        changed = "is not the data set's"
    except ValueError:
        stored, changed = None, "was damaged"
    if stored is None or not np.array_equal(stored, dataset.mean_image):
        if (run_dir / MEAN_IMAGE).exists():
            print(f"{run_dir / MEAN_IMAGE} {changed}, and is written again")
        write_npy(run_dir / MEAN_IMAGE, dataset.mean_image)


def with_own_mean(dataset: DataSet, run_dir: Path) -> DataSet:
    """The data set with the mean image that the run was trained with, which other data would not have.

    Raises: ValueError if the images of the data set have another size.
    """
    mean_image = own_mean(run_dir)
    if dataset.mean_image is None or mean_image is None:
        return dataset
    if mean_image.shape != dataset.mean_image.shape:
        raise ValueError(
            f"{run_dir} was trained on images brought to {len(mean_image)} pixels, and the data set has "
            f"{len(dataset.mean_image)}; prepare it with size={len(mean_image)}."
        )
    return replace(dataset, mean_image=mean_image)


def check_classes(where: str | Path, theirs: Sequence[str], ours: Sequence[str]) -> None:
    """Raises: ValueError naming the first class that differs, if the data has others than the network."""
    if list(theirs) == list(ours):
        return
    differing = [f"{their} there, {our} here" for their, our in zip(theirs, ours, strict=False) if their != our]
    raise ValueError(
        f"{where} was trained on other classes than the data has: {len(theirs)} there, {len(ours)} here"
        f"{'; the first that differs is ' + differing[0] if differing else ''}; give its own data by data_root=DIR."
    )


def check_writable(run_dir: Path) -> None:
    """Raises: ValueError if `run_dir` cannot be written or made."""
    existing = run_dir
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        # Writing a file is the only sure check, because permissions say little for root and on special file systems.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(
            f"run_dir={run_dir} cannot be written ({existing}: {error.strerror}); choose another folder."
        ) from error


def check_resumable(path: Path, config: Config, classes: list[str], identity: dict[str, Any]) -> checkpoint.Manifest:
    """Verifies a checkpoint, and that going on from it is the same run.

    Raises: ValueError naming what is damaged or differs.
    """
    manifest = checkpoint.verify_checkpoint(path)
    checkpoint.check_fits(path, manifest, config.network, len(classes))
    if manifest.classes != classes:
        raise ValueError(f"{path} was trained on other classes than the data has.")
    for key, ours in identity.items():
        theirs = manifest.identity.get(key, BEFORE.get(key))
        if theirs != ours:
            keep = f", or keep it on any number of processes by optim.{key}={theirs}" if key == GLOBAL_BATCH else ""
            raise ValueError(
                f"{path} cannot be resumed: {key} was {theirs} and is {ours} now; use the run's own settings{keep}."
            )
    fed = manifest.scale()
    for key, ours in checkpoint.read_scale(config.input).items():
        if fed[key] != ours:
            raise ValueError(
                f"{path} cannot be resumed: it was trained with input.{key}={fed[key]}, and that is {ours} now; use "
                "the run's own settings."
            )
    return manifest
