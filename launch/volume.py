"""How many bytes a step sends, from one machine to many replicas, and how long they would take over a link.

python launch/volume.py network=alexnet images_per_second=50 ['replicas=[1,2,8]'] [ethernet=1.25] [precision=bf16]

The bytes are those of a run; the times are arithmetic with the assumptions that model/volume.py states.
"""

from rich.table import Table

from twotower.command_line.command import command
from twotower.config import VolumeConfig
from twotower.ground.screen import print_table
from twotower.ground.wording import counted
from twotower.model.volume import HEADS, estimate_rows


@command("volume")
def main(settings: VolumeConfig) -> None:
    table = Table()
    for head in HEADS:
        table.add_column(head.replace(", ms", ", ms\nNVLink / PCIe / Ethernet"), justify="right")
    for row in estimate_rows(settings):
        table.add_row(*row)
    print_table(
        table,
        f"{settings.network.name}, {counted(settings.num_classes, 'class', 'classes')}, batches of "
        f"{counted(settings.batch_size, 'image')}, {settings.precision}, {settings.images_per_second:g} images/s a "
        "replica",
    )
    print(
        f"assumed: {settings.nvlink:g}, {settings.pcie:g} and {settings.ethernet:g} GB/s at the peak, of which "
        f"{settings.reached:.0%} are reached; {settings.latency_within * 1e6:g} us for a message within a node and "
        f"{settings.latency_between * 1e6:g} us between nodes, of which each has "
        f"{counted(settings.replicas_per_node, 'replica')}"
    )


if __name__ == "__main__":
    main()
