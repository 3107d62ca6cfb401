"""Where crops lie in the prepared square: their largest offset, and the views of an evaluation."""

from twotower.config import InputConfig

View = tuple[int, int, int]  # y and x of a crop in the prepared square, and 1 where it is mirrored


def crop_span(config: InputConfig, size: int) -> int:
    """The largest offset of a crop in a square of `size` pixels. Raises: ValueError if the crop is larger than it."""
    span = size - config.crop_size
    if span < 0:
        raise ValueError(
            f"network.image_size={config.crop_size} is more than the {size} pixels that the images of this data set "
            "have; choose a smaller one, or prepare the set with a larger size."
        )
    return span


def check_crops(config: InputConfig, size: int) -> None:
    """Raises: ValueError if the crops and their offsets do not fit into a square of `size` pixels."""
    span = crop_span(config, size)
    if config.random_crop and config.offsets is not None and config.offsets > span + 1:
        raise ValueError(
            f"input.offsets={config.offsets} is more than the {span + 1} positions of a crop of {config.crop_size} "
            f"pixels in a square of {size}; give at most {span + 1}."
        )


def ten_views(span: int) -> list[View]:
    """Four corners and the centre, then their mirrors, in the order of the 2012 code (convdata_jpeg.py:224-236).

    Args:
        span: the largest offset, in pixels.
    """
    corners = ((0, 0), (0, span), (span // 2, span // 2), (span, 0), (span, span))
    return [(y, x, mirror) for mirror in (0, 1) for y, x in corners]
