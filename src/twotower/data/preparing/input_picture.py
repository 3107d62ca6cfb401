"""Draws the network's input for people: originals, prepared squares, and the crops of training, in one PNG."""

import io
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from twotower.config import UNSCALED, InputConfig
from twotower.data.batch import Share
from twotower.data.colour_noise import noise_scale
from twotower.data.dataset import DataSet, Split
from twotower.data.decode import cut_square, decode_image
from twotower.data.feed import TrainFeed
from twotower.data.photographs import is_picture
from twotower.ground.files import write_whole

CELL, GAP, LABELS, HEAD = 160, 6, 230, 44  # pixels: sides of an image, gap, width of the labels, height of the title
EXAGGERATION = 5  # factor on the colour noise, which is hard to see as it is
SHOWN = 8  # images
SHOWS = "shows"  # key of the text in the PNG that holds the settings shown
MID_GREY = 128.0  # added to pixels less the mean image, which have both signs
INK, PAPER, FAINT = (20, 20, 20), (255, 255, 255), (110, 110, 110)

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class _Picked:
    """Some images of a split, labelled by their index in this choice."""

    split: Split
    rows: list[int]

    @property
    def labels(self) -> NDArray[np.int64]:
        return np.arange(len(self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> NDArray[np.uint8]:
        return self.split.read(self.rows[index])

    def name(self, index: int) -> str:
        return self.split.name(self.rows[index])


def read_crops(dataset: DataSet, rows: list[int], config: InputConfig, contrast: float = 1.0) -> list[Picture]:
    """The crops of one training batch, through the pipeline of training, in the order of `rows`.

    The values are turned into grey levels again: the constant mean, or MID_GREY for a mean image, is added to them.
    """
    picked = replace(dataset, train=_Picked(dataset.train, rows))
    share = Share(len(rows), 0, 1, torch.device("cpu"), 1)
    with closing(TrainFeed(picked, config, share, seed=0, first_step=0)) as feed:
        batch = next(feed)
    back = torch.tensor([MID_GREY] * 3 if config.mean_value is None else config.mean_value)
    levels = batch.images.permute(0, 2, 3, 1) * (contrast * torch.tensor(config.std)) + back
    images = levels.clamp(0, 255).to(torch.uint8).numpy()
    return [images[row] for row in batch.labels.argsort()]


def _adapt(preset: InputConfig, size: int) -> InputConfig:
    """Adapts a preset to squares of `size`, which may be smaller than the crops of the paper."""
    crop = min(preset.crop_size, size * 7 // 8)
    return replace(preset, crop_size=crop, offsets=min(preset.offsets or size, size - crop + 1))


def _format_channels(values: Sequence[float]) -> str:
    """`0.5` where R, G and B are alike, else all three."""
    return f"{values[0]:g}" if len(set(values)) == 1 else ", ".join(f"{value:g}" for value in values)


def _describe(name: str, config: InputConfig) -> str:
    draw = f"one draw for {config.images_per_draw} images" if config.images_per_draw > 1 else "a draw for each image"
    mean = f"{config.mean} mean subtracted"
    if config.mean_value is not None:
        mean = f"less {_format_channels(config.mean_value)}: not shown"
    if tuple(config.std) != UNSCALED:
        mean += f"\nover {_format_channels(config.std)}: not shown"
    return f"{name}\ncrops of {config.crop_size} x {config.crop_size}\n{draw}\n{mean}"


def _list_rows(
    dataset: DataSet, shown: Sequence[tuple[int, Picture]], presets: dict[str, InputConfig]
) -> list[tuple[str, list[Picture]]]:
    """The label and the images of each row of the picture."""
    indices = [index for index, _ in shown]
    squares = [cut_square(decode_image(dataset.train.read(i).tobytes()), dataset.size) for i in indices]
    rows = [
        ("originals", [image for _, image in shown]),
        (f"prepared\ncentre {dataset.size} x {dataset.size}", squares),
    ]
    for name, preset in presets.items():
        config = _adapt(preset, dataset.size)
        strong = replace(config, colour_noise_std=EXAGGERATION * config.colour_noise_std)
        rows.append((_describe(name, config), read_crops(dataset, indices, replace(config, colour_noise="none"))))
        rows.append((f"{name}\nwith colour noise", read_crops(dataset, indices, config)))
        # The division that comes with the noise is not exaggerated.
        contrast = noise_scale(config.colour_noise, config.colour_noise_std) / noise_scale(
            strong.colour_noise, strong.colour_noise_std
        )
        rows.append((f"{name}\ncolour noise x {EXAGGERATION}", read_crops(dataset, indices, strong, contrast)))
    return rows


def _paste(sheet: Image.Image, picture: Picture, left: int, top: int) -> None:
    image = Image.fromarray(picture)
    scale = CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    sheet.paste(image, (left + (CELL - image.width) // 2, top + (CELL - image.height) // 2))


def draw_picture(
    dataset: DataSet, shown: Sequence[tuple[int, Picture]], presets: dict[str, InputConfig], path: Path
) -> None:
    """Writes the PNG, complete or not at all.

    Args:
        shown: indices in the training split, and the originals of these images, uint8 [height, width, 3].
        presets: settings of the input by name; each gives three rows.
    """
    assert dataset.mean_image is not None
    rows = _list_rows(dataset, shown, presets)
    mean = dataset.mean_image.round().astype(np.uint8)
    width = LABELS + max(1, len(shown)) * (CELL + GAP) + GAP
    height = HEAD + (len(rows) + 1) * (CELL + GAP) + GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    pen, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(16), ImageFont.load_default(13)
    pen.text((GAP, 12), f"What the network is fed; less the mean image, shown around {MID_GREY:g}", INK, font)
    for number, (label, pictures) in enumerate(rows):
        top = HEAD + number * (CELL + GAP)
        title, _, rest = label.partition("\n")
        pen.text((GAP, top + 8), title, INK, font)
        pen.multiline_text((GAP, top + 32), rest, FAINT, small, spacing=4)
        for column, picture in enumerate(pictures):
            _paste(sheet, picture, LABELS + column * (CELL + GAP), top)
    top = HEAD + len(rows) * (CELL + GAP)
    pen.text((GAP, top + 8), "mean image", INK, font)
    _paste(sheet, mean, LABELS, top)
    axes = "\n".join(
        f"{np.sqrt(max(value, 0)):6.1f} along ({', '.join(f'{part:+.3f}' for part in vector)})"
        for value, vector in zip(dataset.eigenvalues[::-1], dataset.eigenvectors.T[::-1], strict=True)
    )
    means = ", ".join(f"{level:.1f}" for level in dataset.mean_image.mean(axis=(0, 1)))
    pen.multiline_text(
        (LABELS + CELL + 3 * GAP, top + 8),
        f"mean of R, G, B: {means}\nstandard deviations of the colours, 0..255, and their axes in R, G, B:\n{axes}",
        FAINT,
        small,
        spacing=6,
    )
    about = PngInfo()
    about.add_text(SHOWS, repr(presets.get("training", "")))
    file = io.BytesIO()
    sheet.save(file, "PNG", pnginfo=about)
    write_whole(path, file.getbuffer(), shared=True)  # jobs of a sweep may prepare one folder at once


def read_shown(path: Path) -> str:
    """Reads which training settings a picture shows; an empty string if it cannot be read."""
    if not is_picture(path):
        return ""
    with Image.open(path, formats=["PNG"]) as sheet:
        return str(sheet.info.get(SHOWS, ""))
