"""What a trained network takes photographs for: any files, no data set needed.

    file -> decode_image -> turned as its EXIF says -> cut_square -> crops -> Normaliser -> towers -> softmax

A run knows all that is needed: its network, its classes and the mean image that is subtracted. So does a file that
launch/export.py wrote; files from Caffe and torchvision are taken to be about the 1,000 classes of ILSVRC-2012.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from twotower.config import EvaluateConfig, InputConfig, PredictConfig
from twotower.config.stored import read_config
from twotower.data.class_names import ilsvrc_words
from twotower.data.crops import ten_views
from twotower.data.decode import FORMATS, UnusableError, cut_square, decode_image
from twotower.data.folder import SUFFIXES
from twotower.data.normalise import Normaliser, subtracted_mean
from twotower.distributed.exchange import InProcessExchange
from twotower.evaluation.evaluate import check_settings, load_towers, log_probabilities, mean_over_crops, open_weights
from twotower.model.tower import Tower
from twotower.runs import checkpoint
from twotower.runs.rundir import MEAN_IMAGE, own_mean
from twotower.weights import read as weights

NUM_GUESSES = 5
AT_ONCE = 32  # photographs
ORIENTATION = 0x0112  # the EXIF tag


@dataclass(frozen=True)
class Trained:
    """A network as it was trained, with all that it needs to be shown a photograph.

    Attributes:
        classes: their names in the order of the network's outputs.
        mean_image: float32 [size, size, 3], RGB, 0..255; `size` is what images are brought to.
        title: where it came from.
    """

    towers: list[Tower]
    input: InputConfig
    exchange_precision: str
    classes: list[str]
    mean_image: NDArray[np.float32]
    title: str


@dataclass(frozen=True)
class Prediction:
    """What a network says of a photograph.

    Attributes:
        pixels: uint8 [S, S, 3], RGB, the centre crop that it was shown.
        classes: the likeliest five (or as many as there are), as places among the network's classes.
        probabilities: of these, 0..1, the highest first.
    """

    file: str
    pixels: NDArray[np.uint8]
    classes: list[int]
    probabilities: list[float]


def open_run(run: str, chosen: str | None, device: torch.device) -> Trained:
    """Raises: ValueError for a folder without run or checkpoint, or a run that was trained without images."""
    run_dir = Path(run)
    config = read_config(run_dir)
    path = checkpoint.choose(run_dir, chosen)
    classes = checkpoint.read_manifest(path).classes
    mean_image = own_mean(run_dir)
    if mean_image is None:
        raise ValueError(f"{run_dir} has no {MEAN_IMAGE}: it was not trained on images, and cannot judge any.")
    towers = load_towers(path, config, len(classes), device)
    title = f"{run_dir.resolve().name}, {path.name}"
    return Trained(towers, config.input, config.network.exchange_precision, classes, mean_image, title)


def open_file(settings: PredictConfig, device: torch.device) -> Trained:
    """The network in a file of weights.

    Raises: ValueError for a file that cannot be read, or does not fit the network, or has no mean with it.
    """
    assert settings.weights is not None
    network, given, own = open_weights(
        EvaluateConfig(weights=settings.weights, network=settings.network, input=settings.input)
    )
    classes = list(ilsvrc_words()) if own is None or own.classes is None else own.classes
    towers, mean = weights.load_towers_from_file(settings.weights, network, len(classes), device, settings.mean)
    if mean is None:
        raise ValueError(f"{settings.weights} has no mean image; give the folder of its run: run=RUN.")
    # Our own files have the mean of the whole prepared square, so its size is what images were brought to.
    size = mean.shape[-1] if own is not None and mean.dim() == 3 else network.prepared_size
    mean_image = weights.whole_mean_image(mean, size)
    return Trained(towers, given, network.exchange_precision, classes, mean_image, Path(settings.weights).name)


def list_photographs(given: Sequence[str]) -> list[Path]:
    """The files; of a folder, all that are named as JPEG or PNG, by name.

    Raises: ValueError if there are none, or one does not exist.
    """
    found: list[Path] = []
    for one in given:
        path = Path(one)
        if not path.exists():
            raise ValueError(f"{one} does not exist; give photographs, or folders of them.")
        of_folder = path.iterdir() if path.is_dir() else ()
        inside = sorted(file for file in of_folder if file.is_file() and file.name.lower().endswith(SUFFIXES))
        if path.is_dir() and not inside:
            raise ValueError(f"{one} has no photographs; they must be named {', '.join(SUFFIXES)}.")
        found += inside or [path]
    if not found:
        raise ValueError("no photograph is given: python launch/predict.py RUN cat.jpg")
    return found


def upright(image: NDArray[np.uint8], content: bytes) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] as a person sees it, [W, H, 3] if the camera was held upright.

    Data sets are prepared as in 2012, without regard to EXIF; a telephone's photograph would lie on its side.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            orientation = opened.getexif().get(ORIENTATION, 1)
    except Exception:  # of any kind; damaged metadata of an image that could be decoded are no reason to refuse it
        return image
    turned = Image.fromarray(image)
    turned.getexif()[ORIENTATION] = orientation
    return np.array(ImageOps.exif_transpose(turned))


def read_photograph(path: Path, size: int) -> NDArray[np.uint8]:
    """The prepared square, uint8 [size, size, 3], RGB. Raises: ValueError naming the file if it is no image."""
    try:
        content = path.read_bytes()
        return cut_square(np.ascontiguousarray(upright(decode_image(content), content)), size)
    except UnusableError as error:
        raise ValueError(f"{path} cannot be used: {error}.") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error


def crops_of(squares: NDArray[np.uint8], trained: Trained, crops: str, device: torch.device) -> Tensor:
    """What the towers see, float32 [B, V, 3, S, S], of prepared squares [B, size, size, 3]: 1 or 10 views of each."""
    side = trained.input.crop_size
    span = squares.shape[1] - side
    views = ten_views(span) if crops == "ten" else [(span // 2, span // 2, 0)]
    cut = np.stack(
        [
            part[:, :, ::-1] if flip else part
            for y, x, flip in views
            for part in [squares[:, y : y + side, x : x + side]]
        ],
        axis=1,
    )
    shown = torch.from_numpy(np.ascontiguousarray(cut.reshape(-1, side, side, 3)))
    places = np.tile(np.array(views, np.int32), (len(squares), 1))
    mean = subtracted_mean(trained.mean_image, trained.input)
    normalise = Normaliser(mean, trained.input.mean, side, device, trained.input.std)
    images = normalise(shown, places[:, :2], places[:, 2])
    return images.view(cut.shape).movedim(-1, -3)


@torch.no_grad()
def predict_squares(
    squares: NDArray[np.uint8], trained: Trained, crops: str, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The likeliest classes of prepared squares and their probabilities, [B, 5] each, the highest first."""
    exchange = InProcessExchange(trained.exchange_precision)
    images = crops_of(squares, trained, crops, device)
    # Of classes that tie the first one comes first.
    probabilities = mean_over_crops(log_probabilities(trained.towers, images, exchange)).cpu().exp()
    values, classes = probabilities.sort(dim=1, descending=True, stable=True)
    return classes[:, :NUM_GUESSES], values[:, :NUM_GUESSES]


