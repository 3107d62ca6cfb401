"""Checkpoints: one safetensors file for each tower and a manifest, complete or absent.

    checkpoints/step-00000120/tower0.safetensors   conv1.weight ..., velocity/conv1.weight ...
                              tower1.safetensors
                              manifest.json        step, network, classes, rates, SHA-256 of both files

safetensors holds numbers and nothing that could run. A checkpoint is written into a folder beside its place and
renamed when all of it is on disk, so a killed run leaves the last one whole.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Gt, Len
from pydantic import ConfigDict, FiniteFloat, StringConstraints, TypeAdapter
from torch import Tensor
from typing_extensions import TypedDict

from twotower.config import InputConfig, NetworkConfig
from twotower.config.presets import network_of
from twotower.ground.energy import StoredEnergy
from twotower.ground.files import hash_file, remove, write_json
from twotower.ground.links import refuse_links
from twotower.ground.stored_files import ANYTHING, Count, check_form, damaged, read_json, read_metadata, read_tensors
from twotower.ground.tensor_files import write_tensors
from twotower.ground.wording import on_one_line
from twotower.model.tower import Tower

FORMAT = 2  # 1: before a network could have one tower
VELOCITY = "velocity/"  # prefix of a parameter's name
REMEDY = "use an earlier checkpoint, or copy it again from where the run was trained"
LARGEST_MANIFEST = 1 << 26  # bytes; with the names of 20,000 classes it has 1 MB
_STEP = re.compile(r"step-(\d{8,12})")


class StoredRates(TypedDict, total=False):
    """State of VelocitySGD: rates of each layer's weights and biases, and those that the velocities belong to."""

    rates: list[FiniteFloat]
    velocity_rates: list[FiniteFloat | None]


class StoredSchedule(TypedDict, total=False):
    """State of the schedule."""

    num_drops: Count
    best_error: FiniteFloat | None
    epochs_without_gain: Count


class StoredProgress(TypedDict, total=False):
    """The run's best and last errors and its counts so far; `window` and `epoch` are sums of `Counts`."""

    window: Annotated[list[FiniteFloat], Len(4, 4)]
    epoch: Annotated[list[FiniteFloat], Len(4, 4)]
    best: dict[str, FiniteFloat | None]
    last: dict[str, FiniteFloat]
    seconds: FiniteFloat
    images: Count
    watching_loss: bool


class _StoredProgressNow(StoredProgress, total=False):
    energy: StoredEnergy  # older checkpoints have none


class StoredIdentity(TypedDict, total=False):
    """Seed, batch and data, which must be the same to go on; later versions may note more."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    seed: Count
    global_batch_size: Count
    num_train: Count
    num_val: Count
    precision: str


class StoredScale(TypedDict, total=False):
    """`read_scale` the input."""

    mean_value: Annotated[list[FiniteFloat], Len(3, 3)] | None
    std: Annotated[list[Annotated[FiniteFloat, Gt(0)]], Len(3, 3)]


class _ManifestForm(TypedDict):
    """The form of manifest.json; see `Manifest`."""

    step: Count
    network: dict[str, Any]  # `network_of` checks it
    classes: Annotated[list[str], Len(1)]
    rates: StoredRates
    schedule: StoredSchedule
    progress: _StoredProgressNow
    identity: StoredIdentity
    sha256: dict[
        Annotated[str, StringConstraints(pattern=r"^tower[01]\.safetensors$")],
        Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")],
    ]


class _ManifestFormNow(_ManifestForm, total=False):
    input: StoredScale
    format: int


_FORM: TypeAdapter[Any] = TypeAdapter(_ManifestFormNow)
# What a run that is resumed reads of its manifest.
_TO_GO_ON: dict[str, type] = {"rates": StoredRates, "schedule": StoredSchedule, "progress": StoredProgress}


@dataclass
class Manifest:
    """Everything in a checkpoint that is not a tensor."""

    step: int
    network: dict[str, Any]  # the NetworkConfig
    classes: list[str]
    rates: dict[str, Any]  # state of VelocitySGD
    schedule: dict[str, Any]
    progress: dict[str, Any]  # the run's best error and counts so far
    identity: dict[str, Any]  # seed, batch and data, which must be the same to go on
    sha256: dict[str, str]
    input: dict[str, Any] = field(default_factory=dict)  # `read_scale` the input; empty in old checkpoints
    format: int = FORMAT

    def scale(self) -> dict[str, Any]:
        """`read_scale` the input that the weights were trained with."""
        return read_scale(InputConfig()) | self.input


def read_scale(given: InputConfig) -> dict[str, Any]:
    """Selects the settings of the input that the weights cannot do without."""
    return {"mean_value": given.mean_value, "std": given.std}


def tower_file(tower: int) -> str:
    """The name of a tower's file in a checkpoint."""
    return f"tower{tower}.safetensors"


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)  # Windows flushes what it may write to
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a run's `checkpoints` folder, ascending."""
    names = [_STEP.fullmatch(path.name) for path in folder.glob("step-*")] if folder.is_dir() else []
    return sorted(int(name[1]) for name in names if name is not None)


