"""Folders that look like finished runs: a configuration and a tiny checkpoint with random weights, not trained."""

import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from helpers.paths import ROOT
from twotower.config import Config, register_schemas, resolve
from twotower.data.dataset import MEAN_IMAGE
from twotower.data.folder_cache import CACHE
from twotower.data.preparing.first_use import prepare
from twotower.model.tower import Tower
from twotower.runs import checkpoint

NUM_CLASSES = 7  # more than five, so that the top-5 error says something
SPREAD = 3.0  # times the initial weights, so that images and crops make a difference


def draw_images(root: Path, num_val: int = 3) -> Path:
    """One training image and `num_val` others of each class, of several sizes: root/train/c0/0.png ..."""
    stream = np.random.default_rng(0)
    for label in range(NUM_CLASSES):
        for split, count in (("train", 1), ("val", num_val)):
            for i in range(count):
                coarse = stream.integers(0, 256, (5, 6, 3), dtype=np.uint8)
                path = root / split / f"c{label}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                size = (90 + 13 * i, 80 + 5 * label)
                Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return root


def fake_config(data_root: Path, *overrides: str) -> Config:
    """Of a network of 1/16 of the width on images of 64 pixels."""
    register_schemas()
    small = [
        f"data.root={data_root}",
        "logging.wandb=disabled",
        "network.width=0.0625",
        "network.image_size=64",
        "machine.device=cpu",
    ]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(compose("config", [*small, "data=folder", "name=fake", *overrides]))


def save_checkpoint(run_dir: Path, config: Config, seed: int, num_classes: int = NUM_CLASSES) -> Path:
    """Weights drawn from `seed`, as the checkpoint of step 1."""
    folder = run_dir / "checkpoints"
    for t in range(config.network.towers):
        tower = Tower(config.network, num_classes, t, seed)
        for parameter in tower.parameters():
            parameter.data.mul_(SPREAD)
        checkpoint.save_tower(folder, 1, tower, {})
    classes = [f"c{label}" for label in range(num_classes)]
    scale = checkpoint.read_scale(config.input)
    manifest = checkpoint.Manifest(1, asdict(config.network), classes, {}, {}, {}, {}, {}, scale)
    return checkpoint.complete(folder, manifest, keep=1)


def fake_run(run_dir: Path, data_root: Path, *overrides: str, seed: int = 0) -> Path:
    """A run's folder with config.yaml and a checkpoint."""
    config = fake_config(data_root, *overrides)
    save_checkpoint(run_dir, config, seed)
    OmegaConf.save(OmegaConf.structured(config), run_dir / "config.yaml")
    return run_dir


def scaled_run(run_dir: Path, data_root: Path) -> Path:
    """A run whose input has torchvision's scale, with the mean image as training leaves it."""
    run = fake_run(run_dir, data_root, "input=torchvision", "input.crop_size=64")
    prepare(fake_config(data_root).data, progress=False)
    shutil.copy(data_root / CACHE / MEAN_IMAGE, run / MEAN_IMAGE)
    return run