def predict_photographs(
    paths: Sequence[Path], trained: Trained, crops: str, device: torch.device
) -> tuple[list[Prediction], list[str]]:
    """Predictions in the order of the files, and a sentence for each file that is no image."""
    found: list[Prediction] = []
    problems: list[str] = []
    size = len(trained.mean_image)
    begin = (size - trained.input.crop_size) // 2
    centre = slice(begin, begin + trained.input.crop_size)
    for first in range(0, len(paths), AT_ONCE):
        read: list[tuple[Path, NDArray[np.uint8]]] = []
        for path in paths[first : first + AT_ONCE]:
            try:
                read.append((path, read_photograph(path, size)))
            except ValueError as error:
                problems.append(str(error))
        if not read:
            continue
        classes, values = predict_squares(np.stack([one for _, one in read]), trained, crops, device)
        for row, (path, whole) in enumerate(read):
            likeliest = classes[row].tolist(), values[row].tolist()
            found.append(Prediction(str(path), whole[centre, centre], *likeliest))
    return found, problems


def open_trained(settings: PredictConfig) -> tuple[Trained, torch.device]:
    """The network that the settings name, and the device that it is on.

    Raises: ValueError for settings that are not known or do not go together, or a network that cannot be read.
    """
    check_settings(EvaluateConfig(crops=settings.crops, device=settings.device))
    if (settings.run is None) == (settings.weights is None):
        raise ValueError("give one of run=RUN and weights=FILE: python launch/predict.py RUN cat.jpg")
    for key, given in (("network", settings.network), ("mean", settings.mean)):
        if given is not None and settings.weights is None:
            raise ValueError(f"{key}= is for weights=FILE; a run has its own.")
    if settings.checkpoint is not None and settings.run is None:
        raise ValueError("checkpoint= is for run=RUN; a file of weights has only one.")
    device = torch.device("cuda" if torch.cuda.is_available() and settings.device != "cpu" else "cpu")
    if settings.run is not None:
        return open_run(settings.run, settings.checkpoint, device), device
    return open_file(settings, device), device
