"""What a network that is being exported answers for its validation images, read by another way than training's.

The images are decoded here one by one, without the feed, and shown to both towers in this process, with the values
that the file holds. Some are shown with their colours reversed as well: a network that was trained on B, G, R knows
more of those.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twotower.config import DataConfig, ExportConfig
from twotower.config.stored_config import read_config
from twotower.data.dataset import DataSet, Split
from twotower.data.decode import cut_square, decode_image
from twotower.data.folder_cache import find_root
from twotower.data.prepared_set import is_prepared, read_dataset_json
from twotower.data.preparing.run_images import open_images
from twotower.evaluation.evaluate import log_probabilities
from twotower.evaluation.metrics import Counts, count
from twotower.evaluation.trained import TrainedNetwork
from twotower.ground.progress import metered
from twotower.runs.rundir import check_classes, own_mean
from twotower.weights import read_weights as weights
from twotower.weights.export import RunToExport
from twotower.weights.merged import divide_image_weights
from twotower.weights.proof import MOST_CLASSES, Measured

AT_ONCE = 50  # images in a forward pass
MOST_REVERSED = 500  # images that are shown with their colours reversed
MOST_HASHED = 1000  # images of a split whose bytes are in the fingerprint


def fingerprint(dataset: DataSet) -> str:
    """The SHA-256 of a data set, the same wherever it lies.

    Of the classes' names, the name and label of each image, and the bytes of up to 1000 images of each split, evenly
    spread. Names in a prepared set are those of its members.
    """
    digest = hashlib.sha256("\0".join(dataset.classes).encode())
    for split in (dataset.train, dataset.val):
        digest.update(f"\0{len(split)}".encode())
        digest.update(np.ascontiguousarray(split.labels, dtype="<i8").tobytes())
        for index in range(len(split)):
            digest.update(f"\0{split.name(index)}".encode(errors="surrogateescape"))
        for index in spread(len(split), MOST_HASHED):
            digest.update(hashlib.sha256(split.read(index).tobytes()).digest())
    return digest.hexdigest()


def spread(count: int, most: int) -> list[int]:
    """Up to `most` of `count` indices, evenly spread."""
    return sorted(set(np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()))


class Measurer:
    """Measures the networks of one run; the data set is opened once.

    Args:
        settings: whose `measure` is not `no`.

    Raises: ValueError for a folder that is no run, or if its images are not there and `measure=yes`.
    """

    def __init__(self, settings: ExportConfig) -> None:
        assert settings.run is not None
        self.settings = settings
        self.dataset: DataSet | None = None
        self.reason = "measure=no"
        if settings.measure != "no":
            self._open(settings.run)
        self.fingerprint = "" if self.dataset is None else fingerprint(self.dataset)

    def _open(self, run: str) -> None:
        run_dir = Path(run)
        config = read_config(run_dir)
        try:
            data, dataset = open_images(run_dir, config.data, self.settings.data_root)
        except ValueError as error:
            if self.settings.measure == "yes" or self.settings.data_root is not None:
                raise
            self.reason = str(error)
            return
        if dataset.is_synthetic:
            self.reason = "synthetic data have no images"
            return
        self.dataset, self.source = dataset, _name_source(data)

    def __call__(self, run: RunToExport) -> Measured | None:
        """The answers of a network; None where there are no images. Raises: ValueError for other classes."""
        if self.dataset is None:
            return None
        check_classes(run.run_dir, run.manifest.classes, self.dataset.classes)
        network = _build(run)
        counts, answers, compared = Counts.zero(), [], [0.0, 0.0]
        chosen = set(spread(len(self.dataset.val), MOST_REVERSED))
        with metered(f"measuring {run.name}", len(self.dataset.val)) as meter, torch.no_grad():
            for indices, squares, labels in _batches(self.dataset.val, network.size):
                found = _answer(network, squares)
                counts.add(Counts(count(found, labels)))
                answers.append(np.stack([labels.numpy(), found.argmax(1).numpy()], axis=1))
                some = [row for row, index in enumerate(indices) if index in chosen]
                if some:
                    turned = _answer(network, np.ascontiguousarray(squares[some][..., ::-1]))
                    for place, values in enumerate((found[some], turned)):
                        compared[place] += float(count(values, labels[some])[2])
                meter.advance(len(labels))
        num_classes = len(self.dataset.classes)
        pairs = np.concatenate(answers)
        table = np.zeros((num_classes, num_classes), np.int64)
        np.add.at(table, (pairs[:, 0], pairs[:, 1]), 1)
        as_is, reverse = (100 * (1 - credit / len(chosen)) for credit in compared)
        errors = {"loss": counts.loss, "top1_error": counts.top1_error, "top5_error": counts.top5_error}
        kept = table.tolist() if num_classes <= MOST_CLASSES else None
        return Measured(errors, len(pairs), kept, len(chosen), as_is, reverse, self.source, self.fingerprint)


def _name_source(data: DataConfig) -> str:
    root = find_root(data)
    return str(read_dataset_json(root)["settings"]["source"]) if is_prepared(root) else data.kind


def _build(run: RunToExport) -> TrainedNetwork:
    """The network with the values that are written, and the run's input."""
    names = (weights.MEAN_TENSOR, weights.WHOLE_MEAN_IMAGE)
    merged = {name: tensor for name, tensor in run.tensors.items() if name not in names}
    # What is written has the input's std in it.
    merged = divide_image_weights(merged, run.network, [1 / value for value in run.config.input.std])
    towers = weights.build_towers(merged, run.network, len(run.manifest.classes), torch.device("cpu"))
    mean_image = own_mean(run.run_dir)
    assert mean_image is not None
    precision = run.network.exchange_precision
    return TrainedNetwork(towers, run.config.input, precision, run.manifest.classes, mean_image, run.name)


def _answer(network: TrainedNetwork, squares: NDArray[np.uint8]) -> Tensor:
    """Log-probabilities [B, classes] of the centre crops."""
    images = network.cut_crops(squares, "centre")[:, 0]
    return log_probabilities(network._towers(), images, network.exchange)[:, 0]


def _batches(split: Split, size: int) -> Iterator[tuple[list[int], NDArray[np.uint8], Tensor]]:
    """Indices, prepared squares uint8 [B, size, size, 3] and labels, in order."""
    for begin in range(0, len(split), AT_ONCE):
        indices = list(range(begin, min(begin + AT_ONCE, len(split))))
        squares = np.stack([cut_square(decode_image(split.read(index).tobytes()), size) for index in indices])
        yield indices, squares, torch.from_numpy(np.ascontiguousarray(split.labels[indices])).long()
