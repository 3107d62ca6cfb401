"""Photographs as people have them: files and folders, turned upright, brought to the prepared square; pictures."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from twotower.data.decode import FORMATS, UnusableError, cut_square, decode_image
from twotower.data.folder import SUFFIXES

ORIENTATION = 0x0112  # the EXIF tag
LARGEST_PICTURE, MOST_PIXELS = 1 << 26, 1 << 26  # bytes and pixels of a picture that was drawn here


def list_photographs(given: Sequence[str]) -> list[Path]:
    """The files; for a folder, all files in it that are named as JPEG or PNG, by name.

    Raises: ValueError if there are none, or one does not exist.
    """
    photographs: list[Path] = []
    for name in given:
        path = Path(name)
        if not path.exists():
            raise ValueError(f"{name} does not exist; give photographs, or folders of them.")
        files = path.iterdir() if path.is_dir() else ()
        inside = sorted(file for file in files if file.is_file() and file.name.lower().endswith(SUFFIXES))
        if path.is_dir() and not inside:
            raise ValueError(f"{name} has no photographs; they must be named {', '.join(SUFFIXES)}.")
        photographs += inside or [path]
    if not photographs:
        raise ValueError("no photograph is given: python launch/predict.py RUN cat.jpg")
    return photographs


def turn_upright(image: NDArray[np.uint8], content: bytes) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] as a person sees it; [W, H, 3] if the camera was held upright.

    Data sets are prepared as in 2012, without regard to EXIF; a telephone's photograph would lie on its side.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            orientation = opened.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged metadata of an image that could be decoded are no reason to refuse it
        return image
    turned = Image.fromarray(image)
    turned.getexif()[ORIENTATION] = orientation
    return np.array(ImageOps.exif_transpose(turned))


def read_photograph(path: Path, size: int) -> NDArray[np.uint8]:
    """The prepared square, uint8 [size, size, 3], RGB. Raises: ValueError naming the file if it is no image."""
    try:
        content = path.read_bytes()
        return cut_square(np.ascontiguousarray(turn_upright(decode_image(content), content)), size)
    except UnusableError as error:
        raise ValueError(f"{path} cannot be used: {error}.") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error


def is_picture(path: Path) -> bool:
    """Whether a file that a stranger may have put there is a whole PNG of a size that a page can show."""
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_PICTURE:
            return False
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > MOST_PIXELS:
                return False
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    return True
