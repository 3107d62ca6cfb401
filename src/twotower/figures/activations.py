"""The maps that a convolution makes of one image: its maps in both towers, as the next layer reads them.

The next layer reads them after activation, norms and pooling, in the order of the network's table; zeros that it adds
at the edge are left out. All maps of both towers have one scale of greys, so that a faint map looks faint.
"""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twotower.config import NetworkConfig
from twotower.data.batch import Share
from twotower.data.choose_loader import say_fallback
from twotower.data.dataset import Split
from twotower.data.feed import ValidationFeed
from twotower.distributed.exchange import InProcessExchange
from twotower.evaluation.layer_outputs import read_outputs
from twotower.evaluation.stored_features import choose_split
from twotower.evaluation.subject import Subject, load_towers
from twotower.figures.drawing import open_pyplot, save, write_numbers
from twotower.figures.photographs import Photograph, find_image, read_class_names, read_photograph, shorten

MOST = 48  # most maps of a tower that are drawn
PER_ROW = 12


@dataclass(frozen=True)
class _Single:
    """One image of a split."""

    split: Split
    index: int

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.asarray(self.split.labels[self.index : self.index + 1])

    def __len__(self) -> int:
        return 1

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.split.read(self.index)

    def name(self, index: int) -> str:
        return self.split.name(self.index)


@dataclass(frozen=True)
class Activations:
    """The maps of a layer for one image.

    Attributes:
        of_tower: float32 [C, H, W] of each tower.
        class_name: name of the image's class for people.
        steps: steps that follow the layer's sum, in their order; empty if the maps are the sum itself.
        reader: the layer that reads them.
    """

    title: str
    image: Photograph
    class_name: str
    layer: str
    steps: list[str]
    reader: str
    of_tower: list[Tensor]


def choose_layer(network: NetworkConfig, given: str | None) -> str:
    """The first convolution unless another one is given. Raises: ValueError naming those that there are."""
    convolutions = [name for name in list(network.layers)[:-1] if network.layers[name].kind != "linear"]
    if given is None and convolutions:
        return convolutions[0]
    if given not in convolutions:
        raise ValueError(
            f"layer={given} is no convolution of network={network.name}; choose {_one_of(convolutions)}."
        )
    return given


def _one_of(names: list[str]) -> str:
    return f"one of {', '.join(names)}" if names else "another network, because it has none"


def list_steps(network: NetworkConfig, layer: str) -> list[str]:
    """The steps after a layer's sum as it is evaluated: without dropout, and without norms that are left out."""
    left_out = {"dropout"}
    if network.lrn is None:
        left_out.add("lrn")
    if network.spatial_norm is None:
        left_out.add("spatial_norm")
    words = {
        "activation": {"relu": "ReLU"}.get(network.activation, network.activation),
        "lrn": "response norm",
        "spatial_norm": "spatial norm",
        "pool": f"{network.layers[layer].pooling} pooling",
    }
    return [words[step] for step in network.layers[layer].then if step not in left_out]


def make_activations(subject: Subject, layer: str | None, image: str | None) -> Activations:
    """The maps for the centre crop of a validation image, given by index or name; None: the first one.

    Raises: ValueError for a layer or an image that is not there, or a run on synthetic data.
    """
    config, dataset = subject.config, subject.dataset
    images = choose_split(dataset, "val")
    chosen = choose_layer(config.network, layer)
    index = find_image(images, image if image is not None else "0")
    device = torch.device("cpu")
    share = Share(1, 0, 1, device, 1)
    say_fallback(config.input.loader)
    with closing(ValidationFeed(dataset, _Single(images, index), config.input, share, crops="centre")) as feed:
        batch = next(feed)
    towers = load_towers(subject.checkpoint, subject.manifest, config, len(dataset.classes), device)
    exchange = InProcessExchange(config.network.exchange_precision)
    outputs = read_outputs(towers, [chosen], batch.images, exchange)
    layers = list(config.network.layers)
    shown = read_photograph(dataset, images, index, config.input.crop_size)
    return Activations(
        title=f"{subject.run_dir.resolve().name}, {subject.checkpoint.name}",
        image=shown,
        class_name=read_class_names(subject)[shown.label],
        layer=chosen,
        steps=list_steps(config.network, chosen),
        reader=layers[layers.index(chosen) + 1],
        of_tower=[output[0].contiguous() for output in outputs[chosen]],
    )


