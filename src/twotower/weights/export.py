"""A run's network as one file that others can load, and the check that such a file is what it says.

    OUTPUT/alexnet-step-00000120.safetensors   conv1.weight ... fc8.bias (see `merged`), mean_image float32 [3, S, S]
                                               of the centre crop, whole_mean_image [3, P, P] of the prepared square;
                                               metadata: table of layers, classes, data, seed, step, commits, errors,
                                               checksums, known answer, and what `proof` says
    OUTPUT/plain.py                            loads it with torch and safetensors alone
    OUTPUT/model.safetensors, config.json, README.md   the same for Hugging Face's hub; see `model_card`
    OUTPUT/trajectory.csv                      of all checkpoints: step, errors with intervals, file
    OUTPUT/alexnet-step-00000120.onnx          the same network as ONNX, with its mean image as .npy
    OUTPUT/alexnet-step-00000120.html          a page in which two Web Workers are the towers, see `browser_page`

The known answer is what the towers say in float64 about two images that a formula draws, so a loader that mistakes an
order or a norm is found out, and so is a file whose tensors were changed together with its checksum.
"""

import csv
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twotower.config import Config, ExportConfig, NetworkConfig, check_bounds
from twotower.config.stored_config import read_config
from twotower.data.dataset import MEAN_IMAGE
from twotower.data.normalise import choose_mean
from twotower.distributed.exchange import InProcessExchange
from twotower.ground.files import write_npy, write_text, write_whole, written_whole
from twotower.ground.stored_files import read_json
from twotower.ground.tensor_files import written_tensors
from twotower.ground.versions import UNKNOWN, VERSIONS, read_versions
from twotower.ground.wording import counted
from twotower.model import plain
from twotower.model.tower import forward
from twotower.runs import checkpoint
from twotower.runs.rundir import own_mean
from twotower.weights import browser_page
from twotower.weights import read_weights as weights
from twotower.weights.hub import CARD, CONFIG, MODEL
from twotower.weights.merged import divide_image_weights, hash_tensors
from twotower.weights.model_card import name_data, write_config, write_model_card
from twotower.weights.origin import LOADER, refuse_another, refuse_strangers
from twotower.weights.proof import (
    Measured,
    check_answers,
    check_chance,
    hash_metadata,
    highest_error,
    is_better,
    make_proof,
    with_intervals,
)
from twotower.weights.verify import KNOWN_IMAGES, TOLERANCE, deviation, known_images, verify

MEAN_USE = "subtract it from the centre crop's R, G, B in 0..255"
ALL = "all"  # of `checkpoint`
NOT_IN_ONNX = ("format", "metadata_sha256", "proof")
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
    num_images, num_classes = max(1, manifest.identity.get("num_val", 1)), len(manifest.classes)
    if not is_better(error, num_images, num_classes):
        raise ValueError(
            f"{where} has a top-1 error of {error:.2f} % on {counted(num_images, 'image')}, and guessing has "
            f"{100 - 100 / num_classes:.2f} %; only below {highest_error(num_images, num_classes):.2f} % it is "
            "clearly better; train on, or give force=true."
        )


@dataclass(frozen=True)
class RunToExport:
    """The network to export: merged tensors with the mean image, and all that is noted beside them."""

    network: NetworkConfig
    tensors: dict[str, Tensor]  # float32, of values that were rounded to `dtype`
    manifest: checkpoint.Manifest
    name: str  # stem of the files
    run_dir: Path
    config: Config  # of the run
    dtype: str
    measured: Measured | None = None

    @property
    def errors(self) -> dict[str, float]:
        """Of this very network, where they were measured, else of the run's last validation; with intervals."""
        if self.measured is not None:
            return with_intervals(self.measured.errors, self.measured.num_images)
        num_images = self.manifest.identity.get("num_val", 0)
        return with_intervals(self.manifest.progress.get("last", {}), num_images) if num_images else {}

    @property
    def answer(self) -> Tensor:
        return known_answer(self.tensors, self.network, len(self.manifest.classes))


def _central(mean_image: Any, size: int) -> Tensor:
    """float32 [3, size, size] of a data set's mean image [H, W, 3]; zeros if it has none."""
    if mean_image is None:
        return torch.zeros(3, size, size)
    top = (len(mean_image) - size) // 2
    return torch.from_numpy(mean_image).permute(2, 0, 1)[:, top : top + size, top : top + size].contiguous()


Measure = Callable[[RunToExport], Measured | None]


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
    stored_as = weights.STORED_AS[settings.dtype]
    tensors = {name: tensor.to(stored_as).float() for name, tensor in tensors.items()}
    overflown = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if overflown:
        raise ValueError(
            f"dtype={settings.dtype} cannot hold the values of {overflown[0]}; choose bfloat16 or float32."
        )
    name = f"{network.name}-{path.name}"
    return RunToExport(network, tensors, manifest, name, run_dir, config, settings.dtype)


