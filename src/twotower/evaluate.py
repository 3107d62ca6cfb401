"""Error rates of a run's checkpoint, with both towers in one process."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from rich.progress import track
from torch import Tensor

from twotower import checkpoint
from twotower.config import Config, EvaluateConfig
from twotower.data import DataSet, Share, load, open_validation, prepare
from twotower.exchange import InProcessExchange
from twotower.journal import write_json
from twotower.metrics import Counts, count
from twotower.network import NUM_TOWERS, Tower, forward


def read_config(run_dir: Path) -> Config:
    """The resolved configuration that a run stored. Raises: ValueError if there is none."""
    path = run_dir / "config.yaml"
    if not path.exists():
        raise ValueError(f"run={run_dir} is not the folder of a run: it has no config.yaml.")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path)))
    assert isinstance(config, Config)
    return config


def load_towers(path: Path, config: Config, num_classes: int, device: torch.device) -> list[Tower]:
    """Both towers of a checkpoint, for evaluation. Raises: ValueError if it is damaged or of another network."""
    manifest = checkpoint.read_manifest(path)
    checkpoint.check_fits(path, manifest, config.network, num_classes)
    memory_format = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    towers = []
    for t in range(NUM_TOWERS):
        tower = Tower(config.network, num_classes, t, config.seed)
        checkpoint.load_tower(path, tower)
        tower.on(device, memory_format).eval()
        towers.append(tower)
    return towers


def log_probabilities(towers: list[Tower], images: Tensor) -> Tensor:
    """[B, classes] of images [B, 3, H, W], or of their crops [B, 10, 3, H, W].

    The ten crops' softmax outputs are averaged as probabilities (paper section 4.1; layer.cu:1809-1823).
    """
    crops = images[:, None] if images.dim() == 4 else images
    flat = crops.flatten(0, 1).contiguous(memory_format=torch.channels_last)
    if images.device.type != "cpu":
        flat = flat.contiguous()
    logits = forward(towers, flat, InProcessExchange())
    per_crop = F.log_softmax(logits, dim=1).view(*crops.shape[:2], -1)
    return torch.logsumexp(per_crop, dim=1) - math.log(crops.shape[1])


@dataclass(frozen=True)
class Evaluation:
    counts: Counts
    images_per_second: float


@torch.no_grad()
def evaluate(
    towers: list[Tower],
    dataset: DataSet,
    config: Config,
    crops: str,
    batch_size: int,
    device: torch.device,
    split: str = "val",
) -> Evaluation:
    """Exact counts over all images of `val` or `test`, the last partial batch included.

    Raises: ValueError if the data set has no such split.
    """
    counts, began = Counts.zero(), time.perf_counter()
    share = Share(batch_size, 0, 1, device, config.input.threads or torch.get_num_threads())
    feed = open_validation(dataset, config.input, share, crops=crops, split=split)
    try:
        for batch in track(feed, total=len(feed), description="evaluating", transient=True):
            counts.add(Counts(count(log_probabilities(towers, batch.images), batch.labels).cpu()))
    finally:
        feed.close()
    return Evaluation(counts, counts.num_images / (time.perf_counter() - began))


def evaluate_run(settings: EvaluateConfig) -> dict[str, Any]:
    """Evaluates a run and writes evaluation.json into its folder.

    Raises: ValueError for a folder without run or checkpoint, a damaged checkpoint, a device that is not there.
    """
    if settings.crops not in ("centre", "ten"):
        raise ValueError(f"crops={settings.crops} is not known; choose one of centre, ten.")
    if settings.device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={settings.device} is not known; choose one of auto, cpu, cuda.")
    has_gpu = torch.cuda.is_available()
    if settings.device == "cuda" and not has_gpu:
        raise ValueError("device=cuda, but torch sees no GPU; use device=cpu or auto.")
    if settings.batch_size < 1:
        raise ValueError(f"batch_size={settings.batch_size} is too small; give at least 1.")
    device = torch.device("cuda" if has_gpu and settings.device != "cpu" else "cpu")
    run_dir = Path(settings.run)
    config = read_config(run_dir)
    path = checkpoint.find(settings.checkpoint or run_dir)
    if settings.data_root is not None:
        config.data.root, config.data.cache = settings.data_root, None
    prepare(config.data)
    dataset = load(config.data)
    towers = load_towers(path, config, len(dataset.classes), device)
    found = evaluate(towers, dataset, config, settings.crops, settings.batch_size, device, settings.split)
    result = {
        "crops": settings.crops,
        "split": settings.split,
        "top1_error": found.counts.top1_error,
        "top5_error": found.counts.top5_error,
        "loss": found.counts.loss,
        "num_images": found.counts.num_images,
        "checkpoint": path.name,
        "images_per_second": found.images_per_second,
    }
    write_json(run_dir / "evaluation.json", result)
    return result
