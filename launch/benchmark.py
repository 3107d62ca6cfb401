"""Times the two towers against the same network in one process, and the parts of a step.

python launch/benchmark.py [network=alexnet_2012] [part=towers|input|training|batches|replicas] [data_root=DIR]
"""

from pathlib import Path

from rich.console import Console
from rich.table import Table

import twotower.command_line  # noqa: F401 - before torch, as a stop while that is imported is silent then
from twotower.benchmarks.benchmark import benchmark
from twotower.benchmarks.draw_parts import draw_parts
from twotower.command_line.command import command
from twotower.config import BenchmarkConfig
from twotower.ground.files import write_json
from twotower.ground.screen import print_table


@command("benchmark")
def main(settings: BenchmarkConfig) -> None:
    console = Console(highlight=False, soft_wrap=True)
    results = benchmark(settings, console.print)
    for part in ("input", "towers", "batches", "replicas", "training"):
        if part in results:
            table = Table(f"{part}, median of the rounds", "")
            for name, value in results[part]["medians"].items():
                table.add_row(name.replace("_", " "), f"{value:.2f}")
            print_table(table)
    for precision, parts in results.get("parts_ms", {}).items():
        table = Table(f"part of a step, tower 0, {precision}", "ms")
        for name, value in parts.items():
            table.add_row(name, f"{value:.1f}")
        print_table(table)
    if settings.picture is not None and results.get("parts_ms"):
        draw_parts(results["parts_ms"], Path(settings.picture))
        console.print(f"drawn: {settings.picture}")
    write_json(Path(settings.output), results)
    console.print(f"written to {settings.output}")


if __name__ == "__main__":
    main()
