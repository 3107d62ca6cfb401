"""The subject of an evaluation: a run with the checkpoint and the images that it is evaluated on."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from twotower.config import Config, EvaluateConfig, check_bounds
from twotower.config.frozen_config import freeze
from twotower.config.stored_config import read_config
from twotower.data.choose_loader import adapt_to_machine
from twotower.data.dataset import DataSet
from twotower.data.preparing.run_images import open_images
from twotower.evaluation import predictions
from twotower.ground.devices import choose_device
from twotower.ground.precision import check_precision
from twotower.model.tower import Tower
from twotower.runs import checkpoint
from twotower.runs.checkpoint import Manifest
from twotower.runs.rundir import check_classes, check_writable, with_own_mean
from twotower.weights import read_weights as weights


@dataclass(frozen=True)
class Subject:
    """A run with the checkpoint and the images that it is evaluated on.

    Attributes:
        manifest: the checkpoint's, verified.
        identity: what its predictions depend on.
        precision: of the arithmetic, as `machine.precision`.
    """

    run_dir: Path
    checkpoint: Path
    manifest: Manifest
    config: Config
    dataset: DataSet
    identity: dict[str, Any]
    precision: str = "fp32"


def check_settings(settings: EvaluateConfig) -> None:
    """Raises: ValueError for a value that is not known, or a device that is not there."""
    check_bounds(settings)
    choose_device(settings.device)


def open_subject(run: str, settings: EvaluateConfig, verified: Manifest | None = None) -> Subject:
    """Reads a run's configuration, checks its checkpoint and makes its data set ready.

    Args:
        verified: the manifest of the last checkpoint, where that has been checked already; files are hashed once.

    Raises: ValueError for a folder without run or checkpoint, or a damaged checkpoint, or data that does not fit.
    """
    run_dir = Path(run)
    config = read_config(run_dir)
    config = freeze(replace(config, input=adapt_to_machine(config.input)))
    check_writable(run_dir)
    path = checkpoint.choose(run_dir, settings.checkpoint)
    is_verified = verified is not None and checkpoint.place(path.parent, verified.step) == path
    manifest = verified if is_verified and verified is not None else checkpoint.verify_checkpoint(path)
    data, opened = open_images(run_dir, config.data, settings.data_root)
    config = freeze(replace(config, data=data))
    dataset = with_own_mean(opened, run_dir)
    check_classes(path, manifest.classes, dataset.classes)
    checkpoint.check_fits(path, manifest, config.network, len(dataset.classes))
    device = choose_device(settings.device)
    precision = choose_precision(settings.precision, config, device)
    identity = predictions.identify_predictions(manifest, config, dataset, settings.split, device, precision)
    return Subject(run_dir, path, manifest, config, dataset, identity, precision)


def choose_precision(asked: str | None, config: Config, device: torch.device) -> str:
    """What was asked for, else the precision of the training, or fp32 where the device lacks that.

    Raises: ValueError if what was asked for cannot be had.
    """
    if asked is not None:
        check_precision(asked, device, "precision")
        return asked
    try:
        check_precision(config.machine.precision, device)
    except ValueError:
        return "fp32"
    return config.machine.precision


def load_towers(
    path: Path, manifest: checkpoint.Manifest, config: Config, num_classes: int, device: torch.device
) -> list[Tower]:
    """All towers of a verified checkpoint, for evaluation. Raises: ValueError if it is of another network."""
    checkpoint.check_fits(path, manifest, config.network, num_classes)
    return weights.build_towers(weights.read_checkpoint(path, manifest).tensors, config.network, num_classes, device)
