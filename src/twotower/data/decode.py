"""Decodes one image, JPEG or other, and makes the prepared square of it: size x size pixels, RGB.

Ordinary JPEGs go through libjpeg-turbo (simplejpeg) and torch's vectorised resize, which is the filter that the DALI
pipeline uses for raw folders. Pillow decodes everything else, and whatever the strict decoder refuses, and says what
is no image. The paper (section 2) says only: shorter side 256, then the central 256 x 256.
"""

import io
import warnings

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

MAX_PIXELS = 2**27  # 400 MB when decoded; ILSVRC's largest image has half as many
TOO_LARGE = f"it has more than {MAX_PIXELS:,} pixels"
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # Pillow's names; an MPO opens as a JPEG
SUBSAMPLING = "420"  # chroma subsampling of the JPEGs written, the default of all encoders


class UnusableError(ValueError):
    """Bytes that are no usable image; the message is the reason."""


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnusableError(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")
    if width * height == 0:
        raise UnusableError("it has no pixels")


def check_pixels(content: bytes) -> None:
    """Looks at the header alone, where there is one that can be read. Raises: UnusableError for too many pixels."""
    try:
        if content[:2] == b"\xff\xd8":
            height, width, *_ = simplejpeg.decode_jpeg_header(content)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(content)) as image:
                    width, height = image.size
    except Image.DecompressionBombError as error:
        raise UnusableError(TOO_LARGE) from error
    except Exception:  # any kind, because Pillow's plugins raise whatever hostile bytes make them raise
        return
    if width * height > MAX_PIXELS:
        _check_size(width, height)


def _decode_jpeg(content: bytes) -> NDArray[np.uint8] | None:
    """uint8 [height, width, 3]; None where the header or the strict decoder finds anything unusual."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if colours not in ("YCbCr", "Gray", "RGB"):
            return None
        _check_size(width, height)
        image: NDArray[np.uint8] = simplejpeg.decode_jpeg(content, "RGB")
        return image
    except UnusableError:
        raise
    except ValueError:
        return None


def _decode_any(content: bytes) -> NDArray[np.uint8]:
    """uint8 [height, width, 3], decoded by Pillow. Raises: UnusableError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about large images and odd metadata; MAX_PIXELS is the limit here
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _check_size(*image.size)
                if image.mode.startswith("I"):  # 16 bits a channel, which Pillow would cut off instead of scaling
                    array = np.asarray(image)
                    shift = 8 if array.max(initial=0) > 255 else 0
                    return np.repeat((array >> shift).clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
                if image.mode == "P" and "transparency" in image.info:
                    image = image.convert("RGBA")  # type: ignore[assignment]
                return np.array(image.convert("RGB"))
    except UnusableError:
        raise
    except Image.DecompressionBombError as error:
        raise UnusableError(TOO_LARGE) from error
    except MemoryError as error:
        raise UnusableError("too large for the memory of this machine") from error
    except Exception as error:  # any kind, because Pillow's plugins raise whatever hostile bytes make them raise
        words = str(error).partition("<")[0].strip() or type(error).__name__
        raise UnusableError(f"no image that can be decoded: {words}"[:200]) from error


def decode_image(content: bytes) -> NDArray[np.uint8]:
    """Decodes all of an image: uint8 [height, width, 3], RGB. EXIF turns are ignored, as they were in 2012.

    Raises: UnusableError for bytes that are empty, cut short, too large, or no image.
    """
    if not content:
        raise UnusableError("the file is empty")
    image = _decode_jpeg(content) if content[:2] == b"\xff\xd8" else None
    return _decode_any(content) if image is None else image


def cut_square(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Cuts out the centre square and resizes it with an antialiased triangle filter: uint8 [size, size, 3].

    Where an odd number of pixels is cut off, the square lies half a pixel to the left or above.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    part = image[top : top + side, left : left + side]
    if side == size:
        return np.ascontiguousarray(part)
    planes = torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1)[None]
    resized = F.interpolate(planes, (size, size), mode="bilinear", antialias=True)[0]
    result: NDArray[np.uint8] = resized.permute(1, 2, 0).contiguous().numpy()
    return result


def encode_jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    """Encodes uint8 [height, width, 3] as a JPEG."""
    content: bytes = simplejpeg.encode_jpeg(image, quality, "RGB", SUBSAMPLING)
    return content
