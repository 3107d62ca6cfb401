"""What is damaged: a small finished run, a prepared set, a folder of images; and how each of them is used.

The uses are what the commands do, in this process: they return, or raise ValueError or OSError with a sentence.
"""

import contextlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from helpers.archives import Here, tree_files, write_tree
from helpers.fake_runs import NUM_CLASSES, draw_images, fake_config
from helpers.prepared_sets import made
from twotower.config import Config, DataConfig, EvaluateConfig, ExportConfig, ReportConfig
from twotower.config.frozen_config import freeze
from twotower.data.dataset import MEAN_IMAGE, DataSet
from twotower.data.decoded_squares import decode_squares, open_decoded
from twotower.data.folder_cache import CACHE
from twotower.data.load_data import load
from twotower.data.preparing import shard_worker
from twotower.data.preparing.first_use import prepare
from twotower.evaluation.evaluate import evaluate_run
from twotower.evaluation.load_network import load_network
from twotower.ground.energy import Energy
from twotower.ground.files import write_json, write_npy
from twotower.ground.versions import read_versions
from twotower.model.tower import Tower
from twotower.reports.labbook_page import make_page
from twotower.reports.labbook_tables import render
from twotower.reports.make import make_report
from twotower.runs import checkpoint
from twotower.runs.elsewhere import ELSEWHERE
from twotower.runs.rundir import find_home
from twotower.training.energy_use import RunEnergy
from twotower.training.identity import identify
from twotower.training.optim import VelocitySGD
from twotower.training.progress import Progress, Window
from twotower.training.ready_run import get_ready
from twotower.training.schedule import Schedule
from twotower.weights.export import export_run
from twotower.weights.verify import verify

PREPARED_SIZE = 64
WHOLE, INTERRUPTED = "whole", "interrupted"
RUN_FILES = (
    *("config.yaml", "metrics.jsonl", "summary.json", "versions.json", "mean_image.npy", "evaluation.json"),
    *("wandb.json", "failure.json", "not_applicable.json", "checkpoints/step-00000002/manifest.json"),
    *("checkpoints/step-00000002/tower0.safetensors", "checkpoints/step-00000002/tower1.safetensors"),
    *(
        "predictions/step-00000002-val-centre.safetensors",
        "figures/figure4.png",
        "energy.json",
        "kept_elsewhere.json",
    ),
)
# Where a run's folder has folders and what comes and goes.
RUN_PLACES = (
    *(
        "checkpoints",
        "predictions",
        "figures",
        "export",
        "features",
        "wandb",
        "tensorboard",
        "checkpoints/step-00000002",
    ),
    *(".lock", "predictions/.lock", ".wandb.json.pending", ".mean_image.npy.pending", "checkpoints/pending-00000003"),
)


@dataclass(frozen=True)
class Subjects:
    """Folders that are whole, and are copied before anything in a copy is damaged."""

    run: Path
    images: Path
    prepared: Path


def _config(images: Path) -> Config:
    return fake_config(images, "optim.batch_size=4", "schedule.epochs=2")


@cache
def _compose_once(images: Path) -> Config:
    return _config(images)


def _make_optimiser(tower: Tower, config: Config) -> VelocitySGD:
    network, optim = config.network, config.optim
    rates = (network.bias_rate, network.bias_decay)
    return VelocitySGD(tower.paper_named_parameters(), optim.momentum, optim.weight_decay, *rates, optim.rule)


def _leave_checkpoint(run_dir: Path, config: Config, dataset: DataSet, step: int) -> None:
    """As a training leaves it, with all that a resumed one reads."""
    folder, schedule = run_dir / "checkpoints", Schedule(config.schedule, config.optim.learning_rate, config.network)
    rates = {}
    for number in range(config.network.towers):
        tower = Tower(config.network, NUM_CLASSES, number, seed=step)
        optimiser = _make_optimiser(tower, config)
        optimiser.set_rate(config.optim.learning_rate)
        velocities = {name: torch.ones_like(p) for name, p in tower.paper_named_parameters().items()}
        optimiser.load_state(velocities, optimiser.state()[1])
        buffers, rates = optimiser.state()
        checkpoint.save_tower(folder, step, tower, buffers)
    progress = Progress(last={"loss": 1.9, "top1_error": 70.0, "top5_error": 20.0})
    progress.best = {"best_top1_error": 70.0, "best_top5_error": 20.0}
    checkpoint.complete(
        folder,
        checkpoint.Manifest(
            step=step,
            network=asdict(config.network),
            classes=dataset.classes,
            rates=rates,
            schedule=schedule.state(),
            progress=progress.to_json(Window(), config.optim.batch_size, True),
            identity=identify(config, 1, dataset),
            sha256={},
            input=checkpoint.read_scale(config.input),
        ),
        keep=2,
    )


