"""Times the two towers against the same network in one process, and the parts of a step.

python launch/benchmark.py [network=alexnet_2012] [part=towers|input|training] [rounds=3] [data_root=DIR]
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from twotower.benchmarks.benchmark import benchmark
from twotower.command_line.start import start
from twotower.config import BenchmarkConfig, leave_out_layers, register_schemas
from twotower.ground.screen import print_table

register_schemas()


@hydra.main(version_base="1.3", config_path="../conf", config_name="benchmark")
def main(composed: Any) -> None:
    settings = OmegaConf.to_object(composed)
    assert isinstance(settings, BenchmarkConfig)
    console = Console(highlight=False, soft_wrap=True)
    try:
        settings = replace(settings, network=leave_out_layers(settings.network))
        results = benchmark(settings, console.print)
    except (ValueError, RuntimeError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped") from None
    for part in ("input", "towers", "training"):
        if part in results:
            table = Table(f"{part}, median of the rounds", "")
            for name, value in results[part]["medians"].items():
                table.add_row(name.replace("_", " "), f"{value:.2f}")
            print_table(table)
    if "parts_ms" in results:
        table = Table("part of a step, tower 0", "ms")
        for name, value in results["parts_ms"].items():
            table.add_row(name, f"{value:.1f}")
        print_table(table)
    Path(settings.output).write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"written to {settings.output}")


if __name__ == "__main__":
    start(main, "benchmark")
