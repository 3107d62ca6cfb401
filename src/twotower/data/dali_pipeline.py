"""The DALI graph from encoded bytes to uint8 crops: one definition for CPU and GPU, for training and validation,
for prepared sets and raw folders.

    bytes -> decode the part that is needed -> centre square to size x size -> crop -> mirror  (then: normalise.py)

Pixels are RGB in 0..255. DALI draws nothing at random: offsets and flips come with the batch, from `augment`.
The centre square has the shorter side of the image; where the difference is odd, it lies half a pixel to the left or
above. It is resized with a triangle filter (linear, antialiased). A prepared image is that square already.
"""

from collections.abc import Callable
from typing import Any

import nvidia.dali.math as dali_math
from nvidia.dali import fn, pipeline_def, types

DECODING = {
    "output_type": types.RGB,
    "adjust_orientation": False,  # EXIF turns are ignored, as they were in 2012
    "jpeg_fancy_upsampling": True,  # on a GPU, what the CPU decoder does anyway
}


def _decoding_device(device: str) -> str:
    """DALI's name of the device for a decoder, which reads from the CPU's memory."""
    return "mixed" if device == "gpu" else "cpu"


def _resize(image: Any, start: Any, end: Any, pixels: int) -> Any:
    return fn.resize(
        image,
        size=[pixels, pixels],
        roi_start=start,
        roi_end=end,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )


def _square(encoded: Any) -> tuple[Any, Any]:
    """The upper left corner and the side of the centre square, in pixels of the original."""
    height_width = fn.cast(fn.peek_image_shape(encoded, adjust_orientation=False)[:2], dtype=types.FLOAT)
    side = fn.reductions.min(height_width)
    return dali_math.floor((height_width - side) / 2), side


def _decode_part(encoded: Any, device: str, start: Any, end: Any) -> Any:
    # Gives the same values as decoding the whole image, without transforming the pixels outside.
    return fn.decoders.image_slice(
        encoded, device=_decoding_device(device), start=start, end=end, axes=[0, 1], **DECODING
    )


def crop(encoded: Any, offset: Any, pixels: int, size: int, resize: bool, device: str) -> Any:
    """The crop at `offset` (y and x) of the image brought to size x size: uint8 [pixels, pixels, 3].

    Without `resize` the image must have that size already.
    """
    if not resize:
        return _decode_part(encoded, device, offset, offset + pixels)
    corner, side = _square(encoded)
    scale = side / size
    start = fn.cast(offset, dtype=types.FLOAT) * scale
    end = start + pixels * scale
    # The filter reads so many more pixels, but none outside the square, as if the square had been cut out before.
    reach = dali_math.max(scale, 1.0) + 1.0
    low = dali_math.floor(dali_math.max(start - reach, 0.0))
    high = dali_math.ceil(dali_math.min(end + reach, side))
    part = _decode_part(
        encoded, device, fn.cast(corner + low, dtype=types.INT32), fn.cast(corner + high, dtype=types.INT32)
    )
    return _resize(part, start - low, end - low, pixels)


def centre_square(encoded: Any, device: str, size: int, resize: bool = True) -> Any:
    """Decodes all of the image, and brings its centre square to size x size: uint8 [size, size, 3]."""
    image = fn.decoders.image(encoded, device=_decoding_device(device), **DECODING)
    if not resize:
        return image
    corner, side = _square(encoded)
    start = fn.cast(corner, dtype=types.INT32)
    square = fn.slice(image, start=start, end=start + fn.cast(side, dtype=types.INT32), axes=[0, 1])
    return fn.resize(square, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True)


@pipeline_def
def prepared_images(size: int, device: str) -> Any:
    """uint8 [B, size, size, 3] of the bytes fed to `encoded`, and the shapes of the originals, int64 [B, 3]."""
    encoded = fn.external_source(name="encoded", ndim=1, dtype=types.UINT8)
    return centre_square(encoded, device, size), fn.peek_image_shape(encoded, adjust_orientation=False)


@pipeline_def
def part_of_image(device: str) -> Any:
    """uint8 [1, H, W, 3]: the centre square of the bytes fed to `encoded`, decoded as crops are, in part."""
    encoded = fn.external_source(name="encoded", ndim=1, dtype=types.UINT8)
    corner, side = _square(encoded)
    return _decode_part(
        encoded, device, fn.cast(corner, dtype=types.INT32), fn.cast(corner + side, dtype=types.INT32)
    )


@pipeline_def
def training_crops(
    source: Callable[[Any], Any], crop_size: int, size: int, resize: bool, mirrors: bool, device: str
) -> Any:
    """uint8 [B, crop_size, crop_size, 3]; `source` gives bytes, offsets [2] and, with `mirrors`, flips, as int32."""
    inputs = fn.external_source(
        source=source,
        num_outputs=3 if mirrors else 2,
        batch=True,
        batch_info=True,
        ndim=[1, 1, 0][: 3 if mirrors else 2],
        dtype=[types.UINT8, types.INT32, types.INT32][: 3 if mirrors else 2],
    )
    image = crop(inputs[0], inputs[1], crop_size, size, resize, device)
    return fn.flip(image, horizontal=inputs[2]) if mirrors else image


@pipeline_def
def validation_crops(
    source: Callable[[Any], Any],
    views: list[tuple[int, int, int]],
    crop_size: int,
    size: int,
    resize: bool,
    device: str,
) -> Any:
    """uint8 [B, views, crop_size, crop_size, 3], without `views` if there is one; `source` gives bytes.

    A view is y, x and 1 where it is mirrored.
    """
    encoded = fn.external_source(source=source, batch=True, batch_info=True, ndim=1, dtype=types.UINT8)
    if len(views) == 1:
        ((y, x, _),) = views
        return crop(encoded, types.Constant([y, x], dtype=types.INT32), crop_size, size, resize, device)
    image = centre_square(encoded, device, size, resize)
    crops = [fn.slice(image, start=[y, x], shape=[crop_size, crop_size], axes=[0, 1]) for y, x, _ in views]
    flipped = [fn.flip(part, horizontal=1) if view[2] else part for part, view in zip(crops, views, strict=True)]
    return fn.stack(*flipped)
