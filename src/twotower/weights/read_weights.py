"""Reads a network's weights, from our own files or from others', and puts them into towers."""

from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor

from twotower.config import NetworkConfig
from twotower.config.presets import network_of
from twotower.ground.devices import choose_memory_format
from twotower.ground.stored_files import ANYTHING, damaged, parse_json, read_tensors
from twotower.model.tower import Tower
from twotower.runs import checkpoint
from twotower.weights.merged import (
    Imported,
    does_not_fit,
    expected_shapes,
    hash_tensors,
    merge,
    misfits,
    same_function,
    split,
)
from twotower.weights.other_formats import read_caffe, read_torchvision

__all__ = [
    "Imported",
    "build_towers",
    "load_towers_from_file",
    "merge",
    "read_about",
    "read_checkpoint",
    "read_merged",
    "read_weights",
    "split",
    "whole_mean_image",
]

FORMAT = "twotower merged 2"
FORMATS = ("twotower merged 1", FORMAT)  # 1: before files had a proof with them
STORED_AS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MEAN_TENSOR = "mean_image"  # mean of the centre crop
WHOLE_MEAN_IMAGE = "whole_mean_image"  # mean of the prepared square
REMEDY = "export it again"
_CLASSES = TypeAdapter(list[str])
KINDS = "a run's or checkpoint's folder, .safetensors, .caffemodel, .npy, .npz, .pth or .pt"


def read_about(path: Path) -> dict[str, str]:
    """The metadata of a file that launch/export.py made. Raises: ValueError if it is another file, or damaged."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a file that launch/export.py to=merged has written.")
    about = read_tensors(path, REMEDY, finite=False)[1]
    if about.get("format") not in FORMATS:
        raise ValueError(
            f"{path} has no network with it; give a file of launch/export.py to=merged, or a checkpoint's folder."
        )
    return about


@lru_cache(maxsize=4)
def _read_table(text: str, path: Path) -> NetworkConfig:
    return network_of(parse_json(text, ANYTHING, path, REMEDY), path)


def _read_network(text: str, path: Path) -> NetworkConfig:
    """The table of layers in a file. It is read several times when a network is loaded, and takes 20 ms at first."""
    return deepcopy(_read_table(text, path))


def read_merged(path: Path) -> Imported:
    """Reads a file of launch/export.py to=merged; no shape is checked. Raises: ValueError if it is none.

    Tensors that are stored in half precision come in float32.
    """
    about = read_about(path)
    tensors, _ = read_tensors(path, REMEDY)
    missing = [key for key in ("network", "classes") if key not in about]
    if missing:
        raise damaged(path, f"its metadata has no {missing[0]}", REMEDY)
    classes = parse_json(about["classes"], _CLASSES, path, REMEDY)
    if not classes:
        raise damaged(path, "it has no classes", REMEDY)
    if hash_tensors(tensors) != about.get("sha256"):
        raise ValueError(
            f"{path} was changed or damaged: the SHA-256 of its tensors is not the one stored in it; export it again."
        )
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    central = tensors.pop(MEAN_TENSOR, None)
    mean = tensors.pop(WHOLE_MEAN_IMAGE, central)
    source = f"{path}, exported from step {about.get('step', 'unknown')}"
    return Imported(tensors, mean, source, _read_network(about["network"], path), classes, about.get("mean_use"))


def read_checkpoint(path: Path, manifest: checkpoint.Manifest | None = None) -> Imported:
    """The last checkpoint of a run's folder, or the one that lies at `path`.

    Args:
        manifest: its manifest, if `verify_checkpoint` was called for it already.

    Raises: ValueError if there is none, or it is damaged, or its tensors are not those of its table of layers.
    """
    place = checkpoint.find(path)
    manifest = manifest or checkpoint.verify_checkpoint(place)
    network = network_of(manifest.network, place / "manifest.json")
    towers = []
    for tower in range(network.towers):
        tensors, _ = read_tensors(place / checkpoint.tower_file(tower), checkpoint.REMEDY)
        towers.append({name: tensor for name, tensor in tensors.items() if "/" not in name})  # without velocity/
    try:
        merged = merge(towers)
        wrong = misfits(merged, expected_shapes(network, len(manifest.classes)))
    except (KeyError, ValueError, RuntimeError, IndexError) as error:
        raise damaged(place, f"its towers do not fit together: {error}", checkpoint.REMEDY) from None
    if wrong or any(tensor.dtype != torch.float32 for tensor in merged.values()):
        reason = (
            f"{wrong[0]} is not as the table of layers in its manifest.json has it" if wrong else "not all float32"
        )
        raise damaged(place, reason, checkpoint.REMEDY)
    fed = manifest.scale()
    mean = None if fed["mean_value"] is None else torch.tensor(fed["mean_value"])
    return Imported(merged, mean, str(place), network, manifest.classes, std=fed["std"])


def read_weights(
    path: str | Path, network: NetworkConfig, num_classes: int, mean_file: str | Path | None = None
) -> Imported:
    """Weights for a network, from our own files or from Caffe's, TensorFlow's or torchvision's AlexNet.

    Args:
        path: a file of launch/export.py to=merged; a run's or a checkpoint's folder; Caffe's bvlc_alexnet or
            bvlc_reference_caffenet as .caffemodel, or as .npy or .npz (layer -> weights and biases) in Caffe's layout
            or in TensorFlow's; torchvision's alexnet as .pth.
        mean_file: the mean image [3, H, W] that belongs to Caffe's weights, B, G, R, 0..255, as .npy or .binaryproto;
            None: Caffe's mean of each channel.

    Raises: ValueError naming the first tensor that does not fit, or what the file is not; or a mean that belongs to
        no Caffe weights.
    """
    path, mean_path = Path(path), Path(mean_file) if mean_file is not None else None
    if not path.exists():
        raise ValueError(f"{path} does not exist; give {KINDS}.")
    is_caffe = path.suffix in (".caffemodel", ".npy", ".npz")
    if mean_path is not None and not is_caffe:
        raise ValueError(f"{mean_path} is a mean for Caffe's weights, and {path} has its own; leave it out.")
    if is_caffe:
        return read_caffe(path, network, num_classes, mean_path)
    if path.is_dir():
        imported = read_checkpoint(path)
    elif path.suffix == ".safetensors":
        imported = read_merged(path)
    elif path.suffix in (".pth", ".pt"):
        imported = read_torchvision(path)
    else:
        raise ValueError(f"{path} is of a kind that is not known; give {KINDS}.")
    if misfits(imported.tensors, expected_shapes(network, num_classes)):
        theirs = imported.network
        # Where both are called the same, the tensor that is missing or of another shape says more.
        if (
            theirs is not None
            and imported.classes is not None
            and ((theirs.name, theirs.width, len(imported.classes)) != (network.name, network.width, num_classes))
        ):
            raise ValueError(
                f"{path} is network={theirs.name} with network.width={theirs.width:g} and {len(imported.classes)} "
                f"classes, and what is asked for is network={network.name} with network.width={network.width:g} and "
                f"{num_classes} classes."
            )

        def fits(other: NetworkConfig, classes: int) -> bool:
            return not misfits(imported.tensors, expected_shapes(other, classes))

        raise does_not_fit(path, imported.tensors, network, num_classes, fits)
    return imported


def build_towers(
    merged: Mapping[str, Tensor], network: NetworkConfig, num_classes: int, device: torch.device
) -> list[Tower]:
    """The network's towers with these weights, for evaluation on `device`."""
    memory_format = choose_memory_format(device)
    towers = []
    for index in range(network.towers):
        tower = Tower(network, num_classes, index, seed=0)
        own = split(merged, network, num_classes, index)
        for name, parameter in tower.paper_named_parameters().items():
            parameter.data.copy_(own[name])
        towers.append(tower.on(device, memory_format).eval())
    return towers


