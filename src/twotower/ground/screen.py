"""Prints tables on the screen, in pipes and in logs, as wide as needed, so that no name and no number is cut."""

from rich.console import Console
from rich.table import Table

from twotower.ground.wording import on_lines

_UNBOUNDED = 10_000  # characters; no table here is as wide


def _measure_width(table: Table, terminal: int) -> int:
    """The width that a table needs, in characters; at least that of the terminal. Words are folded, never cut."""
    for column in table.columns:
        column.overflow = "fold"
    console = Console(width=_UNBOUNDED, markup=False, emoji=False)
    return max(terminal, console.measure(table).maximum)


def print_table(table: Table, title: str = "") -> None:
    """Prints a table under a title, which is a line by itself.

    rich gives a pipe or a log 80 columns, and would cut the ends of long names, by which rows differ.
    """
    terminal = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    if title:
        terminal.print(on_lines(title))
    for column in table.columns:  # names of runs and classes come from files
        column.header = on_lines(column.header) if isinstance(column.header, str) else column.header
        column._cells = [on_lines(cell) if isinstance(cell, str) else cell for cell in column._cells]
    width = _measure_width(table, terminal.width)
    # Names may hold brackets and colons, which rich would otherwise read as styles and emoji.
    Console(width=width, highlight=False, markup=False, emoji=False).print(table)


def show(*lines: str) -> None:
    """Prints lines in which names from files may stand: what would steer the terminal is spelled out."""
    for line in lines:
        print(on_lines(line), flush=True)
