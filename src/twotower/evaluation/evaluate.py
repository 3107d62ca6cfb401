"""Error rates of a run's checkpoint, with all towers in one process: in the centre crop, and in ten crops."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from twotower.config import UNSCALED, Config, DataConfig, EvaluateConfig, InputConfig, NetworkConfig
from twotower.data.batch import Share
from twotower.data.choose_loader import say_fallback
from twotower.data.crops import ten_views
from twotower.data.dataset import DataSet
from twotower.data.feed import open_validation
from twotower.data.preparing.first_use import prepare
from twotower.data.preparing.run_images import KEY
from twotower.distributed.exchange import Exchange, InProcessExchange
from twotower.evaluation import predictions
from twotower.evaluation.predictions import VIEWS, Predictions
from twotower.evaluation.subject import Subject, check_settings, choose_precision, load_towers, open_subject
from twotower.ground.devices import choose_device, choose_memory_format
from twotower.ground.files import write_json
from twotower.ground.locks import held
from twotower.ground.precision import set_precision
from twotower.ground.progress import metered
from twotower.ground.versions import read_versions
from twotower.model.tower import Tower, forward
from twotower.runs import checkpoint
from twotower.runs.mirrors.open_mirrors import log_evaluation
from twotower.runs.rundir import LOCK, check_classes
from twotower.weights import read_weights as weights
from twotower.weights.hub import locate, resolve_name
from twotower.weights.merged import Imported

CENTRE = ten_views(2).index((1, 1, 0))  # index of the centre crop among the ten


def log_probabilities(towers: list[Tower], images: Tensor, exchange: Exchange) -> Tensor:
    """[B, crops, classes] of images [B, 3, H, W], or of their crops [B, 10, 3, H, W]."""
    crops = images[:, None] if images.dim() == 4 else images
    memory_format = choose_memory_format(images.device)
    # The crops go through in parts of as many as there are images, so that ten need no more memory than one.
    parts = crops.flatten(0, 1).split(len(images))
    logits = [forward(towers, part.contiguous(memory_format=memory_format), exchange) for part in parts]
    return F.log_softmax(torch.cat(logits), dim=1).view(*crops.shape[:2], -1)


def average_crops(per_crop: Tensor) -> Tensor:
    """[B, classes] of log-probabilities [B, crops, classes].

    The crops' softmax outputs are averaged as probabilities (paper section 4.1; layer.cu:1809-1823).
    """
    return torch.logsumexp(per_crop, dim=1) - math.log(per_crop.shape[1])


@torch.no_grad()
def predict(
    towers: list[Tower],
    dataset: DataSet,
    config: Config,
    crops: str,
    batch_size: int,
    device: torch.device,
    split: str = "val",
    precision: str = "fp32",
    exchange: Exchange | None = None,
) -> dict[str, Predictions]:
    """Predictions for all images of `val` or `test`, by view; `ten` has the centre crop with it, from the same pass.

    Args:
        exchange: of the towers; None: the usual one.

    Raises: ValueError if the data set has no such split.
    """
    parts: dict[str, list[Tensor]] = {view: [] for view in (VIEWS if crops == "ten" else ("centre",))}
    labels, began, warm = [], time.perf_counter(), 0
    share = Share(batch_size, 0, 1, device, config.machine.loader_threads or torch.get_num_threads())
    exchange = exchange or InProcessExchange(config.network.exchange_precision)
    set_precision(precision)
    for tower in towers:
        tower.precision = precision
    if not dataset.is_synthetic:
        say_fallback(config.input.loader)
    feed = open_validation(dataset, config.input, share, crops=crops, split=split)
    try:
        with metered("evaluating", len(dataset.split(split))) as meter:
            for batch in feed:
                per_crop = log_probabilities(towers, batch.images, exchange)
                parts["centre"].append(per_crop[:, CENTRE if crops == "ten" else 0].cpu())
                if crops == "ten":
                    parts["ten"].append(average_crops(per_crop).cpu())
                labels.append(batch.labels.cpu())
                meter.advance(len(batch.labels))
                if len(labels) == 1:  # the first batch contains the start-up and is not timed
                    began, warm = (time.perf_counter(), len(batch.labels)) if len(feed) > 1 else (began, 0)
    finally:
        feed.close()
    of_images = torch.cat(labels)
    rate = (len(of_images) - warm) / (time.perf_counter() - began)
    return {view: Predictions(torch.cat(part), of_images, rate, crops) for view, part in parts.items()}


def _read_stored(subject: Subject, settings: EvaluateConfig, paths: dict[str, Path]) -> dict[str, Predictions]:
    """The stored predictions by view, without those that are not wanted, missing, or of another network or image."""
    if settings.fresh:
        return {}
    stored = {view: predictions.read(path, subject.identity) for view, path in paths.items()}
    return {view: of_view for view, of_view in stored.items() if of_view is not None}


def _compute(subject: Subject, settings: EvaluateConfig) -> dict[str, Predictions]:
    """By view, `settings.crops` and what comes from the same pass."""
    device = choose_device(settings.device)
    config, dataset = subject.config, subject.dataset
    towers = load_towers(subject.checkpoint, subject.manifest, config, len(dataset.classes), device)
    size, split = settings.batch_size, settings.split
    return predict(towers, dataset, config, settings.crops, size, device, split, subject.precision)


def make_predictions(subject: Subject, settings: EvaluateConfig) -> dict[str, Predictions]:
    """By view, `settings.crops` and whatever else is there: read where they are stored, else computed and stored.

    Raises: HeldError, before anything is computed, if another process computes predictions that it will store there.
    """
    run_dir, name, split = subject.run_dir, subject.checkpoint.name, settings.split
    paths = {view: predictions.locate_predictions(run_dir, name, split, view) for view in VIEWS}
    of_views = _read_stored(subject, settings, paths)
    if settings.crops not in of_views and subject.dataset.is_synthetic:
        of_views = _compute(subject, settings)  # synthetic images are only for timing, so nothing is stored
    elif settings.crops not in of_views:
        with held(run_dir / predictions.FOLDER / LOCK, f"predictions of {run_dir} are being computed"):
            of_views = _read_stored(subject, settings, paths)  # another process may just have ended
            if settings.crops not in of_views:
                computed = _compute(subject, settings)
                for view in computed.keys() - of_views.keys():
                    predictions.store(paths[view], computed[view], subject.identity)
                of_views = computed | of_views
    return {view: of_views[view] for view in VIEWS if view in of_views}


def open_weights(settings: EvaluateConfig) -> tuple[NetworkConfig, InputConfig, Imported | None]:
    """The network and the input that were given, or those that our own files and runs have with them.

    Raises: ValueError if neither is known.
    """
    assert settings.weights is not None
    path = Path(settings.weights)
    own = None
    if path.is_dir():
        own = weights.read_checkpoint(path)
    elif path.suffix == ".safetensors":
        own = weights.read_merged(path)
    network = settings.network or (own.network if own is not None else None)
    if network is None:
        locate(path)  # says if there is nothing
        raise ValueError(
            f"weights={path} does not say what network it belongs to; give network=NAME, such as caffe_alexnet, "
            "caffenet or torchvision_alexnet."
        )
    input_config = settings.input or InputConfig()
    if own is not None and own.mean_use is not None:
        input_config = replace(input_config, mean=own.mean_use)
    # Mean and scale come with the weights; today's preset of their network may have others.
    std = list(own.std) if own is not None else list(UNSCALED)
    return network, replace(input_config, crop_size=network.image_size, mean_value=None, std=std), own


def evaluate_weights(settings: EvaluateConfig) -> dict[str, Any]:
    """Evaluates a file of weights on a data set: {"centre": ..., "ten": ...} as far as asked for, and the network.

    Images are prepared as for our own networks (shorter side to `network.prepared_size`, centre square); the mean is
    the one that belongs to the weights, where they have one.

    Raises: ValueError for a file that cannot be read or does not fit, or if there is no data.
    """
    check_settings(settings)
    assert settings.weights is not None
    if settings.data_root is None:
        raise ValueError("weights= needs the images to evaluate on: give data_root=DIR, a prepared set or a folder.")
    given_as, settings = settings.weights, replace(settings, weights=resolve_name(settings.weights))
    assert settings.weights is not None
    network, given, own = open_weights(settings)
    data = DataConfig(kind="folder", root=settings.data_root, size=network.prepared_size)
    config = Config(network=network, data=data, input=given)
    dataset = prepare(config.data, key=KEY)
    if own is not None and own.classes is not None:
        check_classes(settings.weights, own.classes, dataset.classes)
    device = choose_device(settings.device)
    precision = choose_precision(settings.precision, config, device)
    towers, mean = weights.load_towers_from_file(
        settings.weights, network, len(dataset.classes), device, settings.mean
    )
    if mean is not None:
        dataset = replace(dataset, mean_image=weights.whole_mean_image(mean, dataset.size))
    predictions = predict(
        towers, dataset, config, settings.crops, settings.batch_size, device, settings.split, precision
    )
    views = {view: summarise_predictions(predictions[view]) for view in VIEWS if view in predictions}
    return {"weights": given_as, "network": network.name, "split": settings.split, **views}


def summarise_predictions(predictions: Predictions) -> dict[str, Any]:
    """Errors in percent, loss in nats, and how they were come by."""
    counts = predictions.counts()
    return {
        "top1_error": counts.top1_error,
        "top5_error": counts.top5_error,
        "loss": counts.loss,
        "num_images": counts.num_images,
        "images_per_second": predictions.images_per_second,
        "pass_crops": predictions.pass_crops,
        "stored": predictions.stored,
    }


def evaluate_run(settings: EvaluateConfig, verified: checkpoint.Manifest | None = None) -> dict[str, Any]:
    """Evaluates a run and writes evaluation.json into its folder (of another checkpoint than the last: beside it).

    It has the results of the view that was asked for, and under `centre` and `ten` those of each view that is known.

    Args:
        verified: the manifest of the run's last checkpoint, where that has been checked already.

    Raises: ValueError for a folder without run or checkpoint, a damaged checkpoint, a device that is not there.
    """
    check_settings(settings)
    assert settings.run is not None
    subject = open_subject(settings.run, settings, verified)
    views = {
        view: summarise_predictions(predictions) for view, predictions in make_predictions(subject, settings).items()
    }
    asked = views[settings.crops]
    result = {
        "crops": settings.crops,
        "split": settings.split,
        **{key: asked[key] for key in ("top1_error", "top5_error", "loss", "num_images")},
        "checkpoint": subject.checkpoint.name,
        "images_per_second": asked["images_per_second"],
        **{view: views.get(view) for view in VIEWS},
        "identity": subject.identity,
    }
    result["report"] = str(locate_report(subject.run_dir, settings))
    write_json(Path(result["report"]), result, shared=True)
    # The run's dashboard compares results on the run's own images, of its last checkpoint.
    is_own = settings.checkpoint is None and settings.data_root is None
    if is_own and not all(view["stored"] for view in views.values()):  # W&B has stored results already
        log_evaluation(subject.run_dir, subject.config, read_versions(), result)
    return result


def locate_report(run_dir: Path, settings: EvaluateConfig) -> Path:
    """Where the results go: evaluation.json is about the last checkpoint, others have files of their own."""
    if settings.checkpoint is None:
        return run_dir / "evaluation.json"
    return run_dir / f"evaluation-{checkpoint.choose(run_dir, settings.checkpoint).name}.json"
