"""A network without one of its towers: wherever a layer reads both, zeros stand for what that tower computed.

The other tower and the last layer stay as they are, so each class still has an answer, which rests on the maps and
units of one tower alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from twotower.config import EvaluateConfig, NetworkConfig
from twotower.distributed.exchange import Flight, InProcessExchange
from twotower.evaluation.evaluate import predict
from twotower.evaluation.predictions import Predictions
from twotower.evaluation.subject import Subject, load_towers
from twotower.ground.devices import choose_device


class WithoutTower(InProcessExchange):
    """The exchange of two towers in this process, of which `tower` hands on zeros, to itself as well."""

    def __init__(self, tower: int, precision: str = "single") -> None:
        super().__init__(precision)
        self.tower = tower

    def start(self, halves: Sequence[Tensor]) -> Flight:
        """As that of `Exchange`, with zeros for the half of the tower that is left out."""
        return Flight([torch.zeros_like(x) if tower == self.tower else x for tower, x in enumerate(halves)])


def check_separable(network: NetworkConfig) -> None:
    """Raises: ValueError unless there are two towers, and the last layer reads both."""
    if network.towers != 2:
        raise ValueError(f"{network.name} has one tower, which cannot be left out; give a run of two towers.")
    last, layer = list(network.layers.items())[-1]
    if layer.reads != "both":
        raise ValueError(f"{last} of {network.name} reads its own tower alone, whose classes no other can answer.")


def predict_without(subject: Subject, settings: EvaluateConfig, tower: int) -> Predictions:
    """The centre crop's predictions for all images of the split without tower 0 or 1. Nothing is stored.

    Raises: ValueError as `check_separable`.
    """
    config, dataset = subject.config, subject.dataset
    check_separable(config.network)
    device = choose_device(settings.device)
    return predict(
        load_towers(subject.checkpoint, subject.manifest, config, len(dataset.classes), device),
        dataset,
        config,
        "centre",
        settings.batch_size,
        device,
        settings.split,
        subject.precision,
        WithoutTower(tower, config.network.exchange_precision),
    )["centre"]
