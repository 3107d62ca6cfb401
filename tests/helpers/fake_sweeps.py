"""Folders of runs as trainings and sweeps leave them, for reports: journals and summaries, with made-up errors."""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from helpers.fake_runs import fake_config
from twotower.config import Config
from twotower.runs import checkpoint


@cache
def composed(*overrides: str) -> Config:
    return fake_config(Path("photos"), "schedule.epochs=2", "logging=no_wandb", *overrides)


def leave_run(
    folder: Path,
    top1: float,
    *overrides: str,
    ten: float | None = None,
    finished: bool = True,
    weights: Path | None = None,
    data: int = 0,
) -> Path:
    """The folder of a run with two epochs; its training set's mean image is drawn from `data`."""
    folder.mkdir(parents=True)
    config = composed(*overrides)
    config = replace(
        config,
        data=replace(config.data, root=str(folder.parent / f"data{data}")),
        command="python launch/two_gpu.py " + " ".join(overrides),
    )
    OmegaConf.save(OmegaConf.structured(config), folder / "config.yaml")
    np.save(folder / "mean_image.npy", np.full((4, 4, 3), data, np.float32))
    lines: list[dict[str, Any]] = []
    for epoch in (1, 2):
        numbers = {"loss": 2.0, "top1_error": top1 + 9, "top5_error": 3.0, "learning_rate": 0.01}
        lines.append(
            {"event": "train", "step": 4 * epoch, "epoch": float(epoch), "images_per_second": 50.0, **numbers}
        )
        measured = {"loss": 1.0, "top1_error": top1 + 2 - epoch, "top5_error": 2.0}
        lines.append({"event": "validation", "step": 4 * epoch, "epoch": float(epoch), **measured})
        lines.append({"event": "memory", "step": 4 * epoch, "tower0": 100.0 * epoch, "tower1": 90.0})
    if finished:
        lines.append({"event": "end", "step": 8})
        summary = {"top1_error": top1, "top5_error": 2.0, "best_top1_error": top1, "images_per_second": 50.0}
        summary |= {"seconds": 120.0, "epochs": 2.0, "num_classes": 7}
        (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if weights is not None:
        shutil.copytree(weights / "checkpoints", folder / "checkpoints")
    if ten is not None:
        manifest = checkpoint.read_manifest(checkpoint.find(folder))
        about = {"kind": "folder", "root": str(Path(config.data.root or "").resolve()), "num_classes": 7}
        identity = {"checkpoint": manifest.sha256, "width": 0.0625, "split": "val"}
        identity |= {"data": about | {"num_images": 4, "source": None}}
        views = {"centre": {"top1_error": top1, "top5_error": 2.0}, "ten": {"top1_error": ten, "top5_error": 1.0}}
        (folder / "evaluation.json").write_text(json.dumps({"identity": identity, **views}))
    return folder


def sweep(root: Path, weights: Path | None = None) -> Path:
    """No norms costs 1, 2 and 6 points over three seeds; without overlap is 1 better in the two seeds it has."""
    base, changed = (40.0, 42.0, 47.0), (41.0, 44.0, 53.0)
    for seed in range(3):
        leave_run(
            root / f"ablation=none,seed={seed}",
            base[seed],
            f"seed={seed}",
            ten=base[seed] - 2 if weights is not None else None,
            weights=weights,
        )
        name = f"ablation=no_lrn,seed={seed}"
        leave_run(root / name, changed[seed], "ablation=no_lrn", f"seed={seed}", weights=weights)
        if seed < 2:
            name = f"ablation=no_overlap,seed={seed}"
            leave_run(root / name, base[seed] - 1, "ablation=no_overlap", f"seed={seed}", weights=weights)
    return root