def load_towers_from_file(
    path: str | Path,
    network: NetworkConfig,
    num_classes: int,
    device: torch.device,
    mean_file: str | Path | None = None,
) -> tuple[list[Tower], Tensor | None]:
    """Towers with a file's weights, and the mean that belongs to them; arguments and errors as of `read_weights`.

    The mean is float32 [3] or [3, S, S], RGB, 0..255 (`whole_mean_image` makes what the input takes of it); None:
    that of the data.

    Raises: ValueError also if the file was trained as another function of the same shapes.
    """
    imported = read_weights(path, network, num_classes, mean_file)
    differs = same_function(imported.network, network) if imported.network is not None else None
    if differs is not None and imported.network is not None:
        raise ValueError(
            f"{path} was trained as network={imported.network.name}, and network={network.name} differs from it in "
            f"network.{differs}; give network={imported.network.name}."
        )
    return build_towers(imported.tensors, network, num_classes, device), imported.mean


def whole_mean_image(mean: Tensor, size: int) -> NDArray[np.float32]:
    """float32 [size, size, 3], as a data set has it, of a mean [3], [3, size, size], or a smaller [3, S, S].

    A smaller one is put in the middle and its edge carried on outwards, which is exact for input.mean=central and
    for the centre crop; other crops of an `aligned` mean need the data set's own.
    """
    if mean.dim() == 1:
        return np.broadcast_to(mean.numpy(), (size, size, 3)).copy()
    image = mean.permute(1, 2, 0).numpy()
    if max(image.shape[:2]) > size:
        raise ValueError(f"The mean image has {image.shape[0]} pixels, more than the {size} of the data's images.")
    before = [(size - side) // 2 for side in image.shape[:2]]
    pads = [(first, size - side - first) for first, side in zip(before, image.shape[:2], strict=True)]
    return np.ascontiguousarray(np.pad(image, [*pads, (0, 0)], mode="edge"))
