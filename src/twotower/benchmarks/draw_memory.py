"""The picture of the memory: a bar for both towers in one process, and one for a tower alone."""

from pathlib import Path

from twotower.benchmarks.memory_parts import COPIES, GTX_580_BYTES, MemoryPart
from twotower.figures.drawing import open_pyplot, remove_frame, save
from twotower.figures.palette import LINES, REFERENCE

_COLOURS = dict(zip((*COPIES, "images"), (LINES[2], LINES[4], LINES[3], "#999999"), strict=True))
GIB = 2**30
SHADES = (0.95, 0.6)  # opacity of the first layer, and how much less the last one has
LEAST_SHARE = 0.035  # of the longest bar: a part that is as long has its name in it


def draw_memory(parts: list[MemoryPart], title: str, path: Path) -> None:
    """Draws the parts in GiB to a PNG, SVG or PDF. Raises: OSError if it cannot be written."""
    pyplot = open_pyplot("memory")
    bars = [
        ("one process,\ntorch's own layers", [part.of_plain / GIB for part in parts]),
        ("one process,\nboth towers", [part.of_both / GIB for part in parts]),
        ("one of two\nprocesses", [part.of_tower / GIB for part in parts]),
    ]
    layers = [part.name for part in parts if part.name not in _COLOURS]
    longest = max(GTX_580_BYTES / GIB, *(sum(sizes) for _, sizes in bars))
    figure, axes = pyplot.subplots(figsize=(9, 3.6), layout="constrained")
    for place, (_, sizes) in enumerate(bars):
        begin = 0.0
        for part, size in zip(parts, sizes, strict=True):
            alpha = 1.0
            if part.name in layers:
                alpha = SHADES[0] - SHADES[1] * layers.index(part.name) / max(1, len(layers) - 1)
            colour = _COLOURS.get(part.name, LINES[0])
            axes.barh(
                place, size, left=begin, height=0.7, edgecolor="white", linewidth=0.8, color=colour, alpha=alpha
            )
            if size > LEAST_SHARE * longest:
                axes.text(begin + size / 2, place, part.name, ha="center", va="center", fontsize=8, rotation=90)
            begin += size
        axes.text(begin + 0.006 * longest, place, f"{begin:.2f} GiB", va="center", fontsize=9)
    axes.axvline(GTX_580_BYTES / GIB, color=REFERENCE, linestyle="--", linewidth=1)
    axes.text(
        GTX_580_BYTES / GIB,
        -0.45,
        f"GTX 580: {GTX_580_BYTES / GIB:.0f} GiB ",
        ha="right",
        va="bottom",
        fontsize=9,
        color=REFERENCE,
    )
    axes.set_yticks(range(len(bars)), [name for name, _ in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * longest)
    axes.set_xlabel("GiB; grey: images; blue: what each layer keeps for the backward pass")
    axes.set_title(title, fontsize=11)
    remove_frame(axes, "left")
    axes.tick_params(left=False)
    save(figure, path)