def _leave_run(run_dir: Path, config: Config, dataset: DataSet) -> None:
    """Files of a run of two steps, not trained, and evaluated."""
    run_dir.mkdir(parents=True)
    OmegaConf.save(OmegaConf.structured(config), run_dir / "config.yaml")
    assert dataset.mean_image is not None
    write_npy(run_dir / MEAN_IMAGE, dataset.mean_image)
    write_json(run_dir / "versions.json", {**read_versions(), "precision": "fp32"})
    write_json(run_dir / "wandb.json", {"id": "abcd1234", "folder": str(run_dir.resolve())})
    errors = {"loss": 1.9, "top1_error": 70.0, "top5_error": 20.0}
    lines = []
    for step in (1, 2):
        _leave_checkpoint(run_dir, config, dataset, step)
        speed = {"images_per_second": 50.0, "learning_rate": 0.01}
        lines += [{"event": "train", "step": step, "epoch": float(step), **errors, **speed}]
        lines += [{"event": "scales", "step": step, "tower0/conv1/colour": 0.5, "tower1/conv1/colour": 0.4}]
        lines += [{"event": "validation", "step": step, "epoch": float(step), **errors}]
        lines += [{"event": "memory", "step": step, "tower0": 100.0, "tower1": 90.0}]
    best = {"best_top1_error": 70.0, "best_top5_error": 20.0, "steps": 2, "num_classes": NUM_CLASSES}
    summary = {**errors, **best, "images_per_second": 50.0, "seconds": 3.0, "epochs": 2.0}
    lines += [{"event": "end", "step": 2, **summary}]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(run_dir / "summary.json", summary)
    write_json(run_dir / "energy.json", asdict(Energy(seconds=3.0)))
    (run_dir / "figures").mkdir()
    Image.new("RGB", (40, 30), "red").save(run_dir / "figures" / "figure4.png")
    evaluate(run_dir)


def make_subjects(folder: Path) -> Subjects:
    """Makes one of each; the runs know the images by their absolute path."""
    images = draw_images(folder / "images", num_val=1)
    config = freeze(replace(_config(images), command="python launch/two_gpu.py name=fake"))
    dataset = prepare(config.data, progress=False)
    _leave_run(folder / "run", config, dataset)
    prepared = folder / "prepared"
    pool = mock.patch.object(shard_worker, "ProcessPoolExecutor", Here)
    with contextlib.redirect_stdout(io.StringIO()), pool:
        made(write_tree(folder / "source", tree_files()), prepared, size=PREPARED_SIZE)
        decode_squares(load(DataConfig(kind="folder", root=str(prepared), size=PREPARED_SIZE)), progress=False)
    return Subjects(folder / "run", images, prepared)


def leave_run_copy(subjects: Subjects, run_dir: Path, seed: int, finished: bool) -> None:
    """A copy of the run with a seed of its own, so that several stand in one report."""
    shutil.copytree(subjects.run, run_dir)
    text = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(text.replace("\nseed: 0\n", f"\nseed: {seed}\n"))
    for path in (run_dir / "checkpoints").glob("*/manifest.json"):
        content = json.loads(path.read_text())
        content["identity"]["seed"] = seed
        path.write_text(json.dumps(content))
    if not finished:
        (run_dir / "summary.json").unlink()
    write_json(run_dir / "wandb.json", {"id": "abcd1234", "folder": str(run_dir.resolve())})


def leave_note_of_another_host(run_dir: Path) -> None:
    """As in the folder of a host that took part in a run and does not keep it."""
    shutil.rmtree(run_dir / "checkpoints")
    write_json(run_dir / ELSEWHERE, {"host": "node7"})


# What a user runs


def evaluate(run_dir: Path) -> None:
    evaluate_run(EvaluateConfig(run=str(run_dir), device="cpu", batch_size=8))


def evaluate_afresh(run_dir: Path) -> None:
    evaluate_run(EvaluateConfig(run=str(run_dir), device="cpu", batch_size=8, fresh=True))


def export(run_dir: Path) -> None:
    output = run_dir.parent.parent / f"export-{run_dir.name}"
    for path in export_run(ExportConfig(run=str(run_dir), force=True, output=str(output))):
        if path.suffix == ".safetensors":
            verify(path)


def open_network(run_dir: Path) -> None:
    network = load_network(run_dir, device="cpu")
    network.predict(np.zeros((1, 80, 80, 3), np.uint8), top=1)


