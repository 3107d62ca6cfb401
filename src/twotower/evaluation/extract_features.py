"""Features: what layers of a network make of many images, batch by batch, in files that other programs read.

    OUTPUT/conv2.npy, OUTPUT/fc7.npy    float32 [N, C, H, W] or [N, units], tower 0's maps or units first
    OUTPUT/features.safetensors         in place of these, with format=safetensors
    OUTPUT/images.csv                   row, file and, of a prepared set, class of each image, in their order
    OUTPUT/features.json                what it was made of: weights, layers, shapes, images that were left out

The folder appears when all of it is written, and is refused where there is one. Two batches are in memory at a time.
"""

import csv
import io
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from twotower.evaluation.image_lists import GivenImages, ImageList, open_images
from twotower.evaluation.trained import AT_ONCE, TrainedNetwork
from twotower.ground.files import DiskFullError, write_json, write_text, written_folder
from twotower.ground.progress import metered
from twotower.ground.row_files import FORMATS, RowFiles, check_room, measure_rows
from twotower.ground.versions import read_versions

ON_ERROR = ("stop", "skip")
_Coming = list[tuple[int, Future[NDArray[np.uint8]]]]  # rows, and the squares that will be theirs
Images = str | Path | Sequence[str | Path | NDArray[np.uint8]] | NDArray[np.uint8]


@dataclass(frozen=True)
class FeatureBatch:
    """Features of some images.

    Attributes:
        rows: places of the images in their list.
        names: their files.
        values: by layer float32 [B, C, H, W] or [B, units].
        problems: a sentence for each image of this batch that was left out.
    """

    rows: list[int]
    names: list[str]
    values: dict[str, NDArray[np.float32]]
    problems: list[str]


@dataclass(frozen=True)
class Extracted:
    """Features that were written: the files with numbers, their shapes by layer, and a sentence for each image that
    was left out."""

    files: list[Path]
    shapes: dict[str, tuple[int, ...]]
    problems: list[str]


def _open(images: Images | ImageList, split: str | None) -> ImageList:
    if isinstance(images, str | Path) and Path(images).is_dir():
        return open_images(Path(images), split)
    if isinstance(images, str | Path):
        images = [images]
    if isinstance(images, np.ndarray):
        images = [images] if images.ndim == 3 else list(images)
    return GivenImages(images) if isinstance(images, Sequence) else images


def _read_ahead(images: ImageList, size: int, batch_size: int) -> Iterator[_Coming]:
    """Batches of images that threads decode, the next one while the network computes."""
    threads = ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="decode")
    coming: deque[_Coming] = deque()
    try:
        for begin in range(0, len(images), batch_size):
            rows = range(begin, min(begin + batch_size, len(images)))
            coming.append([(row, threads.submit(images.read, row, size)) for row in rows])
            if len(coming) > 1:
                yield coming.popleft()
        yield from coming
    finally:
        threads.shutdown(cancel_futures=True)


def iterate_features(
    network: TrainedNetwork,
    images: Images | ImageList,
    layers: str | Sequence[str],
    *,
    tower: int | None = None,
    split: str | None = None,
    batch_size: int = AT_ONCE,
    on_error: str = "stop",
) -> Iterator[FeatureBatch]:
    """The features of images, batch by batch, as `TrainedNetwork.activations` computes them.

    Args:
        images: a folder with images at any depth, a prepared set, or paths and uint8 arrays [H, W, 3].
        layers: "conv2" for the output of a layer, "conv2.sum" or "conv2.lrn" for that of a step; see `network.steps`.
        tower: of which the half is wanted; None: both, tower 0's first.
        split: `train`, `val` or `test` of a prepared set; None: val.
        batch_size: images at a time.
        on_error: effect of an image that cannot be used: `stop`, or `skip`, which leaves out its row.

    Raises: ValueError for a layer, a tower or an image that is not there, or cannot be used.
    """
    wanted = [layers] if isinstance(layers, str) else list(layers)
    _check(network, wanted, tower, batch_size, on_error)
    listed = _open(images, split)
    for batch in _read_ahead(listed, network.size, batch_size):
        squares: dict[int, NDArray[np.uint8]] = {}
        problems: list[str] = []
        for row, future in batch:
            try:
                squares[row] = future.result()
            except ValueError as error:
                if on_error == "stop":
                    raise
                problems.append(str(error))
        values: dict[str, NDArray[np.float32]] = {}
        if squares:
            views = network.cut_crops(np.stack(list(squares.values())), "centre")[:, 0]
            found = network.read_layers(views, wanted, tower)
            values = {name: tensor.float().cpu().contiguous().numpy() for name, tensor in found.items()}
        yield FeatureBatch(list(squares), [listed.name(row) for row in squares], values, problems)


