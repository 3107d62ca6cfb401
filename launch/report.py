"""Reports what sweeps and runs show: a page, tables and pictures.

python launch/report.py DIR [DIR ...] [output=report] [baseline=none] [evaluate=true] [figures=true] [data_root=DIR]

DIR is the folder of a sweep or of a run, or one that holds several.
"""

import sys
from typing import Any

import hydra
from omegaconf import OmegaConf

from twotower.command_line.arguments import name_paths, quote_paths, read_arguments
from twotower.command_line.start import start
from twotower.config import ReportConfig, register_schemas
from twotower.reports.make import make_report

register_schemas()


@hydra.main(version_base="1.3", config_path="../conf", config_name="report")
def compose_and_report(composed: Any) -> None:
    settings = OmegaConf.to_object(composed)
    assert isinstance(settings, ReportConfig)
    try:
        page = make_report(settings)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped") from None
    print((page.parent / "table.md").read_text(encoding="utf-8").split("### All runs")[0].rstrip())
    print(f"\nwritten: {page}, and beside it table.md, table.csv, runs.csv, summary.json and the pictures")


def to_overrides(arguments: list[str]) -> list[str]:
    """Folders without a key are `folders`. Raises: ValueError."""
    named = name_paths(arguments, ReportConfig, several="folders")
    return quote_paths(named, ("folders", "output", "baseline", "data_root"))


if __name__ == "__main__":
    sys.argv[1:] = read_arguments(to_overrides, sys.argv[1:])
    start(compose_and_report, "report")