def _stored(run: RunToExport) -> dict[str, Tensor]:
    """The tensors as they are written."""
    return {name: tensor.to(weights.STORED_AS[run.dtype]) for name, tensor in run.tensors.items()}


def _read_commit(run_dir: Path) -> str:
    """The commit of the source that trained a run."""
    try:
        return str(read_json(run_dir / "versions.json", VERSIONS, "leave it out").get("commit", UNKNOWN))
    except ValueError:
        return UNKNOWN


def _describe_data(run: RunToExport) -> dict[str, Any]:
    """What a run was trained on; no path, as those are of a machine."""
    identity, measured = run.manifest.identity, run.measured
    return {
        "kind": run.config.data.kind,
        "source": None if measured is None else measured.source,
        "fingerprint": None if measured is None else measured.fingerprint,
        "num_train": identity.get("num_train"),
        "num_val": identity.get("num_val"),
    }


def _describe_measured(run: RunToExport) -> dict[str, Any] | None:
    keys = ("num_images", "answers", "num_reversed", "error_as_is", "error_reversed")
    return None if run.measured is None else {key: getattr(run.measured, key) for key in keys}


def _origin(run: RunToExport) -> dict[str, str]:
    """Where the values are from, each value a string; see `origin`."""
    return {
        "dtype": run.dtype,
        "seed": str(run.config.seed),
        "step": str(run.manifest.step),
        "commit": _read_commit(run.run_dir),
        "sha256": hash_tensors(_stored(run)),
    }


def _about(run: RunToExport) -> dict[str, str]:
    """The metadata, each value a string."""
    answer = {"images": KNOWN_IMAGES, "logits": [[float(f"{v:.9g}") for v in row] for row in run.answer.tolist()]}
    about = {
        "format": weights.FORMAT,
        "network": json.dumps(asdict(run.network)),
        "classes": json.dumps(run.manifest.classes),
        "mean_image": MEAN_USE,
        "mean_use": run.config.input.mean,
        "std": json.dumps(list(run.config.input.std)),
        "data": json.dumps(_describe_data(run)),
        "errors": json.dumps(run.errors),
        "measured": json.dumps(_describe_measured(run)),
        "known_answer": json.dumps(answer),
        "proof": make_proof(run.tensors, run.network, run.manifest.classes),
        "versions": json.dumps(read_versions()),
        **_origin(run),
    }
    return about | {"metadata_sha256": hash_metadata(about)}


def _write_merged(run: RunToExport, path: Path) -> list[Path]:
    loader = path.with_name(LOADER)
    write_whole(loader, Path(plain.__file__).read_bytes(), shared=True)
    with written_tensors(path, _stored(run), _about(run), shared=True) as pending:
        verify(pending)
    return [path, loader]


def _write_huggingface(run: RunToExport, path: Path) -> list[Path]:
    folder, about = path.parent, _about(run)
    with written_tensors(path, _stored(run), about, shared=True) as pending:
        verify(pending)
    written = [path, *(folder / name for name in (CONFIG, CARD, LOADER))]
    write_whole(written[1], write_config(about).encode(), shared=True)
    write_whole(written[2], write_model_card(about, run.name).encode(), shared=True)
    write_whole(written[3], Path(plain.__file__).read_bytes(), shared=True)
    return written


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


def _write_onnx(run: RunToExport, path: Path) -> list[Path]:
    """Raises: ValueError if a package is missing, or onnxruntime computes something else than the towers."""
    import onnxruntime

    mean = path.with_suffix(".mean_image.npy")
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
        program.model.metadata_props.update({key: about[key] for key in about if key not in NOT_IN_ONNX})
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


def _list_facts(run: RunToExport) -> dict[str, str]:
    """What a page says of a network, each fact with its name; no errors unless they were measured.

    Those of the run's last validation are left out: other values may have been validated, by training's own input.
    """
    data = _describe_data(run)
    name = name_data(data)
    if name == "folder":
        name = "a folder" if data["num_train"] is None else f"a folder of {data['num_train']:,} training images"
    facts = {
        "classes": f"{len(run.manifest.classes):,}",
        "width": f"{run.network.width:g}",
        "data": name,
        "seed": str(run.config.seed),
        "step": f"{run.manifest.step:,}",
    }
    if run.measured is None:
        return facts
    errors = run.errors
    for key, title in (("top1_error", "top-1 error"), ("top5_error", "top-5 error")):
        low, high = errors[f"{key}_low"], errors[f"{key}_high"]
        facts[title] = f"{errors[key]:.2f} % (95 % interval {low:.2f} to {high:.2f} %)"
    return facts | {"measured on": counted(run.measured.num_images, "validation image")}


