"""A table of texts and its writers: for a screen, for Markdown, for a spreadsheet. `page` shows one in a browser."""

import csv
import io
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Any

import rich.table
from rich.console import Console

from twotower.ground.wording import on_lines, on_one_line


@dataclass(frozen=True)
class Cell:
    """One entry of a table. Texts come from files, so what would steer a terminal is spelled out in them.

    Attributes:
        text: the entry as it is shown.
        value: number that the page sorts the column by. None, and NaN, sort last where other cells have values; a
            column without values is sorted by its texts.
        note: small print: "3 seeds", an interval. It stands under the text on the page and in brackets elsewhere.
        kind: `command` is set in a fixed pitch, on the page with a button that copies it; `good`, `bad` and `muted`
            are colours of the page.
    """

    text: str
    value: float | None = None
    note: str = ""
    kind: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", on_one_line(self.text))
        object.__setattr__(self, "note", on_one_line(self.note))


@dataclass(frozen=True)
class Table:
    """Rows of cells beneath heads.

    Attributes:
        heads: one for each column.
        rows: one cell for each head; the first cell of a row names the row.
        note: paragraph beneath the table.
        first_number: index of the first of the columns of numbers, where all columns behind it are such; None where
            the cells decide.
    """

    title: str
    heads: list[str]
    rows: list[list[Cell]]
    note: str = ""
    first_number: int | None = None

    def number_columns(self) -> set[int]:
        """Indices of the columns that are set flush right: those with values, each shown with a digit."""
        if self.first_number is not None:
            return set(range(self.first_number, len(self.heads)))
        columns = set()
        for column in range(len(self.heads)):
            texts = [row[column].text for row in self.rows if row[column].value is not None]
            if texts and all(any(character.isdigit() for character in text) for text in texts):
                columns.add(column)
        return columns


def plain_cell(content: Any) -> Cell:
    """A cell of a spreadsheet: six significant digits of a float, nothing for None, other content as `str` has it."""
    if content is None:
        return Cell("")
    return Cell(f"{content:.6g}" if isinstance(content, float) else str(content))


def _with_note(text: str, cell: Cell) -> str:
    return f"{text} ({cell.note})" if cell.note else text


def as_text(tables: Iterable[Table], width: int, unbroken: Container[int] = ()) -> str:
    """Tables of box characters.

    Args:
        width: most characters of a line.
        unbroken: indices of the columns whose texts stay on one line.
    """
    file = io.StringIO()
    console = Console(file=file, width=width, markup=False, emoji=False)
    for table in tables:
        numbers = table.number_columns()
        drawn = rich.table.Table(title=on_lines(table.title), title_justify="left")
        for column, head in enumerate(table.heads):
            justify: Any = "right" if column in numbers else "left"
            # Heads may hold names of folders, which are folded and never cut.
            drawn.add_column(on_lines(head), justify=justify, overflow="fold", no_wrap=column in unbroken)
        for row in table.rows:
            drawn.add_row(*(_with_note(cell.text, cell) for cell in row))
        console.print(drawn)
        if table.note:
            console.print(on_lines(table.note))
    return "".join(line.rstrip() + "\n" for line in file.getvalue().splitlines())


def escape_markdown(text: str) -> str:
    """A text in which nothing begins an HTML element, a link, code, or another cell of a table."""
    return re.sub(r"([`|]|\](?=[(\[:]))", r"\\\1", on_one_line(text)).replace("<", "&lt;")


def as_markdown(table: Table) -> str:
    """A table of GitHub's Markdown under a heading, with its note as a paragraph."""

    def show(cell: Cell) -> str:
        # Within backticks nothing is markup, as long as there are no others; a table's bar counts even there.
        if cell.kind == "command" and not set("`<") & set(cell.text):
            return _with_note(f"`{cell.text}`".replace("|", "\\|"), cell)
        return escape_markdown(_with_note(cell.text, cell))

    numbers = table.number_columns()
    ruler = ["---:" if column in numbers else "---" for column in range(len(table.heads))]
    heads = [escape_markdown(head) for head in table.heads]
    lines = [heads, ruler, *([show(cell) for cell in row] for row in table.rows)]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    note = f"\n{escape_markdown(table.note)}\n" if table.note else ""
    return f"### {escape_markdown(table.title)}\n\n{body}\n{note}"


def as_csv(table: Table) -> str:
    """Heads and texts as comma-separated values, without title and notes."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([on_one_line(head) for head in table.heads])
    writer.writerows([cell.text for cell in row] for row in table.rows)
    return file.getvalue()
