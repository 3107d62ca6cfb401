"""Whether a file of launch/export.py is what it says: its names and shapes, its checksum, its known answer."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from twotower.config import NetworkConfig
from twotower.ground.stored_files import read_tensors
from twotower.model import plain
from twotower.weights import read_weights as weights
from twotower.weights.merged import expected_shapes, hash_tensors, misfits
from twotower.weights.untrained import untrained_layers

KNOWN_IMAGES = "100 / 3 * (sin(0.05 (i + 1) x + c) + sin(0.07 (c + 1) y + i) + sin(0.11 (x + y) - 2 i))"
TOLERANCE = 1e-4  # part of the largest logit; float32 differs by some 1e-6, another norm or order by 1e-3 and more
ERRORS = ("loss", "top1_error", "top5_error")


def known_images(size: int) -> Tensor:
    """float32 [2, 3, size, size], -100..100: `KNOWN_IMAGES` of image i, channel c, row y and column x, from 0."""
    i, c, y, x = np.ogrid[0:2, 0:3, 0:size, 0:size]
    waves = np.sin(0.05 * (i + 1) * x + c) + np.sin(0.07 * (c + 1) * y + i) + np.sin(0.11 * (x + y) - 2 * i)
    return torch.from_numpy((100 / 3 * waves).astype(np.float32))


def deviation(computed: Tensor, true: Tensor) -> float:
    """The largest difference, relative to the largest |true|."""
    return float((computed.double() - true.double()).abs().max() / true.double().abs().max())


@dataclass(frozen=True)
class Verified:
    """The findings about a file.

    Attributes:
        errors: of the run's last validation: top1_error and top5_error in percent, loss in nats; empty if there was
            none.
        deviation: of the known answer, relative to the largest logit.
        untrained: layers whose weights look as they were drawn.
    """

    network: NetworkConfig
    classes: list[str]
    step: str
    errors: dict[str, float]
    num_parameters: int
    sha256: str
    deviation: float
    untrained: list[str]


def verify(path: Path) -> Verified:
    """Checks a file of `to=merged` against its own table, checksum and known answer.

    Raises: ValueError saying what is wrong.
    """
    imported, about = weights.read_merged(path), weights.read_about(path)
    network, classes = imported.network, imported.classes
    assert network is not None
    assert classes is not None
    wanted = expected_shapes(network, len(classes)) | {
        weights.MEAN_TENSOR: (3, network.image_size, network.image_size)
    }
    tensors, _ = read_tensors(path, weights.REMEDY)
    if weights.WHOLE_MEAN_IMAGE in tensors:
        side = tensors[weights.WHOLE_MEAN_IMAGE].shape[-1]
        wanted[weights.WHOLE_MEAN_IMAGE] = (3, side, side)
    allowed = weights.STORED_AS.values()
    wrong = misfits(tensors, wanted) + [name for name, tensor in tensors.items() if tensor.dtype not in allowed]
    if wrong:
        name = wrong[0]
        actual = f"{tensors[name].dtype} {tuple(tensors[name].shape)}" if name in tensors else "missing"
        should = f"asks for floats {wanted[name]}" if name in wanted else "does not know it"
        raise ValueError(f"{path} was changed: {name} is {actual}, and the file's table of layers {should}.")
    checksum = hash_tensors(tensors)
    if checksum != about.get("sha256"):
        raise ValueError(f"{path} was changed or damaged: the SHA-256 of its tensors is not the one stored in it.")
    try:
        stored = torch.tensor(json.loads(about["known_answer"])["logits"], dtype=torch.float64)
        errors = {key: float(value) for key, value in json.loads(about["errors"]).items()}
        if errors and not set(ERRORS) <= errors.keys():
            raise ValueError(f"errors has only {', '.join(errors)}")
        errors = {key: errors[key] for key in ERRORS if errors}
        input_std = [float(value) for value in json.loads(about.get("std", "[1, 1, 1]"))]
        if len(input_std) != 3 or not min(input_std) > 0:
            raise ValueError(f"std is {input_std}")
        with torch.no_grad():
            logits = plain.load(path)(known_images(network.image_size))
        difference = deviation(logits, stored) if stored.shape == logits.shape else math.inf
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        raise ValueError(f"{path} has damaged metadata or cannot be computed ({error}); export it again.") from error
    if not difference <= TOLERANCE:
        raise ValueError(
            f"{path} does not give its known answer: the logits differ by {difference:.1g} of the largest, and "
            f"{TOLERANCE:g} is allowed; its tensors or its table were changed."
        )
    return Verified(
        network,
        classes,
        about.get("step", "unknown"),
        errors,
        sum(tensor.numel() for name, tensor in tensors.items() if "mean_image" not in name),
        checksum,
        difference,
        untrained_layers(tensors, network, len(classes), input_std),
    )
