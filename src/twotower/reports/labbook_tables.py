"""The lab book's page as tables, and as the text that launch/labbook.py prints."""

from dataclasses import replace

from twotower.ground.wording import counted, on_one_line
from twotower.reports.labbook_page import LabbookPage, Line, OwnCell, Pair
from twotower.reports.table import Cell, Table, as_csv, as_markdown, as_text, escape_markdown

HEADS = ("network", "run", "baseline", "images, view")
PAIRS = ("paper", "notes of 2012/13", "to the baseline")


def _word_cells(line: Line) -> list[Cell]:
    entry = line.entry
    run = f"{entry.run} (paper only)" if entry.is_only_printed else entry.run
    images = f"{entry.year} {entry.set}"
    words = (entry.change, run, entry.baseline, f"{images}, {entry.view}" if entry.view else images)
    return [Cell(word) for word in words]


def _pair_cell(pair: Pair, runs: int | None = None) -> Cell:
    """Both errors in one cell, which sorts by the first of them."""
    text = " / ".join(pair) if any(pair) else ""
    value = float(pair[0]) if pair[0] not in ("", "-") else None
    return Cell(f"{text} ({counted(runs, 'run')})" if runs is not None and runs > 1 else text, value)


def _own_cells(own: OwnCell) -> list[Cell]:
    errors = Cell("not evaluated") if own.runs == 0 else _pair_cell(own.errors, own.runs)
    return [errors, _pair_cell(own.difference)]


def as_tables(page: LabbookPage) -> list[Table]:
    """A table for each section, with top-1 and top-5 error of one source in one cell."""
    heads = [*HEADS, *PAIRS, *(head for heading in page.headings for head in (heading, "to ours of 145"))]
    if not page.has_runs:
        heads = [*HEADS, *PAIRS, *page.headings]
    tables = []
    for title, lines in page.sections:
        rows = [
            [
                *_word_cells(line),
                *(_pair_cell(pair) for pair in (line.paper, line.notes, line.difference)),
                *(cell for own in line.own for cell in _own_cells(own)),
            ][: len(heads)]
            for line in lines
        ]
        tables.append(Table(title, heads, rows, first_number=len(HEADS)))
    return tables


def as_one_table(page: LabbookPage) -> Table:
    """All sections in one table, their title in its first column; every number in a column of its own, in percent."""
    pairs = [*PAIRS, *(head for heading in page.headings for head in (heading, f"{heading}, to 145"))]
    columns = [f"{head}, {measure}" for head in pairs for measure in ("top-1", "top-5")]
    heads = ["table", *HEADS, *columns, *(f"{heading}, runs" for heading in page.headings)]
    rows = []
    for title, lines in page.sections:
        for line in lines:
            numbers = [*("" if word == "-" else word for word in line.paper), *line.notes, *line.difference]
            for own in line.own:
                numbers += [*own.errors, *own.difference]
            counts = ["" if own.runs is None else str(own.runs) for own in line.own]
            rows.append([Cell(title), *_word_cells(line), *(Cell(text) for text in numbers + counts)])
    return Table("The lab book of 2012/13", heads, rows)


def render(page: LabbookPage, form: str, width: int) -> str:
    """The page as `text` at most `width` characters wide, `markdown` or `csv`."""
    if form == "csv":
        return as_csv(as_one_table(page))
    tables = [replace(table, title=f"{table.title} (top-1 / top-5 error, %)") for table in as_tables(page)]
    if form == "text":
        # The columns of ours have long headings, and the first column long texts; the others stay unbroken.
        text = as_text(tables, width, unbroken=range(1, len(HEADS + PAIRS)))
        return text + "".join(f"{on_one_line(remark)}\n" for remark in page.remarks)
    parts = [*(as_markdown(table) for table in tables), *(f"- {escape_markdown(remark)}" for remark in page.remarks)]
    return "\n".join(parts).rstrip() + "\n"
