"""Writes the tables of the documentation that follow from conf/: networks, ablations, schedules, inputs.

    python docs/tables.py

Each row is the first sentence of a yaml's header. A test fails while a page differs from what this would write.
"""

import re
from pathlib import Path

from twotower.config.presets import CONF, preset
from twotower.model.layer_table import count_parameters, plan

DOCS = Path(__file__).resolve().parent
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
NUM_CLASSES = {"alexnet_cifar": 10, "cifar_four_layer": 10, "six_conv_bottleneck": 21_843}
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


def fill_tables(text: str) -> str:
    """A page with what stands between its markers written anew."""
    return MARKED.sub(lambda marked: marked[1] + write_table(marked[2]) + marked[3], text)


def main() -> None:
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text()
        filled = fill_tables(text)
        if filled != text:
            path.write_text(filled)
            print(f"written: {path.name}")


if __name__ == "__main__":
    main()
