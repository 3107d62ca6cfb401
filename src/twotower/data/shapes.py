"""The embedded data set `data=shapes`: four forms in three colours, drawn on first use.

Twelve classes, `<colour>_<form>`: knowing only the colour gives 1 in 4, only the form 1 in 3. Every image comes from
its own random stream, so the same Pillow writes the same bytes, whatever the number of threads or of images.
"""

import colorsys
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pydantic import TypeAdapter

from twotower.ground.files import written_folder
from twotower.ground.stored_files import read_json

FORMS = ("circle", "square", "star", "triangle")
CLASSES = tuple(f"{colour}_{form}" for colour, form in product(("blue", "green", "red"), FORMS))
DRAWING = 2  # version of the pictures, raised whenever they change
MARKER = "shapes.json"  # file that says which drawing a folder holds
_FORM = TypeAdapter(dict[str, int])
JPEG_QUALITY = 90

# Ranges of the random numbers, (lowest, highest). They keep colour and form easy to see, and vary everything that a
# classifier should ignore.

# The picture: landscape or portrait, smaller and larger than the 256 pixels that it is resized to.
SHORTER_SIDE = (120, 261)  # pixels, the second excluded
ASPECT_RATIO = (1.0, 1.5)  # longer side by shorter side; 3:2 is the shape of film
SUPERSAMPLING = 2  # pixels drawn for each pixel saved, in both directions, for smooth edges

# The form, wholly inside the centre square, and so large that each of its crops holds most of it.
DIAMETER = (0.45, 0.75)  # that of the circle around the form, as a part of the shorter side
MARGIN = 2.0  # drawn pixels between the form and the edge of the square, at least
UPRIGHT = {"circle": 0.0, "square": 45.0, "star": -90.0, "triangle": -90.0}  # degrees; direction of the first corner
TILT = 15.0  # degrees to either side of upright, so that a square never looks like a diamond
CORNERS = {"circle": 72, "square": 4, "star": 10, "triangle": 3}  # 72 corners look round at this size
STAR_WAIST = 0.45  # radius of a star's inner corners, as a part of that of the outer ones

# Its colour: saturated, so that the dull background cannot be taken for it.
HUES = {"blue": 222.0, "green": 122.0, "red": 0.0}  # degrees
HUE_JITTER = 14.0  # degrees to either side; the colours stay 70 degrees apart
SATURATION = (0.7, 1.0)
VALUE = (0.55, 1.0)  # brightness; darker colours look alike

# The background: clouds between two colours, and grain.
BACKGROUND_SATURATION = (0.0, 0.35)  # half of the form's at most
BACKGROUND_VALUE = (0.15, 1.0)  # from nearly black to white
CLOUD_CELLS = (2, 13)  # random spots in each direction, the second excluded: from two shades to a fine pattern
GRAIN = (-12, 13)  # levels of 255, the second excluded: visible, and weaker than the edge of a form

# Distractors: blobs and lines in colours of no class, too small to be taken for a form.
NUM_DISTRACTORS = (2, 6)  # the second excluded
OTHER_HUES = ((35.0, 75.0), (165.0, 190.0), (265.0, 325.0))  # degrees: yellow, cyan, violet to pink
DISTRACTOR_SATURATION = (0.2, 1.0)
DISTRACTOR_VALUE = (0.3, 1.0)
DISTRACTOR_LENGTH = (0.03, 0.08)  # half the width of a blob, as a part of the shorter side
BLOB_FLATNESS = 0.7  # height of a blob by its width, so that it is no circle
LINE_LENGTH = 4  # that of a line, in units of DISTRACTOR_LENGTH
LINE_THINNESS = 4  # DISTRACTOR_LENGTH by the width of the line

Colour = tuple[int, int, int]
Point = tuple[float, float]


def draw_shapes(root: Path, num_train: int, num_val: int) -> None:
    """Draws the set into `root` as train/<class>/00001.jpg ..., unless it is there already.

    The folder is complete or absent, because it is drawn under another name and then renamed.

    Raises: ValueError if there are fewer images than classes, or if `root` holds something else.
    """
    for key, num_images in (("data.num_train", num_train), ("data.num_val", num_val)):
        if num_images < len(CLASSES):
            raise ValueError(f"{key}={num_images} is fewer than the {len(CLASSES)} classes of shapes; give more.")
    wanted = {"drawing": DRAWING, "num_train": num_train, "num_val": num_val}
    if root.exists():
        _check_drawn(root, wanted)
        return
    try:
        with written_folder(root) as unfinished:
            for split, num_images in (("train", num_train), ("val", num_val)):
                for name in CLASSES:
                    (unfinished / split / name).mkdir(parents=True)
                with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
                    list(threads.map(partial(_write_image, unfinished / split, split == "val"), range(num_images)))
            (unfinished / MARKER).write_text(json.dumps(wanted) + "\n")
    except OSError as error:
        raise ValueError(
            f"The shapes cannot be drawn into {root} ({error.strerror or error}); choose a writable folder with "
            "data.root."
        ) from error


