"""Writes the tables of the documentation that follow from conf/ (networks, ablations, schedules, inputs), speeds,
volumes, the lines of the configuration of 2012, the paper's claims in results/README.md and on the front page, and
the numbers of results/towers_in_colour and results/cifar_2011.

    python docs/tables.py

Each row is the first sentence of a yaml's header; the speeds are those of docs/benchmark.json. A test fails
while a page differs from what this would write.
"""

import json
import re
import runpy
from pathlib import Path
from typing import Any

from twotower.config import VolumeConfig
from twotower.config.presets import CONF, preset
from twotower.model.layer_table import count_parameters, plan
from twotower.model.volume import HEADS as VOLUME_HEADS
from twotower.model.volume import estimate_rows, measure_volume

DOCS = Path(__file__).resolve().parent
BENCHMARK = DOCS / "benchmark.json"  # as launch/benchmark.py part=towers wrote it
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
CIFAR = ("alexnet_cifar", "cifar_80sec", "cifar_18pct", "cifar_13pct", "cifar_11pct", "cifar_four_layer")
NUM_CLASSES = dict.fromkeys(CIFAR, 10) | {"six_conv_bottleneck": 21_843}
HEADS = {
    "network": "| `network=` | what it is | towers | parameters |\n|---|---|---|---|",
    "ablation": "| `ablation=` | what it changes |\n|---|---|",
    "schedule": "| `schedule=` | rates |\n|---|---|",
    "input": "| `input=` | what it does |\n|---|---|",
}


def read_first_sentence(path: Path) -> str:
    """The first sentence of a yaml's header. Raises: ValueError if it has none."""
    lines = []
    for line in path.read_text().splitlines():
        text = line.removeprefix("#").strip()
        if not line.startswith("#") or not text:
            break
        if not text.startswith("@package"):
            lines.append(text)
    if not lines:
        raise ValueError(f"{path} has no header that says what it is.")
    return re.split(r"(?<=[\w)\"'\]%])[.](?= [A-Z]|$)|;(?= )", " ".join(lines))[0].removesuffix(".")


def write_table(group: str) -> str:
    """A markdown table of all yamls of a group of conf/."""
    rows = [HEADS[group]]
    for path in sorted((CONF / group).glob("*.yaml")):
        row = f"| `{path.stem}` | {read_first_sentence(path)} |"
        if group == "network":
            network = preset(path.stem)
            parameters = count_parameters(plan(network, NUM_CLASSES.get(path.stem, 1000)))
            row += f" {network.towers} | {parameters:,} |"
        rows.append(row)
    return "\n".join(rows) + "\n"


def read_benchmark() -> dict[str, Any]:
    """The content of benchmark.json."""
    found: dict[str, Any] = json.loads(BENCHMARK.read_text())
    return found


CONTESTANTS = {
    "two_towers": "two towers, two processes",
    "floor": "their convolutions and products alone",
    "one_process_eager": "one process, the better memory format",
    "one_process_compiled": "the same under `torch.compile`",
    "one_process_compiled_keeping_memory": "the same with the towers' setting of the allocator",
}


