"""The columns of Figure 2, drawn from a network's numbers: what each tower computes, and where halves cross."""

from pathlib import Path
from typing import Any

from twotower.figures.drawing import open_pyplot, save
from twotower.model.numbers import LayerNumbers, totals

COLUMNS, BOX_WIDTH, BOX_HEIGHT, ROW = (0.0, 5.6), 4.4, 0.62, 1.15  # in units of the drawing
OWN, CROSSING, BOX, INK = "#4a4a4a", "#d55e00", ("#dbe9f6", "#fdebd0"), "#1a1a1a"  # safe for the colour-blind


def _text(layer: LayerNumbers, tower: int) -> str:
    if layer.kind == "linear":
        share = f" of {sum(layer.maps_out):,}" if len(layer.maps_out) > 1 else ""
        return f"{layer.name}: {layer.maps_out[tower]:,}{share} units"
    size = f"{layer.size_conv} x {layer.size_conv}"
    pooled = f", pooled to {layer.size_out} x {layer.size_out}" if layer.size_out != layer.size_conv else ""
    stride = f" stride {layer.stride}" if layer.stride > 1 else ""
    stride += f", {layer.groups} groups" if layer.groups > 1 else ""
    return (
        f"{layer.name}: {layer.maps_out[tower]} maps {size}{pooled}\n{layer.kernel} x {layer.kernel} kernels{stride}"
    )


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    axes.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
    )


def draw_figure2(layers: list[LayerNumbers], title: str, image_size: int, batch_size: int, path: Path) -> None:
    """Writes an SVG, PNG or PDF, as the ending of `path` says."""
    from matplotlib.patches import FancyBboxPatch

    pyplot = open_pyplot(title)
    columns = COLUMNS[: len(layers[0].maps_out)]
    height = (len(layers) + 2) * ROW
    figure, axes = pyplot.subplots(figsize=(columns[-1] + (6.9 if len(columns) > 1 else 7.8), 0.92 * height))
    tops = [-(number + 1) * ROW for number in range(len(layers))]
    centre = (columns[-1] + BOX_WIDTH) / 2
    middle_of: dict[str, Any] = {"ha": "center", "va": "center"}
    axes.text(centre, 0.15, f"image: 3 x {image_size} x {image_size}", size=11, **middle_of)
    for number, (layer, top) in enumerate(zip(layers, tops, strict=True)):
        for tower, left in enumerate(columns):
            middle = left + BOX_WIDTH / 2
            corners = "round,pad=0,rounding_size=0.08"
            axes.add_patch(FancyBboxPatch((left, top), BOX_WIDTH, BOX_HEIGHT, corners, fc=BOX[tower], ec=OWN))
            axes.text(middle, top + BOX_HEIGHT / 2, _text(layer, tower), size=9.5, **middle_of)
            above = top + ROW
            if number == 0:
                _arrow(axes, (centre, 0.0), (middle, top + BOX_HEIGHT), OWN)
                continue
            _arrow(axes, (middle, above), (middle, top + BOX_HEIGHT), OWN)
            if layer.exchanged_bytes:
                other = columns[1 - tower] + BOX_WIDTH / 2
                _arrow(axes, (other, above), (middle + (0.5 - tower) * 0.7, top + BOX_HEIGHT), CROSSING)
        if layer.exchanged_bytes:
            crossing = f"{layer.exchanged_bytes / 1e6:.1f} MB\neach way"
            axes.text(centre, top + BOX_HEIGHT / 2, crossing, size=8.5, color=CROSSING, **middle_of)
        axes.text(
            columns[-1] + BOX_WIDTH + 0.25,
            top + BOX_HEIGHT / 2,
            f"{sum(layer.parameters):>12,} parameters\n{sum(layer.multiply_adds) / 1e6:>12,.1f} M multiply-adds",
            ha="left",
            va="center",
            size=8.5,
            family="monospace",
        )
    whole = totals(layers)
    exchanged = whole["exchanged_bytes"]
    for tower, left in enumerate(columns if len(columns) > 1 else ()):
        axes.text(left + BOX_WIDTH / 2, 0.42, f"tower {tower}", size=12, weight="bold", **middle_of)
    axes.set_title(
        f"{title}: {whole['parameters']:,} parameters, {whole['multiply_adds'] / 1e6:,.0f} M multiply-adds an image"
        + (f", {exchanged / 1e6:.1f} MB exchanged each way forward (batch {batch_size})" if exchanged else ""),
        size=11,
    )
    axes.set_xlim(-0.2, columns[-1] + BOX_WIDTH + 3.2)
    axes.set_ylim(tops[-1] - 0.3, 0.75)
    axes.axis("off")
    save(figure, path, bbox_inches="tight")
