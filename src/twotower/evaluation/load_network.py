"""Trained networks from runs and files of weights, and untrained ones by the name of their preset."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twotower.config import EvaluateConfig, FeaturesConfig, InputConfig, NetworkConfig, PredictConfig, check_bounds
from twotower.config.presets import PRESETS, preset, preset_input
from twotower.config.stored_config import read_config
from twotower.data.class_names import ilsvrc_words
from twotower.data.dataset import MEAN_IMAGE
from twotower.evaluation.evaluate import open_weights
from twotower.evaluation.subject import load_towers
from twotower.evaluation.trained import TrainedNetwork
from twotower.ground.devices import choose_device, choose_memory_format
from twotower.model.tower import Tower
from twotower.runs import checkpoint
from twotower.runs.rundir import own_mean
from twotower.weights import read_weights as weights
from twotower.weights.hub import MODEL, check_whole, locate
from twotower.weights.proof import check_file


def load_network(
    path: str | Path,
    *,
    checkpoint: str | int | None = None,
    network: str | NetworkConfig | None = None,
    input: InputConfig | None = None,
    mean: str | None = None,
    device: str | torch.device = "auto",
    check: bool = True,
) -> TrainedNetwork:
    """A trained network from the folder of a run, or from a file of weights.

    A file of `launch/export.py` is refused unless it computes what it did when it was written, and is better than
    guessing: see weights/proof.py.

    Args:
        path: the folder of a run or of one of its checkpoints; a file of `launch/export.py`, or a folder that it made
            for Hugging Face's hub; "hf:OWNER/NAME", which fetches one; the name of a network that comes with this
            project, such as "alexnet_shapes"; Caffe's `.caffemodel`, `.npy` or `.npz`; torchvision's `.pth`.
        checkpoint: the name or the step of one of a run's checkpoints; None: the last one.
        network: the preset that a file of others belongs to, "caffe_alexnet", "caffenet" or "torchvision_alexnet".
        input: how images are brought to a file of others; None: as its preset says.
        mean: the mean image that belongs to Caffe's weights; None: Caffe's mean of each channel.
        device: "auto" (the GPU if there is one), "cpu", "cuda", or a torch device.
        check: False loads an exported file whatever it computes; its checksum is still looked at.

    Raises: ValueError if there is nothing that can be read, or it does not fit the network, or it is not what it was
        when it was written.
    """
    chosen = device if isinstance(device, torch.device) else choose_device(device)
    folder = locate(path)
    if folder.is_dir() and folder.parent.name == "checkpoints" and checkpoint is None:
        return _load_run(folder.parents[1], folder.name, chosen)
    if folder.is_dir():
        return _load_run(folder, None if checkpoint is None else str(checkpoint), chosen)
    if checkpoint is not None:
        raise ValueError(f"checkpoint={checkpoint} belongs to a run's folder, and {path} is none.")
    if isinstance(network, str):
        _check_preset(network)
        input = input or preset_input(network)
        network = preset(network)
    if folder.suffix == ".safetensors":
        check_whole(folder)
    loaded = _load_file(str(folder), network, input, mean, chosen)
    if folder.name == MODEL:  # which all such files are called
        loaded.title = str(path)
    if check and folder.suffix == ".safetensors":
        check_file(folder)
    return loaded


def _check_preset(name: str) -> None:
    """Raises: ValueError if conf/network has no such network."""
    names = sorted(file.stem for file in PRESETS.glob("*.yaml"))
    if name not in names:
        raise ValueError(
            f"network={name} is not among the networks of conf/network; choose one of {', '.join(names)}."
        )


def _load_run(run_dir: Path, chosen: str | None, device: torch.device) -> TrainedNetwork:
    """Raises: ValueError for a folder without run or checkpoint, or a run that was trained without images."""
    config = read_config(run_dir)
    path = checkpoint.choose(run_dir, chosen)
    manifest = checkpoint.verify_checkpoint(path)
    classes = manifest.classes
    mean_image = own_mean(run_dir)
    if mean_image is None:
        raise ValueError(f"{run_dir} has no {MEAN_IMAGE}: it was not trained on images, and cannot judge any.")
    towers = load_towers(path, manifest, config, len(classes), device)
    title = f"{run_dir.resolve().name}, {path.name}"
    return TrainedNetwork(towers, config.input, config.network.exchange_precision, classes, mean_image, title)


def _load_file(
    path: str, network: NetworkConfig | None, input: InputConfig | None, mean_file: str | None, device: torch.device
) -> TrainedNetwork:
    """Raises: ValueError for a file that cannot be read, or does not fit the network, or has no mean with it."""
    table, fed, own = open_weights(EvaluateConfig(weights=path, network=network, input=input))
    classes = list(ilsvrc_words()) if own is None or own.classes is None else own.classes
    towers, mean = weights.load_towers_from_file(path, table, len(classes), device, mean_file)
    if mean is None:
        raise ValueError(f"{path} has no mean image; give the folder of its run.")
    # Our own files hold the mean of the whole prepared square, whose size is that of prepared images.
    size = mean.shape[-1] if own is not None and mean.dim() == 3 else table.prepared_size
    mean_image = weights.whole_mean_image(mean, size)
    return TrainedNetwork(towers, fed, table.exchange_precision, classes, mean_image, Path(path).name)


def build_network(
    name: str = "alexnet_2012",
    num_classes: int = 1000,
    *,
    width: float = 1.0,
    seed: int = 0,
    device: str | torch.device = "auto",
    **changes: Any,
) -> TrainedNetwork:
    """A network of conf/network with the random weights that training would start from.

    It has seen no images, so nothing is subtracted from them unless its input has constants for that.

    Args:
        name: the name of a yaml in conf/network, e.g. "alexnet", "alexnet_2012", "one_tower", "caffenet".
        width: factor on the kernels of every layer.
        seed: of the stream of initial weights.
        changes: other keys of the network, e.g. dropout_keep=1.0.

    Raises: ValueError for a name or key that is not known, no classes, or a table that cannot be built.
    """
    _check_preset(name)
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} is not at least 1.")
    table = preset(name, {"width": width, **changes})
    chosen = device if isinstance(device, torch.device) else choose_device(device)
    towers = [
        Tower(table, num_classes, tower, seed).on(chosen, choose_memory_format(chosen))
        for tower in range(table.towers)
    ]
    classes = list(ilsvrc_words()) if num_classes == 1000 else [str(index) for index in range(num_classes)]
    mean_image = np.zeros((table.prepared_size, table.prepared_size, 3), np.float32)
    title = f"{name}, untrained"
    input = replace(preset_input(name), crop_size=table.image_size)
    return TrainedNetwork(towers, input, table.exchange_precision, classes, mean_image, title)


def open_trained(settings: PredictConfig | FeaturesConfig) -> TrainedNetwork:
    """The network that the settings name.

    Raises: ValueError for settings that are not known or do not go together, or a network that cannot be read.
    """
    check_bounds(settings)
    if (settings.run is None) == (settings.weights is None):
        raise ValueError("give one of run=RUN and weights=FILE.")
    for key, given in (("network", settings.network), ("mean", settings.mean)):
        if given is not None and settings.weights is None:
            raise ValueError(f"{key}= is for weights=FILE; a run has its own.")
    if settings.checkpoint is not None and settings.run is None:
        raise ValueError("checkpoint= is for run=RUN; a file of weights has only one.")
    return load_network(
        settings.run or settings.weights or "",
        checkpoint=settings.checkpoint,
        network=settings.network,
        input=settings.input,
        mean=settings.mean,
        device=settings.device,
        check=settings.check,
    )
