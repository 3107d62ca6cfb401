"""A run's network as one file that others can load, and the check that such a file is what it says.

    OUTPUT/alexnet-step-00000120.safetensors   conv1.weight ... fc8.bias (see `merged`), mean_image float32 [3, S, S]
                                               of the centre crop, whole_mean_image [3, P, P] of the prepared square;
                                               metadata: table of layers, classes, errors, checksum, known answer
    OUTPUT/plain.py                            loads it with torch and safetensors alone
    OUTPUT/alexnet-step-00000120.onnx          the same network as ONNX, with its mean image as .npy
    OUTPUT/alexnet-step-00000120.html          a page in which two Web Workers are the towers, see `browser_page`

The known answer is what the towers say in float64 about two images that a formula draws, so a loader that mistakes an
order or a norm is found out, and so is a file whose tensors were changed together with its checksum.
"""

import importlib.util
import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twotower.config import ExportConfig, NetworkConfig, check_bounds
from twotower.config.stored_config import read_config
from twotower.data.dataset import MEAN_IMAGE
from twotower.data.normalise import choose_mean
from twotower.distributed.exchange import InProcessExchange
from twotower.ground.files import write_npy, write_text, write_whole, written_whole
from twotower.ground.tensor_files import written_tensors
from twotower.ground.versions import read_versions
from twotower.ground.wording import counted
from twotower.model import plain
from twotower.model.tower import forward
from twotower.runs import checkpoint
from twotower.runs.rundir import own_mean
from twotower.weights import browser_page
from twotower.weights import read_weights as weights
from twotower.weights.merged import divide_image_weights, hash_tensors
from twotower.weights.verify import KNOWN_IMAGES, TOLERANCE, deviation, known_images, verify

MEAN_USE = "subtract it from the centre crop's R, G, B in 0..255"
STANDARD_ERRORS = 3.0  # that a trained network must be better than guessing
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@torch.no_grad()
def known_answer(merged: Mapping[str, Tensor], network: NetworkConfig, num_classes: int) -> Tensor:
    """Logits of the known images, float64 [2, classes], from the towers; what crosses is not rounded."""
    towers = [tower.double() for tower in weights.build_towers(merged, network, num_classes, torch.device("cpu"))]
    return forward(towers, known_images(network.image_size).double(), InProcessExchange())


def check_trained(manifest: checkpoint.Manifest) -> None:
    """Raises: ValueError if no epoch was finished, or the top-1 error is not clearly below that of guessing."""
    error = manifest.progress.get("last", {}).get("top1_error")
    where = f"The checkpoint of step {manifest.step}"
    if error is None:
        raise ValueError(f"{where} has no validation error, as no epoch is finished; train on, or give force=true.")
    num_images, hit = max(1, manifest.identity.get("num_val", 1)), 1 / len(manifest.classes)
    guessing = 100 * (1 - hit)
    margin = STANDARD_ERRORS * 100 * math.sqrt(hit * (1 - hit) / num_images)
    if not error < guessing - margin:
        raise ValueError(
            f"{where} has a top-1 error of {error:.2f} % on {counted(num_images, 'image')}, and guessing has "
            f"{guessing:.2f} %; only below {guessing - margin:.2f} % it is clearly better; train on, or "
            "give force=true."
        )


@dataclass(frozen=True)
class RunToExport:
    """The network to export: merged tensors with the mean image, and all that is noted beside them."""

    network: NetworkConfig
    tensors: dict[str, Tensor]
    manifest: checkpoint.Manifest
    name: str  # stem of the files
    mean_use: str  # input.mean of the training
    std: list[float]  # input.std of the training, which the tensors have in them

    @property
    def answer(self) -> Tensor:
        return known_answer(self.tensors, self.network, len(self.manifest.classes))


def _central(mean_image: Any, size: int) -> Tensor:
    """float32 [3, size, size] of a data set's mean image [H, W, 3]; zeros if it has none."""
    if mean_image is None:
        return torch.zeros(3, size, size)
    top = (len(mean_image) - size) // 2
    return torch.from_numpy(mean_image).permute(2, 0, 1)[:, top : top + size, top : top + size].contiguous()


def open_run(settings: ExportConfig) -> RunToExport:
    """Reads a run's checkpoint and its mean image.

    Raises: ValueError if the run is damaged, or the network is not trained and `force` is not given.
    """
    assert settings.run is not None
    run_dir = Path(settings.run)
    config = read_config(run_dir)
    path = checkpoint.choose(run_dir, settings.checkpoint)
    manifest = checkpoint.verify_checkpoint(path)
    if not settings.force:
        check_trained(manifest)
    mean_image = own_mean(run_dir)
    if mean_image is None and config.data.kind != "synthetic":
        raise ValueError(f"{run_dir} has no {MEAN_IMAGE}, which belongs to its network; copy it from the run.")
    imported = weights.read_checkpoint(path, manifest)
    network = imported.network
    assert network is not None
    if mean_image is not None:
        mean_image = choose_mean(mean_image, config.input)
    tensors = divide_image_weights(imported.tensors, network, config.input.std)
    tensors |= {weights.MEAN_TENSOR: _central(mean_image, network.image_size)}
    if mean_image is not None:
        mean_tensor = torch.from_numpy(mean_image).permute(2, 0, 1).contiguous()
        tensors[weights.WHOLE_MEAN_IMAGE] = mean_tensor
    name = f"{network.name}-{path.name}"
    return RunToExport(network, tensors, manifest, name, config.input.mean, config.input.std)


