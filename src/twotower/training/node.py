"""What each node of a run over several must have for itself, and have alike: images, settings, versions.

Nodes need no disk in common. Each has the images under its own `data.root`, prepared there by its first process, and
the same command; the run's folder is rank 0's alone.
"""

import hashlib
import json
from typing import Any

import torch

from twotower.config import Config
from twotower.config.key_roles import Role, select_settings
from twotower.data.choose_loader import choose_loader
from twotower.data.dataset import DataSet
from twotower.data.decoded_squares import decode_squares
from twotower.data.preparing.first_use import prepare
from twotower.distributed.world import World
from twotower.ground.wording import word_error

# Keys of these roles must be alike, and of what is noted the steps at which all processes meet to note it.
ALIKE = (Role.NUMBERS, Role.TRAINING, Role.SEED, Role.SPEED)
OWN = ("initial_weights.path", "machine.threads", "machine.loader_threads")


def fingerprint(dataset: DataSet) -> str:
    """Of what a data set gives to a training: classes, labels in their order, the mean of all pixels, their PCA."""
    digest = hashlib.sha256(json.dumps(dataset.classes).encode())
    for values in (dataset.train.labels, dataset.val.labels, dataset.mean_image, dataset.eigenvalues):
        digest.update(b"" if values is None else values.tobytes())
    return digest.hexdigest()[:16]


def describe_node(config: Config) -> dict[str, Any]:
    """Gets the images ready on this node's disk, where that has not been done. Raises: ValueError, OSError."""
    dataset = prepare(config.data, progress=False, loader=config.input.loader)
    if config.input.cache != "none" and not dataset.is_synthetic:
        decode_squares(dataset, progress=False)
    meetings = {
        "checkpoint.every_steps": config.checkpoint.every_steps,
        "logging.every_steps": config.logging.every_steps,
        "logging.scales_every_steps": config.logging.scales_every_steps,
    }
    settings = select_settings(config, ALIKE) | meetings
    return {
        **{key: value for key, value in settings.items() if key not in OWN},
        "the number of images": [len(dataset.train), len(dataset.val)],
        "the fingerprint of the images": fingerprint(dataset),
        "the loader": None if dataset.is_synthetic else choose_loader(config.input.loader),
        "the version of torch": torch.__version__.partition("+")[0],
    }


def check_nodes(config: Config, world: World) -> None:
    """All processes call this together, after rank 0 has got the run ready.

    Raises: ValueError in all of them, naming the node that cannot take part and why.
    """

    def describe() -> str:
        try:
            return json.dumps(describe_node(config))
        except (ValueError, OSError) as error:
            return json.dumps({"error": word_error(error)})

    found = {node: json.loads(text) for node, text in world.from_each_node("ready", describe).items()}
    first = next(iter(found))
    for node, described in found.items():
        host = f"node {node} ({world.nodes[node]})"
        if "error" in described:
            raise ValueError(f"On {host}: {described['error']}")
        for key, value in found[first].items():
            if described.get(key) != value:
                raise ValueError(
                    f"{key} is {value} on node {first} ({world.nodes[first]}) and {described.get(key)} on {host}; "
                    "give every node the same command, images and installation."
                )