def choose_most_active(maps: Tensor, most: int = MOST) -> list[int]:
    """The indices, in their order, of the maps [C, H, W] with the highest means; of equal ones the first."""
    order = maps.flatten(1).double().mean(1).argsort(descending=True, stable=True)
    return sorted(order[:most].tolist())


def count_silent(maps: Tensor) -> int:
    """Counts the maps [C, H, W] that have one value everywhere, like those of units that never fire."""
    flat = maps.flatten(1)
    return int((flat.amax(1) == flat.amin(1)).sum())


def tile_maps(maps: Tensor) -> NDArray[np.float32]:
    """Maps [C, H, W], at most `PER_ROW` in rows of equal length, with a pixel of NaN between and around them."""
    count, height, width = maps.shape
    rows = -(-count // PER_ROW)
    columns = -(-count // rows)
    picture = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1), np.nan, np.float32)
    for number, pixels in enumerate(maps):
        y, x = number // columns * (height + 1) + 1, number % columns * (width + 1) + 1
        picture[y : y + height, x : x + width] = pixels.numpy()
    return picture


def write_activations(activations: Activations, path: Path) -> list[Path]:
    """Writes the drawing and, beside it, NAME.csv: mean and maximum of every map, drawn or not."""
    rows = []
    for tower, maps in enumerate(activations.of_tower):
        flat = maps.flatten(1).double()
        for number, (mean, largest) in enumerate(zip(flat.mean(1).tolist(), flat.amax(1).tolist(), strict=True)):
            rows.append([tower, number, f"{mean:.6g}", f"{largest:.6g}"])
    tables = write_numbers(path, ["tower", "map", "mean", "max"], rows)
    _draw(activations, path)
    return [path, *tables]


def _draw(activations: Activations, path: Path) -> None:
    pyplot = open_pyplot("activations")
    low = min(0.0, *(float(maps.min()) for maps in activations.of_tower))
    high = max(float(maps.max()) for maps in activations.of_tower)
    drawn = [choose_most_active(maps) for maps in activations.of_tower]
    pictures = [tile_maps(maps[indices]) for maps, indices in zip(activations.of_tower, drawn, strict=True)]
    width = 9.0
    heights = [width * len(picture) / picture.shape[1] for picture in pictures]
    total = max(sum(heights) + 0.4 * len(heights), 3.2)
    figure = pyplot.figure(figsize=(width + 4.4, total + 0.8), layout="constrained")
    grid = figure.add_gridspec(len(pictures), 2, width_ratios=[2.9, width], height_ratios=heights)
    image = figure.add_subplot(grid[:, 0])
    image.imshow(activations.image.pixels, interpolation="antialiased")
    image.axis("off")
    file_name = activations.image.name.rpartition("/")[2]
    image.set_title(f"{shorten(activations.class_name)}\n{shorten(file_name, 30)}", size=9)
    panels, shown = [], None
    for tower, (maps, indices, picture) in enumerate(zip(activations.of_tower, drawn, pictures, strict=True)):
        axes = figure.add_subplot(grid[tower, 1])
        shown = axes.imshow(
            picture, cmap="gray", vmin=low, vmax=high if high > low else low + 1, interpolation="nearest"
        )
        axes.axis("off")
        count = f"{len(maps)} maps"
        if len(indices) < len(maps):
            count = f"the {len(indices)} most active of {count}"
        size = f"{maps.shape[1]} x {maps.shape[2]}"
        axes.set_title(f"tower {tower}: {count} of {size}", size=10, loc="left")
        panels.append(axes)
    figure.colorbar(shown, ax=panels, label="value", shrink=0.7, pad=0.01)
    after = " after " + ", ".join(activations.steps) if activations.steps else ""
    figure.suptitle(f"{activations.layer}{after}, as {activations.reader} reads it: {activations.title}", size=11)
    save(figure, path)


def describe(activations: Activations) -> list[str]:
    """A line for each tower."""
    lines = []
    for tower, maps in enumerate(activations.of_tower):
        lines.append(
            f"tower {tower}: {len(maps)} maps, mean {float(maps.mean()):.4g}, maximum {float(maps.max()):.4g}, "
            f"{count_silent(maps)} with one value everywhere"
        )
    return lines
