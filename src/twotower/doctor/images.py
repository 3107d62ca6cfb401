"""Tries the input: a hundred JPEGs, drawn for the purpose, decoded by each loader on each device that is there."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from twotower.config import DataConfig, DoctorConfig, InputConfig
from twotower.data.batch import Share
from twotower.data.choose_loader import find_dali_problem
from twotower.data.dataset import DataSet
from twotower.data.feed import open_validation
from twotower.data.preparing.first_use import prepare
from twotower.doctor.findings import Finding, look
from twotower.ground.processes import cores

IMAGES, BATCH = 100, 25
MOST_DIFFERENT = 8.0  # grey levels, mean over all pixels; decoders differ by less than two


def examine_images(settings: DoctorConfig, scratch: Path) -> Iterator[Finding]:
    """Args: scratch: a folder for the images."""
    data = DataConfig(kind="shapes", root=str(scratch / "shapes"), num_train=24, num_val=IMAGES)
    dataset = prepare(data, progress=False, loader="torch")
    input_config = replace(settings.input, crop_size=min(settings.input.crop_size, dataset.size), loader="torch")
    ways = [("torch", "cpu")]
    if not find_dali_problem():
        ways.append(("dali", "cpu"))
        if torch.cuda.is_available() and settings.machine.device != "cpu":
            ways.append(("dali", "cuda"))
    references: list[NDArray[np.float32]] = []
    for loader, device in ways:
        config = replace(input_config, loader=loader)
        yield look(
            f"decoded by {loader} on {device}",
            lambda config=config, device=device: _compare(  # type: ignore[misc]
                dataset, config, torch.device(device), references
            ),
        )


def _compare(
    dataset: DataSet, config: InputConfig, device: torch.device, references: list[NDArray[np.float32]]
) -> str:
    """The speed of a way, and how far its images are from those of the first way, which is kept in `references`."""
    images, seconds = _decode(dataset, config, device)
    text = f"{IMAGES} JPEGs at {IMAGES / seconds:.0f} images/s"
    if not references:
        references.append(images)
        return text
    difference = float(np.abs(images - references[0]).mean())
    if not difference <= MOST_DIFFERENT:
        raise ValueError(
            f"the images differ from those that torch decodes by {difference:.1f} grey levels on average; use "
            "input.loader=torch, and report this page."
        )
    return f"{text}, {difference:.2f} grey levels from torch's on average"


def _decode(dataset: DataSet, config: InputConfig, device: torch.device) -> tuple[NDArray[np.float32], float]:
    """All images, normalised, and the seconds of the second time."""
    share = Share(BATCH, 0, 1, device, threads=max(1, cores()))
    images = np.empty(0, np.float32)
    seconds = 0.0
    for _ in range(2):  # the first time opens files and libraries
        feed = open_validation(dataset, config, share)
        began = time.perf_counter()
        images = np.concatenate([batch.images.cpu().numpy() for batch in feed])
        seconds = time.perf_counter() - began
        feed.close()
    return images, seconds