def _write_page(run: RunToExport, path: Path) -> list[Path]:
    """The page compares itself with the known answer whenever it is opened, in the browser that opens it.

    Raises: ValueError if the network is too large for a page.
    """
    whole = run.tensors.get(weights.WHOLE_MEAN_IMAGE)
    page = browser_page.render(
        {name: tensor for name, tensor in run.tensors.items() if "mean_image" not in name},
        run.network,
        run.manifest.classes,
        mean_image=run.tensors[weights.MEAN_TENSOR],
        prepared_size=run.network.prepared_size if whole is None else whole.shape[-1],
        answer=run.answer,
        title=run.network.name,
        facts=_list_facts(run),
        origin=_origin(run),
    )
    write_text(path, page, shared=True)
    return [path]


@dataclass(frozen=True)
class _Form:
    """What `to` stands for: how its files are written, and how the first of them is called."""

    write: Callable[[RunToExport, Path], list[Path]]
    suffix: str = ".safetensors"
    name: str | None = None  # None: the run's
    companions: Sequence[str] = ()  # what is written beside it under names of its own

    def place(self, run: RunToExport, folder: Path) -> Path:
        return folder / (self.name or f"{run.name}{self.suffix}")


_FORMS = {
    "merged": _Form(_write_merged, companions=[LOADER]),
    "huggingface": _Form(_write_huggingface, name=MODEL, companions=[CONFIG, CARD, LOADER]),
    "onnx": _Form(_write_onnx, ".onnx"),
    "html": _Form(_write_page, ".html"),
}


def export_run(settings: ExportConfig, measure: Measure | None = None) -> list[Path]:
    """Writes a run's network as `settings.to` says, and checks what it wrote. Returns the files.

    With `checkpoint=all` it writes those of all checkpoints, also untrained ones, and `trajectory.csv`.

    Args:
        measure: measures the errors of what is written; None: they are those of the run's last validation.

    Raises: ValueError for a run, checkpoint or data set that is missing or damaged, for an untrained network unless
        `force`, for packages that are missing, for a network that is too large for a page, for values rounded where
        no errors can be measured, and if what was written does not compute what the towers do.
    """
    check_bounds(settings)
    if settings.to == "onnx":
        _check_onnx_installed()
    if settings.to == "onnx" and settings.dtype != "float32":
        raise ValueError(f"dtype={settings.dtype} is for to=merged and to=huggingface; leave it out.")
    default = "huggingface" if settings.to == "huggingface" else "export"
    folder = Path(settings.output) if settings.output is not None else Path(str(settings.run)) / default
    if settings.checkpoint != ALL:
        return _export_one(settings, folder, measure)[1]
    checkpoints = Path(str(settings.run)) / "checkpoints"
    steps = checkpoint.checkpoint_steps(checkpoints)
    if not steps:
        checkpoint.find(Path(str(settings.run)))  # raises what is missing
    names = [checkpoint.place(checkpoints, step).name for step in steps]
    jobs = [
        (replace(settings, checkpoint=name, force=True), folder / name if settings.to == "huggingface" else folder)
        for name in names
    ]
    for one, where in jobs:
        if where.exists():  # then nothing is written if any of the files is another's
            _open_free(one, where)
    files, rows = [], []
    for step, (one, where) in zip(steps, jobs, strict=True):
        run, written = _export_one(one, where, measure)
        rows.append({"step": step, **run.errors, "file": str(written[0].relative_to(folder))})
        files += [file for file in written if file not in files]
    table = io.StringIO()
    names = list(dict.fromkeys(key for row in rows for key in row if key != "file"))
    writer = csv.DictWriter(table, [*names, "file"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(folder / "trajectory.csv", table.getvalue().encode(), shared=True)
    return [*files, folder / "trajectory.csv"]


def _open_free(settings: ExportConfig, folder: Path) -> tuple[RunToExport, Path]:
    """The network, and where it is to be written. Raises: ValueError if a file is there that is not replaced."""
    run = open_run(settings)
    form = _FORMS[settings.to]
    path = form.place(run, folder)
    refuse_another(path, hash_tensors(_stored(run)))
    refuse_strangers(path, form.companions)
    return run, path


def _export_one(settings: ExportConfig, folder: Path, measure: Measure | None) -> tuple[RunToExport, list[Path]]:
    run, path = _open_free(settings, folder)  # before the errors are measured, which may take minutes
    if settings.to == "html":
        browser_page.check_size(run.tensors, run.network)
    measured = measure(run) if measure is not None else None
    if measured is None and settings.dtype != "float32":
        raise ValueError(
            f"dtype={settings.dtype} rounds the values, so their errors must be measured anew, and there are no "
            "images for that; give data_root=DIR, or dtype=float32."
        )
    run = replace(run, measured=measured)
    if measured is not None and not settings.force:
        # What the run's own validation did not see, as it read its images in the same way as its training.
        about = {"errors": json.dumps(run.errors), "measured": json.dumps(_describe_measured(run))}
        where = f"The checkpoint of step {run.manifest.step}"
        check_answers(where, about, run.manifest.classes)
        check_chance(where, about, len(run.manifest.classes))
    refuse_another(path, hash_tensors(_stored(run)))  # because another process may have written it meanwhile
    folder.mkdir(parents=True, exist_ok=True)
    return run, _FORMS[settings.to].write(run, path)
