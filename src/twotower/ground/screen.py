"""Tables on the screen, in pipes and in logs: as wide as they need to be, so that no name and no number is cut."""

from rich.console import Console
from rich.table import Table

_UNBOUNDED = 10_000  # characters; wider than any table of ours


def wide_enough(table: Table, terminal: int) -> int:
    """Characters that a table needs, at least those of the terminal. Its words are folded, never cut."""
    for column in table.columns:
        column.overflow = "fold"
    console = Console(width=_UNBOUNDED, markup=False, emoji=False)
    return max(terminal, console.measure(table).maximum)


def print_table(table: Table, title: str = "") -> None:
    """Prints a table under a title, which is a line by itself.

    A pipe or a log has 80 columns by rich's reckoning, which would cut what tells rows apart: the ends of long names.
    """
    terminal = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    if title:
        terminal.print(title)
    width = wide_enough(table, terminal.width)
    # Names may hold brackets and colons, which rich would otherwise take for styles and pictures.
    Console(width=width, highlight=False, markup=False, emoji=False).print(table)
