"""The lab book of 2012 on one page: Tables 1 and 2 of the paper, the ablations, and our own runs beside them.

python launch/labbook.py [RUN ...] [format=text|markdown|csv] [output=FILE]
"""

from pathlib import Path

from rich.console import Console

from twotower.command_line.arguments import name_paths, quote_paths
from twotower.command_line.command import command
from twotower.config import LabbookConfig
from twotower.ground.files import write_text
from twotower.reports.labbook_page import make_page
from twotower.reports.labbook_tables import render

WIDTH = 165  # characters; narrower terminals break the lines


def to_overrides(arguments: list[str]) -> list[str]:
    """Folders without a key are `runs`. Raises: ValueError."""
    return quote_paths(name_paths(arguments, LabbookConfig, several="runs"), ("runs", "output"))


@command("labbook", to_overrides=to_overrides)
def main(settings: LabbookConfig) -> None:
    text = render(make_page(settings.runs), settings.format, max(WIDTH, Console().width))
    if settings.output is None:
        print(text, end="")
    else:
        write_text(Path(settings.output), text)
        print(f"written to {settings.output}")


if __name__ == "__main__":
    main()