def show_labbook(run_dir: Path) -> str:
    """With a whole run before the damaged one."""
    runs = [str(run_dir.parent / WHOLE), str(run_dir)]
    page = make_page(runs)
    print(render(page, "text", 165))  # for a terminal, to which markup is a text like others
    return render(page, "markdown", 165)


def find_config(runs: Path, **changes: Any) -> Config:
    """As the command composes it that began these runs, with resume=auto."""
    content = json.loads((runs / WHOLE / "evaluation.json").read_text())
    config = _compose_once(Path(content["identity"]["data"]["root"]))
    return freeze(replace(config, resume="auto", **changes))


def resume(run_dir: Path) -> None:
    """Everything that a training does before its first step, and rank 0 and 1 with the checkpoint."""
    config = find_config(run_dir.parent, seed=int(run_dir.name.rpartition("-")[2]), run_dir=str(run_dir))
    with get_ready(config, 1) as ready:
        if ready.resume_from is None:
            return
        manifest = checkpoint.read_manifest(ready.resume_from)
        for number in range(config.network.towers):
            tower = Tower(config.network, NUM_CLASSES, number, seed=0)
            buffers = checkpoint.load_tower(ready.resume_from, tower)
            _make_optimiser(tower, config).load_state(buffers, manifest.rates)
        Schedule(config.schedule, config.optim.learning_rate, config.network).load_state(manifest.schedule)
        progress = Progress.from_json(manifest.progress)
        progress.to_json(Window(), 4, manifest.progress["watching_loss"])
        first: Any = SimpleNamespace(is_first=True)
        RunEnergy(first, ready.run_dir).go_on(manifest.progress.get("energy", {}))
        torch.tensor(manifest.progress["window"], dtype=torch.float64)


def resume_another(runs: Path) -> None:
    """resume=auto without run_dir finds the interrupted run, whatever lies beside it."""
    config = find_config(runs, seed=1_000_001)
    os.chdir(runs.parent)
    found = find_home(config)
    assert found.run_dir.name == INTERRUPTED, f"resume=auto chose {found.run_dir}"


def report(runs: Path) -> str:
    """Of all runs in a folder, one of them whole. Returns what is printed and written."""
    output = runs.parent / f"report-{runs.name}"
    page = make_report(ReportConfig(folders=[str(runs)], output=str(output)))
    texts = [path.read_text("utf-8") for path in sorted(output.glob("*.md"))]
    assert page.is_file()
    return "\n".join([*texts, page.read_text("utf-8")])


def _check_numbers(dataset: DataSet) -> None:
    """What training relies on."""
    assert dataset.classes, "no classes"
    assert all(isinstance(name, str) for name in dataset.classes), "a class is no text"
    assert dataset.mean_image is not None
    assert dataset.mean_image.shape == (dataset.size, dataset.size, 3), f"mean image {dataset.mean_image.shape}"
    assert dataset.mean_image.dtype == np.float32
    assert np.isfinite(dataset.mean_image).all(), "the mean image has no numbers"
    assert dataset.eigenvalues.shape == (3,)
    assert dataset.eigenvectors.shape == (3, 3)
    assert np.isfinite(dataset.eigenvalues).all()
    assert np.isfinite(dataset.eigenvectors).all()
    assert math.isfinite(float(dataset.eigenvalues.astype(np.float64).sum()))
    for split in (dataset.train, dataset.val):
        assert len(split)
        assert 0 <= int(split.labels.min()) <= int(split.labels.max()) < len(dataset.classes), "a label is no class"
        for index in range(len(split)):
            split.read(index)
            split.name(index)


def load_prepared_set(root: Path) -> None:
    data = DataConfig(kind="folder", root=str(root), size=PREPARED_SIZE)
    dataset = prepare(data, progress=False)
    _check_numbers(dataset)
    decode_squares(dataset, progress=False)
    decoded = open_decoded(dataset)
    for split in (decoded.train, decoded.val):
        for index in range(len(split)):
            assert split.read(index).shape == (PREPARED_SIZE, PREPARED_SIZE, 3)


def load_folder(root: Path) -> None:
    _check_numbers(prepare(DataConfig(kind="folder", root=str(root)), progress=False))


RUN_USES: tuple[Callable[[Path], str | None], ...] = (
    *(evaluate, evaluate_afresh, export, open_network, show_labbook, resume),
)
FOLDER_FILES = (f"{CACHE}/index.json", f"{CACHE}/{MEAN_IMAGE}")
SET_PLACES = ("decoded", "train")
