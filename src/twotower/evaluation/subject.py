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
    """

    run_dir: Path
    checkpoint: Path
    manifest: Manifest
    config: Config
    dataset: DataSet
    identity: dict[str, Any]


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
    identity = predictions.identify_predictions(manifest, config, dataset, settings.split, device)
    return Subject(run_dir, path, manifest, config, dataset, identity)


def load_towers(
    path: Path, manifest: checkpoint.Manifest, config: Config, num_classes: int, device: torch.device
) -> list[Tower]:
    """All towers of a verified checkpoint, for evaluation. Raises: ValueError if it is of another network."""
    checkpoint.check_fits(path, manifest, config.network, num_classes)
    return weights.build_towers(weights.read_checkpoint(path, manifest).tensors, config.network, num_classes, device)
