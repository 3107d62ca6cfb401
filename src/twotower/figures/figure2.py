"""Figure 2, drawn from a network's numbers: the layers of each tower, and where halves cross."""

from pathlib import Path
from typing import Any

from twotower.figures.drawing import open_pyplot, save
from twotower.figures.palette import DIAGRAMS, Diagram
from twotower.model.layer_numbers import LayerNumbers, totals

COLUMNS = (0.0, 5.6)  # left edges of the towers; these four lengths are in units of the drawing
BOX_WIDTH = 4.4
BOX_HEIGHT = 0.62
ROW = 1.15
SUFFIXES = (".svg", ".png", ".pdf")


def _text(layer: LayerNumbers, tower: int) -> str:
    if layer.kind == "linear":
        share = f" of {sum(layer.maps_out):,}" if len(layer.maps_out) > 1 else ""
        return f"{layer.name}: {layer.maps_out[tower]:,}{share} units"
    size = f"{layer.size_conv} x {layer.size_conv}"
    pooled = f", pooled to {layer.size_out} x {layer.size_out}" if layer.size_out != layer.size_conv else ""
    stride = f" stride {layer.stride}" if layer.stride > 1 else ""
    stride += f", {layer.groups} groups" if layer.groups > 1 else ""
    stride += ", not shared" if layer.kind == "local" else ""
    return (
        f"{layer.name}: {layer.maps_out[tower]} maps {size}{pooled}\n{layer.kernel} x {layer.kernel} kernels{stride}"
    )


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    axes.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
    )


def check_suffix(path: Path) -> None:
    """Raises: ValueError for a file that is no SVG, PNG or PDF by its name."""
    if path.suffix not in SUFFIXES:
        raise ValueError(f"output={path} must end in one of {', '.join(SUFFIXES)}.")


def draw_figure2(
    layers: list[LayerNumbers], title: str, image_size: int, batch_size: int, path: Path, theme: str = "light"
) -> None:
    """Writes an SVG, PNG or PDF, as the ending of `path` says, for pages of a theme.

    Raises: ValueError for another ending.
    """
    check_suffix(path)
    colours = DIAGRAMS[theme]
    pyplot = open_pyplot(title)
    columns = COLUMNS[: len(layers[0].maps_out)]
    height = (len(layers) + 2) * ROW
    with pyplot.rc_context({"text.color": colours.ink}):
        figure, axes = pyplot.subplots(figsize=(columns[-1] + (6.9 if len(columns) > 1 else 7.8), 0.92 * height))
        _draw_heads(axes, columns, image_size)
        for number, layer in enumerate(layers):
            _draw_layer(axes, layer, number, columns, colours)
        axes.set_title(_describe(layers, title, batch_size), size=11, color=colours.ink)
        axes.set_xlim(-0.2, columns[-1] + BOX_WIDTH + 3.2)
        axes.set_ylim(-len(layers) * ROW - 0.3, 0.75)
        axes.axis("off")
        save(figure, path, bbox_inches="tight", transparent=True)


def _middle(columns: tuple[float, ...]) -> float:
    return (columns[-1] + BOX_WIDTH) / 2


def _draw_heads(axes: Any, columns: tuple[float, ...], image_size: int) -> None:
    centred: dict[str, Any] = {"ha": "center", "va": "center"}
    axes.text(_middle(columns), 0.15, f"image: 3 x {image_size} x {image_size}", size=11, **centred)
    for tower, left in enumerate(columns if len(columns) > 1 else ()):
        axes.text(left + BOX_WIDTH / 2, 0.42, f"tower {tower}", size=12, weight="bold", **centred)


def _draw_layer(axes: Any, layer: LayerNumbers, number: int, columns: tuple[float, ...], colours: Diagram) -> None:
    """A box for each tower with the arrows that lead to it, the bytes that cross, and the layer's numbers."""
    from matplotlib.patches import FancyBboxPatch

    centred: dict[str, Any] = {"ha": "center", "va": "center"}
    bottom = -(number + 1) * ROW
    top, above = bottom + BOX_HEIGHT, bottom + ROW
    corners = "round,pad=0,rounding_size=0.08"
    for tower, left in enumerate(columns):
        middle = left + BOX_WIDTH / 2
        fill = colours.towers[tower]
        box = FancyBboxPatch((left, bottom), BOX_WIDTH, BOX_HEIGHT, corners, fc=fill, ec=colours.within)
        axes.add_patch(box)
        axes.text(middle, bottom + BOX_HEIGHT / 2, _text(layer, tower), size=9.5, **centred)
        start = (_middle(columns), 0.0) if number == 0 else (middle, above)
        _arrow(axes, start, (middle, top), colours.within)
        if layer.exchanged_bytes:
            other = columns[1 - tower] + BOX_WIDTH / 2
            _arrow(axes, (other, above), (middle + (0.5 - tower) * 0.7, top), colours.crossing)
    if layer.exchanged_bytes:
        crossing = f"{layer.exchanged_bytes / 1e6:.1f} MB\neach way"
        axes.text(_middle(columns), bottom + BOX_HEIGHT / 2, crossing, size=8.5, color=colours.crossing, **centred)
    axes.text(
        columns[-1] + BOX_WIDTH + 0.25,
        bottom + BOX_HEIGHT / 2,
        f"{sum(layer.parameters):>12,} parameters\n{sum(layer.multiply_adds) / 1e6:>12,.1f} M multiply-adds",
        ha="left",
        va="center",
        size=8.5,
        family="monospace",
    )


def _describe(layers: list[LayerNumbers], title: str, batch_size: int) -> str:
    network = totals(layers)
    exchanged = network["exchanged_bytes"]
    crossing = f", {exchanged / 1e6:.1f} MB exchanged each way forward (batch {batch_size})" if exchanged else ""
    millions = f"{network['multiply_adds'] / 1e6:,.0f} M multiply-adds an image"
    return f"{title}: {network['parameters']:,} parameters, {millions}{crossing}"