def write_speeds() -> str:
    """Images/s of each contestant by precision, and beside them how the towers compare."""
    medians = read_benchmark()["towers"]["medians"]
    precisions = list(dict.fromkeys(key.partition("_")[0] for key in medians))
    lines = [
        "| images/s (the towers beside it) | " + " | ".join(precisions) + " |",
        "|---|" + "---|" * len(precisions),
    ]
    for key, title in CONTESTANTS.items():
        cells = []
        for precision in precisions:
            cell = f"{medians[f'{precision}_{key}_images_per_second']:.1f}"
            if key == "floor":
                cell += f" ({medians[f'{precision}_two_towers_percent_of_floor']:.0f} %)"
            elif key != "two_towers":
                cell += f" ({medians[f'{precision}_two_towers_over_{key}']:.2f} times)"
            cells.append(cell)
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    for title, ends in (
        ("processor time of a step, both towers, ms", ("user", "kernel")),
        ("peak memory of a tower, MiB", ("peak",)),
    ):
        cells = []
        for precision in precisions:
            name = f"{precision}_two_towers"
            keys = [f"{name}_{end}_ms_a_step" if end != "peak" else f"{name}_peak_megabytes" for end in ends]
            cells.append(" + ".join(f"{medians[key]:,.0f}" for key in keys))
        lines.append(f"| {title}{' (user + kernel)' if len(ends) > 1 else ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


VOLUME_SPEEDS = (50.0, 4000.0)  # images/s of a replica: measured on two cores, and assumed


def write_volume() -> str:
    """What `python launch/volume.py network=alexnet` prints, for a slow and for a fast replica."""
    networks = {"network": preset("alexnet")}
    slow, fast = (estimate_rows(VolumeConfig(**networks, images_per_second=speed)) for speed in VOLUME_SPEEDS)
    heads = [*VOLUME_HEADS[:-1], *(f"images/s at {speed:,.0f} a replica" for speed in VOLUME_SPEEDS)]
    rows = [[*first, second[-1]] for first, second in zip(slow, fast, strict=True)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (heads, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]]) + "\n"


def write_swaps() -> str:
    """The measured swaps of benchmark.json, over gloo and loopback: bytes, milliseconds, GB/s."""
    lines = ["| swap | fp32: MB, ms, GB/s | bf16 |", "|---|---|---|"]
    parts, batch = read_benchmark()["parts_ms"], 128
    crossing = [row for row in plan(preset("alexnet"), 1000) if row.reads_both]
    for row in crossing:
        cells = []
        for precision, size in (("fp32", 4), ("bf16", 2)):
            pixels = row.size_in**2 if row.config.kind == "conv" else 1
            sent = batch * row.maps_in[0] * pixels * size
            took = parts[precision][f"swap before {row.name}, nothing to overlap"]
            cells.append(f"{sent / 1e6:.2f}, {took:.1f}, {sent / took / 1e6:.2f}")
        lines.append(f"| before {row.name} | {cells[0]} | {cells[1]} |")
    for title, key in (("all of a step", "step: exchange"),):
        cells = []
        for precision in ("fp32", "bf16"):
            sent = measure_volume(preset("alexnet"), 1000, batch, 1, precision).exchange_bytes
            cells.append(f"{sent / 1e6:.2f}, {parts[precision][key]:.1f} of waiting")
        lines.append(f"| {title} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def write_lines() -> str:
    """Every line of the configuration of 2012; see lines_2012.py."""
    table: str = runpy.run_path(str(DOCS / "lines_2012.py"))["write_lines"]()
    return table


TOWERS = runpy.run_path(str(DOCS / "towers_in_colour.py"))
CIFAR_2011 = runpy.run_path(str(DOCS / "cifar_2011.py"))
CLAIMS = runpy.run_path(str(DOCS / "claims.py"))
WRITERS = {
    "speed": write_speeds,
    "volume": write_volume,
    "swaps": write_swaps,
    "lines": write_lines,
    "claims": CLAIMS["write_claims"],
    "short_claims": CLAIMS["write_short_claims"],
    "colour_arms": TOWERS["write_arms"],
    "colour_runs": TOWERS["write_runs"],
    "colour_swapped": TOWERS["write_swapped"],
    "colour_costs": TOWERS["write_costs"],
    "cifar_arms": CIFAR_2011["write_arms"],
    "cifar_norms": CIFAR_2011["write_norms"],
}


def write_marked(name: str) -> str:
    """The table of a marker's name."""
    table: str = WRITERS[name]() if name in WRITERS else write_table(name)
    return table


def fill_tables(text: str) -> str:
    """A page with what stands between its markers written anew."""
    return MARKED.sub(lambda marked: marked[1] + write_marked(marked[2]) + marked[3], text)


def main() -> None:
    root = DOCS.parent
    for path in (*sorted(DOCS.glob("*.md")), *sorted((root / "results").rglob("README.md")), root / "README.md"):
        text = path.read_text()
        filled = fill_tables(text)
        if filled != text:
            path.write_text(filled)
            print(f"written: {path.relative_to(root)}")


if __name__ == "__main__":
    main()