def read_marker(root: Path) -> dict[str, int] | None:
    """Reads which drawing a folder holds: `drawing`, `num_train`, `num_val`; None if it holds none."""
    try:
        return read_json(root / MARKER, _FORM, "delete it")
    except ValueError:
        return None


def _check_drawn(root: Path, wanted: dict[str, int]) -> None:
    marker = read_marker(root)
    if marker is None:
        raise ValueError(
            f"{root} holds something else than the shapes that data=shapes draws; give data=folder for images of "
            "your own, or another folder."
        )
    if marker != wanted:
        raise ValueError(
            f"{root} does not hold the shapes of data.num_train={wanted['num_train']} and "
            f"data.num_val={wanted['num_val']}; delete that folder or choose another one with data.root."
        )


def _write_image(folder: Path, validation: bool, index: int) -> None:
    name = CLASSES[index % len(CLASSES)]
    image = draw_image(name, np.random.default_rng([DRAWING, validation, index]))
    image.save(folder / name / f"{index // len(CLASSES) + 1:05d}.jpg", quality=JPEG_QUALITY)


def draw_image(name: str, stream: np.random.Generator) -> Image.Image:
    """Draws one RGB picture of class `name`, shorter side 120..260 pixels.

    The form lies wholly inside the centre square, because training crops the image to that square.
    """
    colour, form = name.split("_")
    shorter = int(stream.integers(*SHORTER_SIDE))
    longer = int(shorter * stream.uniform(*ASPECT_RATIO))
    width, height = (longer, shorter) if stream.random() < 0.5 else (shorter, longer)
    image = _background(width, height, stream).resize(
        (width * SUPERSAMPLING, height * SUPERSAMPLING), Image.Resampling.NEAREST
    )
    canvas = ImageDraw.Draw(image)
    for _ in range(int(stream.integers(*NUM_DISTRACTORS))):
        _draw_distractor(canvas, image.size, stream)
    side = shorter * SUPERSAMPLING
    radius = stream.uniform(*DIAMETER) * side / 2
    reach = side / 2 - radius - MARGIN
    centre = (
        image.width / 2 + stream.uniform(-reach, reach),
        image.height / 2 + stream.uniform(-reach, reach),
    )
    fill = _hsv(
        HUES[colour] + stream.uniform(-HUE_JITTER, HUE_JITTER),
        stream.uniform(*SATURATION),
        stream.uniform(*VALUE),
    )
    angle = math.radians(UPRIGHT[form] + stream.uniform(-TILT, TILT))
    canvas.polygon(_outline(form, centre, radius, angle), fill=fill)
    return image.resize((width, height), Image.Resampling.BOX)


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _background(width: int, height: int, stream: np.random.Generator) -> Image.Image:
    """Draws clouds between two pale or dull colours, and grain; no colour in it is as saturated as that of a form."""
    ends = [
        _hsv(stream.uniform(0, 360), stream.uniform(*BACKGROUND_SATURATION), stream.uniform(*BACKGROUND_VALUE))
        for _ in range(2)
    ]
    cells = int(stream.integers(*CLOUD_CELLS))
    clouds = Image.fromarray(stream.integers(0, 256, (cells, cells), dtype=np.uint8))
    amount = np.asarray(clouds.resize((width, height), Image.Resampling.BICUBIC), np.float32)[..., None] / 255
    first, second = np.asarray(ends, np.float32)
    grain = stream.integers(*GRAIN, (height, width, 1))
    return Image.fromarray((first + (second - first) * amount + grain).clip(0, 255).astype(np.uint8))


def _draw_distractor(canvas: ImageDraw.ImageDraw, size: tuple[int, int], stream: np.random.Generator) -> None:
    """Draws a small blob or a line in a colour of no class, anywhere; the form is drawn over it later."""
    low, high = OTHER_HUES[int(stream.integers(len(OTHER_HUES)))]
    fill = _hsv(stream.uniform(low, high), stream.uniform(*DISTRACTOR_SATURATION), stream.uniform(*DISTRACTOR_VALUE))
    x, y = stream.uniform(0, size[0]), stream.uniform(0, size[1])
    length = min(size) * stream.uniform(*DISTRACTOR_LENGTH)
    if stream.random() < 0.5:
        canvas.ellipse((x - length, y - length * BLOB_FLATNESS, x + length, y + length * BLOB_FLATNESS), fill=fill)
    else:
        angle = stream.uniform(0, 2 * math.pi)
        end = (x + LINE_LENGTH * length * math.cos(angle), y + LINE_LENGTH * length * math.sin(angle))
        canvas.line(((x, y), end), fill=fill, width=max(2, round(length / LINE_THINNESS)))


def _outline(form: str, centre: Point, radius: float, angle: float) -> list[Point]:
    """The corners of a form, on the circle of `radius` around `centre`; every second one of a star lies inside.

    Args:
        angle: direction of the first corner, in radians.
    """
    waist = STAR_WAIST if form == "star" else 1.0
    points = []
    for corner in range(CORNERS[form]):
        length = radius * (waist if corner % 2 else 1.0)
        turn = angle + 2 * math.pi * corner / CORNERS[form]
        points.append((centre[0] + length * math.cos(turn), centre[1] + length * math.sin(turn)))
    return points
