"""Which AlexNet is it? Names the network that a file of weights is, and what sets it apart from the paper's.

python launch/identify.py FILE
"""

from pathlib import Path

from rich.table import Table

from twotower.command_line.arguments import name_paths, quote_paths
from twotower.command_line.command import command
from twotower.config import IdentifyConfig
from twotower.ground.screen import print_table, show
from twotower.ground.wording import counted
from twotower.weights.differences import list_differences
from twotower.weights.hub import resolve_name
from twotower.weights.identify import TITLES, identify


def to_overrides(arguments: list[str]) -> list[str]:
    """A file without a key is `file`. Raises: ValueError."""
    return quote_paths(name_paths(arguments, IdentifyConfig, single="file"), ("file",))


@command(
    "identify",
    to_overrides=to_overrides,
    needs={"file": "give a file of weights: python launch/identify.py FILE"},
)
def main(settings: IdentifyConfig) -> None:
    path = Path(settings.file)
    found = identify(Path(resolve_name(settings.file)))
    if not found.networks:
        assert found.nearest is not None
        name, first = found.nearest
        raise ValueError(f"{path} is none of the AlexNets that are known here; the nearest is {name}, but {first}.")
    size = f"width {found.width:g}, {counted(found.num_classes, 'class', 'classes')}"
    if len(found.networks) == 1:
        name = found.networks[0].name
        show(f"{path}: {TITLES.get(name, f'network={name}')}, {size}")
    else:
        show(f"{path}: one of {len(found.networks)} networks that no number in it tells apart, {size}")
        for network in found.networks:
            show(f"  {network.name}: {TITLES.get(network.name, '')}")
    for reason in found.reasons:
        show(f"- {reason}")
    if found.untrained:
        show(f"warning: {', '.join(found.untrained)} look untrained: weights and biases are as at first")
    for network in found.networks:
        rows = list_differences(network, found.num_classes)
        if not rows:
            show(f"{network.name} is as the paper's text has it")
            continue
        table = Table("", network.name, "the paper's text")
        for row in rows:
            table.add_row(*row)
        print_table(table, TITLES.get(network.name, network.name))


if __name__ == "__main__":
    main()
