"""The embedded data set `data=shapes`: four forms in three colours, drawn on first use.

Twelve classes, `<colour>_<form>`: knowing only the colour gives 1 in 4, only the form 1 in 3. Every image comes from
its own random stream, so the same Pillow writes the same bytes, whatever the number of threads or of images.
"""

import colorsys
import json
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

FORMS = ("circle", "square", "star", "triangle")
HUES = {"blue": 222.0, "green": 122.0, "red": 0.0}  # degrees
CLASSES = tuple(f"{colour}_{form}" for colour, form in product(HUES, FORMS))
HUE_JITTER = 14.0  # degrees to either side; the colours stay 70 degrees apart
OTHER_HUES = ((35.0, 75.0), (165.0, 190.0), (265.0, 325.0))  # of distractors: yellow, cyan, violet to pink
SHORTER_SIDE = (120, 261)  # pixels
DIAMETER = (0.45, 0.75)  # of the circle around the form, as a part of the shorter side
SUPERSAMPLING = 2
UPRIGHT = {"circle": 0.0, "square": 45.0, "star": -90.0, "triangle": -90.0}  # degrees; where the first corner points
TILT = 15.0  # degrees to either side of upright
MARKER = "shapes.json"  # says which drawing a folder holds
DRAWING = 2  # raised whenever the pictures change

Colour = tuple[int, int, int]
Point = tuple[float, float]


def draw_shapes(root: Path, num_train: int, num_val: int) -> None:
    """Draws the set into `root` as train/<class>/00001.jpg ...; does nothing where it is drawn already.

    The folder is complete or absent: it is drawn under another name and then renamed.

    Raises: ValueError if there are fewer images than classes, or if `root` holds something else.
    """
    for key, num_images in (("data.num_train", num_train), ("data.num_val", num_val)):
        if num_images < len(CLASSES):
            raise ValueError(f"{key}={num_images} is fewer than the {len(CLASSES)} classes of shapes; give more.")
    wanted = {"drawing": DRAWING, "num_train": num_train, "num_val": num_val}
    if root.exists():
        _check_drawn(root, wanted)
        return
    unfinished = root.with_name(f".{root.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    try:
        for split, num_images in (("train", num_train), ("val", num_val)):
            for name in CLASSES:
                (unfinished / split / name).mkdir(parents=True)
            with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
                list(threads.map(partial(_write_image, unfinished / split, split == "val"), range(num_images)))
        (unfinished / MARKER).write_text(json.dumps(wanted) + "\n")
        unfinished.rename(root)
    except OSError as error:
        raise ValueError(
            f"The shapes cannot be drawn into {root} ({error.strerror}); choose a writable folder with data.root."
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def read_marker(root: Path) -> dict[str, int] | None:
    """Which drawing a folder holds: `drawing`, `num_train`, `num_val`; None if none."""
    try:
        found = json.loads((root / MARKER).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _check_drawn(root: Path, wanted: dict[str, int]) -> None:
    found = read_marker(root)
    if found is None:
        raise ValueError(
            f"{root} holds something else than the shapes that data=shapes draws; give data=folder for images of "
            "your own, or another folder."
        )
    if found != wanted:
        raise ValueError(
            f"{root} does not hold the shapes of data.num_train={wanted['num_train']} and "
            f"data.num_val={wanted['num_val']}; delete that folder or choose another one with data.root."
        )


def _write_image(folder: Path, validation: bool, index: int) -> None:
    name = CLASSES[index % len(CLASSES)]
    image = draw_image(name, np.random.default_rng([DRAWING, validation, index]))
    image.save(folder / name / f"{index // len(CLASSES) + 1:05d}.jpg", quality=90)


def draw_image(name: str, stream: np.random.Generator) -> Image.Image:
    """One RGB picture of class `name`, shorter side 120..260 pixels.

    The form lies wholly inside the centre square, since training crops the image to that square.
    """
    colour, form = name.split("_")
    shorter = int(stream.integers(*SHORTER_SIDE))
    longer = int(shorter * stream.uniform(1.0, 1.5))
    width, height = (longer, shorter) if stream.random() < 0.5 else (shorter, longer)
    image = _background(width, height, stream).resize(
        (width * SUPERSAMPLING, height * SUPERSAMPLING), Image.Resampling.NEAREST
    )
    canvas = ImageDraw.Draw(image)
    for _ in range(int(stream.integers(2, 6))):
        _draw_distractor(canvas, image.size, stream)
    side = shorter * SUPERSAMPLING
    radius = stream.uniform(*DIAMETER) * side / 2
    reach = side / 2 - radius - 2
    centre = (
        image.width / 2 + stream.uniform(-reach, reach),
        image.height / 2 + stream.uniform(-reach, reach),
    )
    fill = _hsv(
        HUES[colour] + stream.uniform(-HUE_JITTER, HUE_JITTER),
        stream.uniform(0.7, 1.0),
        stream.uniform(0.55, 1.0),
    )
    angle = math.radians(UPRIGHT[form] + stream.uniform(-TILT, TILT))
    canvas.polygon(_outline(form, centre, radius, angle), fill=fill)
    return image.resize((width, height), Image.Resampling.BOX)


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _background(width: int, height: int, stream: np.random.Generator) -> Image.Image:
    """A cloudy texture between two pale or dull colours, with grain: no colour of a class is saturated in it."""
    ends = [_hsv(stream.uniform(0, 360), stream.uniform(0, 0.35), stream.uniform(0.15, 1.0)) for _ in range(2)]
    cells = int(stream.integers(2, 13))
    clouds = Image.fromarray(stream.integers(0, 256, (cells, cells), dtype=np.uint8))
    amount = np.asarray(clouds.resize((width, height), Image.Resampling.BICUBIC), np.float32)[..., None] / 255
    first, second = np.asarray(ends, np.float32)
    grain = stream.integers(-12, 13, (height, width, 1))
    return Image.fromarray((first + (second - first) * amount + grain).clip(0, 255).astype(np.uint8))


def _draw_distractor(canvas: ImageDraw.ImageDraw, size: tuple[int, int], stream: np.random.Generator) -> None:
    """A small blob or a line in a colour of no class, anywhere; the form is drawn over it."""
    low, high = OTHER_HUES[int(stream.integers(len(OTHER_HUES)))]
    fill = _hsv(stream.uniform(low, high), stream.uniform(0.2, 1.0), stream.uniform(0.3, 1.0))
    x, y = stream.uniform(0, size[0]), stream.uniform(0, size[1])
    length = min(size) * stream.uniform(0.03, 0.08)
    if stream.random() < 0.5:
        canvas.ellipse((x - length, y - length * 0.7, x + length, y + length * 0.7), fill=fill)
    else:
        angle = stream.uniform(0, 2 * math.pi)
        end = (x + 4 * length * math.cos(angle), y + 4 * length * math.sin(angle))
        canvas.line(((x, y), end), fill=fill, width=max(2, round(length / 4)))


def _outline(form: str, centre: Point, radius: float, angle: float) -> list[Point]:
    """Corners on, and for the star also inside, the circle of `radius` around `centre`; `angle` in radians."""
    corners = {"circle": 72, "square": 4, "star": 10, "triangle": 3}[form]
    inner = 0.45 if form == "star" else 1.0
    points = []
    for corner in range(corners):
        length = radius * (inner if corner % 2 else 1.0)
        turn = angle + 2 * math.pi * corner / corners
        points.append((centre[0] + length * math.cos(turn), centre[1] + length * math.sin(turn)))
    return points
