"""The predictions for every image of a split, stored beside their run, so that nothing has to be computed twice.

    RUN/predictions/step-00000120-val-ten.safetensors   log_probabilities float32 [N, classes], labels int64 [N]

Logarithms, as the smallest probabilities have no place in float32. The file also says what the numbers depend on:
the checkpoint's checksums, the data set, split and view, the input, the version of this package. Stored predictions
are used again only if all of that is the same. ILSVRC's 50,000 images take 200 MB a view.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Gt
from pydantic import ConfigDict, FiniteFloat, TypeAdapter
from torch import Tensor
from typing_extensions import TypedDict

from twotower.config import Config, InputConfig
from twotower.config.key_roles import Role, select_settings
from twotower.config.moved_keys import MOVED
from twotower.data.choose_loader import choose_loader
from twotower.data.dataset import DataSet
from twotower.data.folder_cache import INDEX, find_cache, find_root
from twotower.data.prepared_set import DATASET, is_prepared, read_dataset_json
from twotower.evaluation.metrics import Counts, count
from twotower.ground.stored_files import Positive, parse_json, read_metadata, read_tensors
from twotower.ground.tensor_files import write_tensors
from twotower.runs.checkpoint import Manifest, read_scale

VIEWS = ("centre", "ten")
FOLDER = "predictions"
REMEDY = "evaluate the run again with fresh=true"
_CHUNK = 8192  # images that are counted at a time


class _Data(TypedDict):
    """The images of an identity."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    source: str | None
    kind: str
    root: str
    num_images: Positive
    num_classes: Positive


class StoredIdentity(TypedDict):
    """What every identity has that is read; see `identify_predictions`."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    checkpoint: dict[str, str]
    width: Annotated[FiniteFloat, Gt(0)]
    data: _Data
    split: str


IDENTITY: TypeAdapter[Any] = TypeAdapter(StoredIdentity)


@dataclass(frozen=True)
class Predictions:
    """Predictions for N images in the order of the split.

    Attributes:
        log_probabilities: float32 [N, classes]; for ten crops, natural logarithms of their mean softmax output.
        labels: int64 [N].
        images_per_second: of the pass that computed them.
        pass_crops: `centre` or `ten`, the crops that this pass went through; the centre is one of the ten.
        stored: whether they were read and not computed.
    """

    log_probabilities: Tensor
    labels: Tensor
    images_per_second: float
    pass_crops: str
    stored: bool = False

    def probabilities(self) -> Tensor:
        """float32 [N, classes]."""
        return self.log_probabilities.exp()

    def counts(self) -> Counts:
        """Errors and loss over all images."""
        counts = Counts.zero()
        for begin in range(0, len(self.labels), _CHUNK):
            part = slice(begin, begin + _CHUNK)
            counts.add(Counts(count(self.log_probabilities[part], self.labels[part])))
        return counts


def package_version() -> str:
    """The version of twotower, or `unknown` where it is not installed."""
    try:
        return version("twotower")
    except PackageNotFoundError:
        return "unknown"


def _identity_of_input(given: InputConfig) -> dict[str, Any]:
    """Without a scale where there is none, so that what was stored before there was a choice still counts."""
    usual = read_scale(InputConfig())
    settings = select_settings(given, (Role.NUMBERS,))
    return {key: value for key, value in settings.items() if key not in usual or value != usual[key]}


def identify_predictions(
    manifest: Manifest, config: Config, dataset: DataSet, split: str, device: torch.device, precision: str = "fp32"
) -> dict[str, Any]:
    """Collects all that the predictions of a checkpoint depend on, apart from the view.

    The data set's fingerprint is the SHA-256 of its index, which lists its files, or their checksums. GPUs add up in
    another order and precision, and may decode otherwise, so theirs are not taken for those of a CPU or another GPU.

    Raises: ValueError if the data set has no such split.
    """
    root = find_root(config.data)
    prepared = is_prepared(root)
    index = root / DATASET if prepared else find_cache(config.data) / INDEX
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    shortened = {"precision": precision} if precision != "fp32" else {}
    return {
        **gpu,
        **shortened,
        "checkpoint": manifest.sha256,
        "network": config.network.name,
        "width": config.network.width,
        "data": {
            "kind": config.data.kind,
            "root": str(root.resolve()),
            "source": read_dataset_json(root)["settings"]["source"] if prepared else None,
            "fingerprint": hashlib.sha256(index.read_bytes()).hexdigest() if index.exists() else None,
            "num_images": len(dataset.split(split)),
            "num_classes": len(dataset.classes),
        },
        "split": split,
        "input": _input_of(config, dataset),
        "version": package_version(),
    }


def _input_of(config: Config, dataset: DataSet) -> dict[str, Any]:
    """Both loaders give the same bits, unless images are resized."""
    settings = _identity_of_input(config.input)
    del settings["loader"]
    if dataset.needs_resize and not dataset.is_synthetic and choose_loader(config.input.loader) == "torch":
        settings["loader"] = "torch"
    return settings


def locate_predictions(run_dir: Path, checkpoint_name: str, split: str, view: str) -> Path:
    """Where predictions lie; `view` is `centre` or `ten`."""
    return run_dir / FOLDER / f"{checkpoint_name}-{split}-{view}.safetensors"


def store(path: Path, predictions: Predictions, identity: dict[str, Any]) -> None:
    """Writes predictions, complete or not at all. Raises: OSError if the folder cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {
        "identity": json.dumps(identity, sort_keys=True),
        "images_per_second": repr(predictions.images_per_second),
        "pass_crops": predictions.pass_crops,
    }
    tensors = {"log_probabilities": predictions.log_probabilities.contiguous(), "labels": predictions.labels}
    write_tensors(path, tensors, about, shared=True)


def read_identity(path: Path) -> dict[str, Any] | None:
    """Reads what stored predictions depend on; None if there are none, or they cannot be read."""
    try:
        return dict(parse_json(read_metadata(path, REMEDY)["identity"], IDENTITY, path, REMEDY))
    except (KeyError, ValueError):
        return None


def _without_machine(identity: dict[str, Any]) -> dict[str, Any]:
    """Earlier versions had some of the machine's keys among those of the input, and noted them, too."""
    moved = {key.removeprefix("input.") for key in MOVED}
    settings = {key: value for key, value in dict(identity.get("input", {})).items() if key not in moved}
    return identity | {"input": settings}


def read(path: Path, identity: dict[str, Any]) -> Predictions | None:
    """Stored predictions; None unless they are whole and depend on exactly what `identity` says."""
    stored = read_identity(path)
    if stored is None or _without_machine(stored) != _without_machine(identity):
        return None
    try:
        tensors, about = read_tensors(path, REMEDY, finite=False)
        log_probabilities, labels = tensors["log_probabilities"], tensors["labels"]
        rate, pass_crops = float(about["images_per_second"]), about["pass_crops"]
    except (ValueError, KeyError):
        return None
    size = (stored["data"]["num_images"], stored["data"]["num_classes"])
    fits = (
        (log_probabilities.dtype, tuple(log_probabilities.shape)) == (torch.float32, size)
        and (labels.dtype, tuple(labels.shape)) == (torch.int64, size[:1])
        and pass_crops in VIEWS
        and math.isfinite(rate)
    )
    if not fits or not 0 <= int(labels.min()) <= int(labels.max()) < size[1] or log_probabilities.isnan().any():
        return None  # damaged, so they are computed again
    return Predictions(log_probabilities, labels, rate, pass_crops, stored=True)