def place(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` lies."""
    return folder / f"step-{step:08d}"


def save_tower(folder: Path, step: int, tower: Tower, velocity_buffers: Mapping[str, Tensor]) -> None:
    """First part of saving, by each tower's process: its tensors, into a temporary folder beside the place.

    Raises: OSError, DiskFullError.
    """
    pending = folder / f"pending-{step:08d}"
    pending.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().contiguous() for name, p in tower.paper_named_parameters().items()}
    tensors |= {VELOCITY + name: buffer.contiguous() for name, buffer in velocity_buffers.items()}
    write_tensors(pending / tower_file(tower.tower), tensors)


def is_of_trajectory(step: int, steps_per_epoch: int) -> bool:
    """Whether a step is 0, a power of two within the first epoch, or the end of an epoch.

    Networks change most at first, so that is where a trajectory has most of its points.
    """
    return step % steps_per_epoch == 0 or (step < steps_per_epoch and step.bit_count() == 1)


def complete(folder: Path, manifest: Manifest, keep: int, for_good: Callable[[int], bool] | None = None) -> Path:
    """Second part, by one process after all towers have saved: manifest, rename, and the oldest ones removed.

    Args:
        keep: how many of the last ones stay.
        for_good: says of a step that its checkpoint stays, however old; None: of none.

    Raises: OSError, DiskFullError.
    """
    pending, final = folder / f"pending-{manifest.step:08d}", place(folder, manifest.step)
    files = [tower_file(tower) for tower in range(manifest.network["towers"])]
    manifest.sha256 = {name: hash_file(pending / name) for name in files}
    write_json(pending / "manifest.json", asdict(manifest))
    if final.exists():  # so that there is no moment without one of the two
        final.rename(folder / f"pending-old-{manifest.step:08d}")
    pending.rename(final)
    _sync(folder)
    for step in checkpoint_steps(folder)[:-keep]:
        if for_good is None or not for_good(step):
            _remove(folder, step)
    forget_pending(folder)
    return final


def forget_pending(folder: Path) -> None:
    """Removes what is half written or half removed; nobody else may be writing there."""
    for leftover in folder.glob("pending-*"):
        remove(leftover)


def _remove(folder: Path, step: int) -> None:
    """Removes a checkpoint, which at no moment is one of which half is gone."""
    going = folder / f"pending-removal-{step:08d}"
    place(folder, step).rename(going)
    remove(going)


def forget_after(folder: Path, step: int) -> None:
    """Removes the checkpoints of later steps, before a run goes on from `step` on another path."""
    for later in checkpoint_steps(folder):
        if later > step:
            _remove(folder, later)


def read_manifest(path: Path) -> Manifest:
    """Reads a checkpoint's manifest, and believes what it says of the files.

    For what needs no weights, and where `verify_checkpoint` has been called before.

    Raises: ValueError if it cannot be read, or is of another version.
    """
    file = path / "manifest.json"
    content = read_json(file, ANYTHING, REMEDY, LARGEST_MANIFEST)
    if content.get("format") != FORMAT:
        found = on_one_line(str(content.get("format")), 20)
        raise ValueError(
            f"{path} has checkpoint format {found} in its manifest.json; this version reads {FORMAT}: {REMEDY}."
        )
    manifest = Manifest(**check_form(content, _FORM, file, REMEDY))
    if set(manifest.sha256) != {tower_file(tower) for tower in range(len(manifest.sha256))} or not manifest.sha256:
        raise damaged(file, f"it has checksums of {', '.join(manifest.sha256) or 'no tower'}", REMEDY)
    if manifest.network.get("towers") != len(manifest.sha256):
        raise damaged(
            file, f"it has checksums of {len(manifest.sha256)} towers, and its network another number", REMEDY
        )
    return manifest


def check_can_go_on(path: Path, manifest: Manifest, num_layers: int) -> None:
    """Checks that a manifest has all that a resumed run reads of it. Raises: ValueError naming what is missing."""
    for name, form in _TO_GO_ON.items():
        missing = sorted(form.__annotations__.keys() - getattr(manifest, name).keys())
        if missing:
            raise damaged(path / "manifest.json", f"{name} has no {missing[0]}", REMEDY)
    for name in ("rates", "velocity_rates"):
        if len(manifest.rates[name]) != 2 * num_layers:  # of weights and of biases
            raise damaged(path / "manifest.json", f"rates.{name} are not those of {num_layers} layers", REMEDY)
    if not {"best_top1_error", "best_top5_error"} <= manifest.progress["best"].keys():
        raise damaged(path / "manifest.json", "progress.best lacks an error", REMEDY)


def verify_checkpoint(path: Path) -> Manifest:
    """Reads a checkpoint's manifest and checks every byte of its files: do it once, and pass the manifest on.

    Raises: ValueError if something is missing, cut short or changed.
    """
    manifest = read_manifest(path)
    for name, expected in manifest.sha256.items():
        if not (path / name).is_file() or hash_file(path / name) != expected:
            raise ValueError(f"{path / name} is missing, cut short or changed since it was written; {REMEDY}.")
    return manifest


def check_fits(path: Path, manifest: Manifest, network: NetworkConfig, num_classes: int) -> None:
    """Raises: ValueError naming what differs, if the checkpoint is of another network."""
    # Keys that earlier versions did not have get their defaults.
    theirs, ours = asdict(network_of(manifest.network, path / "manifest.json")), asdict(network)
    # `leave_out` only records what the table of layers shows.
    differing = [key for key in ours if key != "leave_out" and theirs[key] != ours[key]]
    if differing:
        first = differing[0]
        detail = "" if first == "layers" else f" ({theirs[first]} there, {ours[first]} here)"
        raise ValueError(f"{path} is a checkpoint of another network: network.{first} differs{detail}.")
    if len(manifest.classes) != num_classes:
        raise ValueError(f"{path} was trained on {len(manifest.classes)} classes, and the data has {num_classes}.")


def load_tower(path: Path, tower: Tower) -> dict[str, Tensor]:
    """Puts a checkpoint's weights into `tower`, and returns the velocity buffers by parameter name.

    Raises: ValueError if names or shapes do not fit.
    """
    file = path / tower_file(tower.tower)
    tensors, _ = read_tensors(file, REMEDY)
    parameters = tower.paper_named_parameters()
    for name, parameter in parameters.items():
        if name not in tensors or tensors[name].shape != parameter.shape:
            shape = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise ValueError(f"{file}: {name} should be {tuple(parameter.shape)}, and there is {shape}; {REMEDY}.")
    velocities = {name.removeprefix(VELOCITY): t for name, t in tensors.items() if name.startswith(VELOCITY)}
    for name, tensor in velocities.items():
        if name not in parameters or tensor.shape != parameters[name].shape:
            raise damaged(file, f"the velocity {on_one_line(name, 60)} has no parameter of its form", REMEDY)
    if any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        raise damaged(file, "not all of its tensors are float32", REMEDY)
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[name])
    return velocities


def find_whole(run_dir: Path) -> Path | None:
    """A run's last checkpoint of which nothing is missing or cut short; None if there is none.

    A line is printed for each later one that is passed over. Nothing is hashed here, because that takes seconds, and
    is done when the run goes on.
    """
    folder = run_dir / "checkpoints"
    for step in reversed(checkpoint_steps(folder)):
        try:
            path = place(folder, step)
            for name in read_manifest(path).sha256:
                read_metadata(path / name, REMEDY)  # which finds a file that is cut short
        except (ValueError, OSError) as error:
            print(f"passed over: {on_one_line(str(error))}")
        else:
            return path
    return None


def find(where: str | Path) -> Path:
    """The checkpoint meant by a path: a checkpoint itself, or a run's last one.

    Raises: ValueError if there is none, or a link leads out of the folder.
    """
    path = Path(where)
    if not path.exists():
        raise ValueError(f"{path} does not exist; give the folder of a run or of a checkpoint.")
    refuse_links(path)
    if (path / "manifest.json").exists():
        return path
    for folder in (path / "checkpoints", path):
        steps = checkpoint_steps(folder)
        if steps:
            return place(folder, steps[-1])
    raise ValueError(f"{path} holds no complete checkpoint.")


def choose(run_dir: Path, given: str | None) -> Path:
    """A run's checkpoint by its path, its name (step-00000120) or its step (120); None: the last one.

    Raises: ValueError naming those that the run has.
    """
    if given is None:
        return find(run_dir)
    folder = run_dir / "checkpoints"
    step = given.removeprefix("step-")
    if step.isdigit() and int(step) in checkpoint_steps(folder):
        return place(folder, int(step))
    if Path(given).exists():
        return find(given)
    have = ", ".join(place(folder, step).name for step in checkpoint_steps(folder)) or "none"
    raise ValueError(f"checkpoint={given} is none of {run_dir}'s; it has {have}.")
