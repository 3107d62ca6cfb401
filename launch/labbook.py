"""The lab book of 2012 on one page: Tables 1 and 2 of the paper, the ablations, and our own runs beside them.

python launch/labbook.py [RUN ...] [format=text|markdown|csv] [output=FILE]
"""

import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf
from rich.console import Console

from twotower.command_line.arguments import name_paths, quote_paths, read_arguments
from twotower.command_line.start import start
from twotower.config import LabbookConfig, register_schemas
from twotower.reports.labbook_page import make_page
from twotower.reports.labbook_tables import render

register_schemas()
WIDTH = 165  # characters; narrower terminals break the lines


@hydra.main(version_base="1.3", config_path="../conf", config_name="labbook")
def main(composed: Any) -> None:
    settings = OmegaConf.to_object(composed)
    assert isinstance(settings, LabbookConfig)
    try:
        text = render(make_page(settings.runs), settings.format, max(WIDTH, Console().width))
        if settings.output is None:
            print(text, end="")
        else:
            Path(settings.output).write_text(text)
            print(f"written to {settings.output}")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def to_overrides(arguments: list[str]) -> list[str]:
    """Folders without a key are `runs`. Raises: ValueError."""
    return quote_paths(name_paths(arguments, LabbookConfig, several="runs"), ("runs", "output"))


if __name__ == "__main__":
    sys.argv[1:] = read_arguments(to_overrides, sys.argv[1:])
    start(main, "labbook")
