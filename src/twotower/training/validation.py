"""Validation: this tower's part of exact counts over the whole set, and a handful of images to show."""

import torch
import torch.nn.functional as F

from twotower.config import InputConfig
from twotower.data.batch import Share
from twotower.data.dataset import DataSet
from twotower.data.feed import open_validation
from twotower.data.normalise import choose_mean
from twotower.distributed.exchange import Exchange
from twotower.distributed.world import World
from twotower.evaluation.metrics import Counts, count
from twotower.model.tower import Tower, forward
from twotower.runs.mirrors.training_pictures import Handful, cut_centre


def open_handful(dataset: DataSet, given: InputConfig, num_replicas: int) -> Handful | None:
    """Picks some of this replica's validation images as they pass; None for data without images."""
    if dataset.mean_image is None:
        return None
    mean = cut_centre(choose_mean(dataset.mean_image, given), given.crop_size)
    return Handful(len(dataset.val) // num_replicas, dataset.classes, mean, given.std)


@torch.no_grad()
def validate(
    tower: Tower,
    exchange: Exchange,
    world: World,
    dataset: DataSet,
    given: InputConfig,
    share: Share,
    handful: Handful | None = None,
) -> Counts:
    """Exact counts over the whole validation set, which the replicas share. All processes call this together.

    Args:
        tower: stays in evaluation mode.
        given: the input of the images.
        handful: picks from the images that pass.
    """
    tower.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)
    feed = open_validation(dataset, given, share)
    try:
        for batch in feed:
            images = batch.images.contiguous(memory_format=world.memory_format)
            log_probabilities = F.log_softmax(forward([tower], images, exchange), dim=1)
            sums += count(log_probabilities, batch.labels)
            world.end_step()
            if handful is not None:
                world.catch_up()
                handful.look(batch, log_probabilities)
    finally:
        feed.close()
    world.catch_up()
    counts = Counts(sums.cpu())
    world.sum_over_replicas([counts.sums])
    return counts
