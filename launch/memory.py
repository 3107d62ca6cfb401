"""What fills the memory of a process that trains, with both towers or with one: why there are two.

python launch/memory.py [network=alexnet_2012] [batch_size=128] [precision=bf16] [output=memory.svg] [measure=true]
"""

from pathlib import Path

from rich.table import Table

import twotower.command_line  # noqa: F401 - before torch, as a stop while that is imported is silent then
from twotower.benchmarks.draw_memory import draw_memory
from twotower.benchmarks.measured_peaks import measure_peaks
from twotower.benchmarks.memory_parts import GTX_580_BYTES, list_memory
from twotower.command_line.command import command
from twotower.config import MemoryConfig
from twotower.figures.figure2 import check_suffix
from twotower.ground.screen import print_table
from twotower.ground.wording import counted

MIB = 2**20
HEADS = ("one of two processes", "one process, both towers", "one process, torch's own layers")


@command("memory")
def main(settings: MemoryConfig) -> None:
    if settings.output is not None:
        check_suffix(Path(settings.output))
    parts = list_memory(settings)
    title = f"{settings.network.name}, batches of {counted(settings.batch_size, 'image')}, {settings.precision}"
    table = Table("MiB")
    for head in HEADS:
        table.add_column(head, justify="right")
    rows = [(part.name, part.of_tower, part.of_both, part.of_plain) for part in parts]
    for name, *sizes in rows:
        table.add_row(name, *(f"{size / MIB:,.0f}" for size in sizes))
    table.add_section()
    table.add_row("in all", *(f"{sum(row[column] for row in rows) / MIB:,.0f}" for column in (1, 2, 3)))
    print_table(table, title)
    print(f"A GTX 580, the GPU of the paper, has {GTX_580_BYTES / MIB:,.0f} MiB.")
    if settings.measure:
        for name, megabytes in measure_peaks(settings).items():
            print(f"measured, {name}: {megabytes:,.0f} MiB at the peak")
    if settings.output is not None:
        draw_memory(parts, title, Path(settings.output))
        print(f"drawn: {settings.output}")


if __name__ == "__main__":
    main()
