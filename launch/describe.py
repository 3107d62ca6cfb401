"""A network in numbers, layer by layer, and drawn as in Figure 2.

python launch/describe.py network=alexnet [num_classes=1000] [batch_size=128] [output=figure2.svg] [theme=dark]
"""

from pathlib import Path

from rich.table import Table

from twotower.command_line.command import command
from twotower.config import DescribeConfig
from twotower.figures.figure2 import draw_figure2
from twotower.ground.screen import print_table
from twotower.ground.wording import counted
from twotower.model.layer_numbers import READS, LayerNumbers, describe, totals


def _row(layer: LayerNumbers) -> list[str]:
    convolution = layer.kind != "linear"
    pixels = f" x {layer.size_in} x {layer.size_in}" if convolution else ""
    sizes = [layer.size_conv] + ([layer.size_out] if layer.size_out != layer.size_conv else [])
    put_out = "+".join(str(maps) for maps in layer.maps_out)
    return [
        layer.name,
        f"{layer.maps_in}{pixels}",
        READS[layer.reads] + (f", {layer.groups} groups" if layer.groups > 1 else ""),
        (f"{layer.kernel} / {layer.stride}" if convolution else "")
        + (", not shared" if layer.kind == "local" else ""),
        put_out + (" x " + " -> ".join(str(size) for size in sizes) if convolution else ""),
        f"{layer.units:,}",
        f"{layer.parameters[0]:,}",
        f"{sum(layer.parameters):,}",
        f"{layer.multiply_adds[0] / 1e6:,.1f}",
        f"{sum(layer.multiply_adds) / 1e6:,.1f}",
        f"{layer.activation_bytes / 1e6:,.1f}",
        f"{layer.exchanged_bytes / 1e6:,.2f}" if layer.exchanged_bytes else "",
    ]


@command("describe")
def main(settings: DescribeConfig) -> None:
    layers = describe(settings.network, settings.num_classes, settings.batch_size)
    table = Table()
    for head in ("layer", "input", "reads", "kernel / stride", "output"):
        table.add_column(head)
    heads = ("units", "parameters\na tower", "in all", "M mult.-adds\na tower", "in all", "MB kept\na tower")
    for head in (*heads, "MB sent\nforward"):
        table.add_column(head, justify="right")
    for layer in layers:
        table.add_row(*_row(layer))
    total = totals(layers)
    table.add_section()
    table.add_row(
        *("total", "", "", "", ""),
        f"{total['units']:,}",
        f"{total['parameters_of_tower'][0]:,}",
        f"{total['parameters']:,}",
        "",
        f"{total['multiply_adds'] / 1e6:,.1f}",
        f"{total['activation_bytes'] / 1e6:,.1f}",
        f"{total['exchanged_bytes'] / 1e6:,.2f}",
    )
    classes = counted(settings.num_classes, "class", "classes")
    print_table(table, f"{settings.network.name}, {classes}, batches of {counted(settings.batch_size, 'image')}")
    if settings.output is not None:
        size, path = settings.network.image_size, Path(settings.output)
        draw_figure2(layers, settings.network.name, size, settings.batch_size, path, settings.theme)
        print(f"drawn: {path}")


if __name__ == "__main__":
    main()