def _check(network: TrainedNetwork, layers: Sequence[str], tower: int | None, batch_size: int, on_error: str) -> None:
    """Raises: ValueError for what cannot be asked of the network, TypeError where a name stands for it."""
    if not isinstance(network, TrainedNetwork):
        raise TypeError(f"{network!r} is no network; load it first: twotower.load_network({str(network)!r})")
    if not layers:
        raise ValueError(f"no layer is asked for; give some of {', '.join(network.layers)}: 'layers=[conv2,fc7]'")
    if twice := [name for place, name in enumerate(layers) if name in layers[:place]]:
        raise ValueError(f"{twice[0]} is asked for twice; give each layer once.")
    network.check_names(layers, tower)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is no number of images; give 1 or more.")
    if on_error not in ON_ERROR:
        raise ValueError(f"on_error={on_error} is not known; choose one of {', '.join(ON_ERROR)}.")


def measure_shapes(network: TrainedNetwork, layers: Sequence[str], tower: int | None) -> dict[str, tuple[int, ...]]:
    """The shape of one image's features by layer: (C, H, W) or (units,)."""
    side = network.input.crop_size
    found = network.read_layers(torch.zeros(1, 3, side, side, device=network.device), layers, tower)
    return {name: tuple(values.shape[1:]) for name, values in found.items()}


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """`written_folder`, whose errors name the folder by the name that it would have had."""
    pending = path
    try:
        with written_folder(path) as pending:
            yield pending
    except DiskFullError as error:
        raise DiskFullError(str(error).replace(str(pending), str(path))) from error


def extract_features(
    network: TrainedNetwork,
    images: Images | ImageList,
    layers: str | Sequence[str],
    output: str | Path,
    *,
    format: str = "npy",
    tower: int | None = None,
    split: str | None = None,
    batch_size: int = AT_ONCE,
    on_error: str = "stop",
    progress: bool = False,
) -> Extracted:
    """Writes the features of images into a new folder, in memory that does not grow with their number.

    Args:
        output: a folder that is not there yet.
        format: `npy`, a file for each layer, or `safetensors`, one file with all of them.
        progress: whether the number of images that are done is shown.
        images, layers, tower, split, batch_size, on_error: as for `iterate_features`.

    Raises: ValueError for what `iterate_features` refuses, for an output that is there, a disk without room, or
        images of which none can be used; OSError if it cannot be written.
    """
    wanted = [layers] if isinstance(layers, str) else list(layers)
    _check(network, wanted, tower, batch_size, on_error)
    if format not in FORMATS:
        raise ValueError(f"format={format} is not known; choose one of {', '.join(FORMATS)}.")
    folder = Path(output)
    if folder.suffix in (".npy", ".npz", ".safetensors"):
        raise ValueError(
            f"output={output} is called as a file, and features are a folder; give output={folder.with_suffix('')} "
            f"and format={' or format='.join(FORMATS)}."
        )
    if folder.exists() or folder.is_symlink():
        raise ValueError(f"output={output} is there already; choose another folder, or delete it.")
    listed = _open(images, split)
    if not len(listed):
        raise ValueError("there are no images; give a folder, or paths, or uint8 arrays [H, W, 3].")
    shapes = measure_shapes(network, wanted, tower)
    folder.parent.mkdir(parents=True, exist_ok=True)
    check_room(folder.parent, measure_rows(shapes, len(listed)))
    about: dict[str, Any] = {
        "weights": network.title,
        "tower": "both" if tower is None else tower,
        "images": listed.source,
        "versions": read_versions(),
    }
    table, problems, done = io.StringIO(), [], 0
    lines = csv.writer(table, lineterminator="\n")
    lines.writerow(["row", "file", "class"])
    with _folder(folder) as pending:
        files = RowFiles(pending, format, shapes, len(listed), {"about": json.dumps(about)})
        batches = iterate_features(network, listed, wanted, tower=tower, batch_size=batch_size, on_error=on_error)
        try:
            with metered(", ".join(wanted), len(listed), silent=not progress) as meter:
                for batch in batches:
                    if batch.rows:
                        files.append(batch.values)
                    for row, name in zip(batch.rows, batch.names, strict=True):
                        lines.writerow([done, name, listed.label(row)])
                        done += 1
                    problems += batch.problems
                    meter.advance(len(batch.rows) + len(batch.problems))
            if not done:
                raise ValueError(f"none of the {len(listed)} images can be used: {problems[0]}")
            paths = files.finish()
        finally:
            batches.close()  # type: ignore[attr-defined]
            files.close()
        write_text(pending / "images.csv", table.getvalue())
        full = {name: (done, *shape) for name, shape in shapes.items()}
        write_json(pending / "features.json", about | {"layers": full, "left_out": problems})
    return Extracted([folder / path.name for path in paths], full, problems)