def _about(run: RunToExport) -> dict[str, str]:
    """The metadata, each value a string."""
    answer = {"images": KNOWN_IMAGES, "logits": [[float(f"{v:.9g}") for v in row] for row in run.answer.tolist()]}
    return {
        "format": weights.FORMAT,
        "network": json.dumps(asdict(run.network)),
        "classes": json.dumps(run.manifest.classes),
        "mean_image": MEAN_USE,
        "mean_use": run.mean_use,
        "std": json.dumps(run.std),
        "step": str(run.manifest.step),
        "errors": json.dumps(run.manifest.progress.get("last", {})),
        "sha256": hash_tensors(run.tensors),
        "known_answer": json.dumps(answer),
        "versions": json.dumps(read_versions()),
    }


def _write_merged(run: RunToExport, folder: Path) -> list[Path]:
    path, loader = folder / f"{run.name}.safetensors", folder / "plain.py"
    write_whole(loader, Path(plain.__file__).read_bytes(), shared=True)
    with written_tensors(path, run.tensors, _about(run), shared=True) as pending:
        verify(pending)
    return [path, loader]


def _check_onnx_installed() -> None:
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"to=onnx needs {', '.join(missing)}, which is not installed: pip install -e '.[onnx]'")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes on its own passes, which say nothing about the network."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _write_onnx(run: RunToExport, folder: Path) -> list[Path]:
    """Raises: ValueError if a package is missing, or onnxruntime computes something else than the towers."""
    import onnxruntime

    path, mean = folder / f"{run.name}.onnx", folder / f"{run.name}.mean_image.npy"
    network = plain.Network(asdict(run.network), run.tensors).eval()
    images = known_images(run.network.image_size)
    with written_whole(path, shared=True) as pending:
        with _quiet():
            program = torch.onnx.export(
                network,
                (images,),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        about = _about(run)
        program.model.metadata_props.update({key: about[key] for key in about if key not in ("format", "sha256")})
        program.save(pending, external_data=False)
        session = onnxruntime.InferenceSession(pending, providers=["CPUExecutionProvider"])
        batches = [session.run(["logits"], {"images": part.numpy()})[0] for part in (images, images[:1], images[1:])]
        answer = run.answer
        for batch, true in zip(batches, (answer, answer[:1], answer[1:]), strict=True):
            difference = deviation(torch.from_numpy(batch), true)
            if not difference <= TOLERANCE:
                raise ValueError(f"onnxruntime's logits differ from the towers' by {difference:.1g} of the largest.")
    write_npy(mean, run.tensors[weights.MEAN_TENSOR].numpy(), shared=True)
    return [path, mean]


def _write_page(run: RunToExport, folder: Path) -> list[Path]:
    """The page compares itself with the known answer whenever it is opened, in the browser that opens it.

    Raises: ValueError if the network is too large for a page.
    """
    whole = run.tensors.get(weights.WHOLE_MEAN_IMAGE)
    classes = run.manifest.classes
    facts = {"classes": f"{len(classes):,}", "width": f"{run.network.width:g}", "step": f"{run.manifest.step:,}"}
    if errors := run.manifest.progress.get("last"):
        facts |= {f"validation top-{k} error": f"{errors[f'top{k}_error']:.2f} %" for k in (1, 5)}
    page = browser_page.render(
        {name: tensor for name, tensor in run.tensors.items() if "mean_image" not in name},
        run.network,
        classes,
        mean_image=run.tensors[weights.MEAN_TENSOR],
        prepared_size=run.network.prepared_size if whole is None else whole.shape[-1],
        answer=run.answer,
        title=run.network.name,
        facts=facts,
    )
    path = folder / f"{run.name}.html"
    write_text(path, page, shared=True)
    return [path]


WRITE = {"merged": _write_merged, "onnx": _write_onnx, "html": _write_page}


def export_run(settings: ExportConfig) -> list[Path]:
    """Writes a run's network as `settings.to` says, and checks what it wrote. Returns the files.

    Raises: ValueError for a run, checkpoint or data set that is missing or damaged, for an untrained network unless
        `force`, for packages that are missing, for a network that is too large for a page, and if what was written
            does not compute what the towers do.
    """
    check_bounds(settings)
    if settings.to == "onnx":
        _check_onnx_installed()
    run = open_run(settings)
    folder = Path(settings.output) if settings.output is not None else Path(str(settings.run)) / "export"
    folder.mkdir(parents=True, exist_ok=True)
    return WRITE[settings.to](run, folder)
