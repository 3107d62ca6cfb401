"""The DALI graph from encoded bytes to what conv1 sees; one function for CPU and GPU, training and validation.

    bytes -> decode -> shorter side 256 -> centre 256 -> crop 224 -> mirror -> - mean -> + noise -> * scale

Pixels are RGB in 0..255 until the mean is subtracted. DALI draws nothing at random: crops, flips and noise come with
the batch, from `order.draws`. Resizing is linear with antialiasing; where the size is odd, the centre square
lies half a pixel to the right and below.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def, types

from twotower.data.dataset import CENTRE_OFFSET, CROP_SIZE, PREPARED_SIZE

SPAN = PREPARED_SIZE - CROP_SIZE  # the largest offset of a crop
# Four corners and the centre, (y, x), in the order of the 2012 code (convdata_jpeg.py:224-236); mirrors follow.
TEN_CROP_OFFSETS = ((0, 0), (0, SPAN), (CENTRE_OFFSET, CENTRE_OFFSET), (SPAN, 0), (SPAN, SPAN))


def prepared(encoded: Any, device: str, resize: bool = True) -> Any:
    """Decodes, resizes the shorter side to 256 and takes the centre square: uint8 [256, 256, 3].

    Without `resize` the shorter side must be 256 already; resizing that to itself takes longer than all other steps.
    """
    # EXIF turns are ignored, as they were in 2012. Fancy upsampling is what the CPU decoder does anyway.
    image = fn.decoders.image(
        encoded,
        device="mixed" if device == "gpu" else "cpu",
        output_type=types.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
    )
    if resize:
        image = fn.resize(image, resize_shorter=PREPARED_SIZE, interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.crop(image, crop=(PREPARED_SIZE, PREPARED_SIZE))


def _crop(image: Any, y: Any, x: Any, mirror: Any, dtype: Any) -> Any:
    # Positions are parts of the span; y / 32 is exact in float32, so each offset comes out whole.
    return fn.crop_mirror_normalize(
        image,
        crop=(CROP_SIZE, CROP_SIZE),
        crop_pos_y=y,
        crop_pos_x=x,
        mirror=mirror,
        dtype=dtype,
        output_layout="HWC",
    )


def _constant(array: NDArray[np.float32], device: str) -> Any:
    return types.Constant(np.ascontiguousarray(array), device=device, layout="HWC")


@pipeline_def
def prepared_images(device: str) -> Any:
    """uint8 [B, 256, 256, 3] of the bytes fed to `encoded`, and their own heights and widths before, int64 [B, 3]."""
    encoded = fn.external_source(name="encoded", ndim=1, dtype=types.UINT8)
    return prepared(encoded, device), fn.peek_image_shape(encoded)


@pipeline_def
def training_images(
    source: Callable[[Any], Any], mean_image: NDArray[np.float32], mean: str, scale: float, resize: bool, device: str
) -> Any:
    """float32 [B, 224, 224, 3]; `source` gives bytes, y / 32, x / 32, flips and noise of a batch."""
    encoded, y, x, flips, noise = fn.external_source(
        source=source,
        num_outputs=5,
        batch=True,
        batch_info=True,
        ndim=[1, 0, 0, 0, 1],
        dtype=[types.UINT8, types.FLOAT, types.FLOAT, types.INT32, types.FLOAT],
    )
    crop = _crop(prepared(encoded, device, resize), y, x, flips, types.UINT8)
    if mean == "aligned":
        mean_crop = _crop(_constant(mean_image, device), y, x, flips, types.FLOAT)
    else:
        # Not mirrored where the image is, as in convdata_jpeg.py:205-211.
        mean_crop = _constant(centre(mean_image), device)
    if device == "gpu":
        noise = noise.gpu()
    return (crop - mean_crop + noise) * np.float32(scale)


@pipeline_def
def validation_images(
    source: Callable[[Any], Any],
    mean_image: NDArray[np.float32],
    mean: str,
    ten_crops: bool,
    resize: bool,
    device: str,
) -> Any:
    """float32 [B, 224, 224, 3], or [B, 10, 224, 224, 3]; `source` gives the bytes of a batch."""
    encoded = fn.external_source(source=source, batch=True, batch_info=True, ndim=1, dtype=types.UINT8)
    image = prepared(encoded, device, resize)
    central = _constant(centre(mean_image), device)
    if not ten_crops:
        middle = CENTRE_OFFSET / SPAN
        return _crop(image, middle, middle, 0, types.UINT8) - central
    whole_mean = _constant(mean_image, device)
    views = []
    for mirror in (0, 1):
        for y, x in TEN_CROP_OFFSETS:
            view = _crop(image, y / SPAN, x / SPAN, mirror, types.UINT8)
            aligned = mean == "aligned"
            views.append(view - (_crop(whole_mean, y / SPAN, x / SPAN, mirror, types.FLOAT) if aligned else central))
    return fn.stack(*views)


def centre(mean_image: NDArray[np.float32]) -> NDArray[np.float32]:
    """The central [224, 224, 3]."""
    inside = slice(CENTRE_OFFSET, CENTRE_OFFSET + CROP_SIZE)
    return mean_image[inside, inside]
