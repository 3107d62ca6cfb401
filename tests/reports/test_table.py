"""One table, written for a screen, for Markdown and for a spreadsheet."""

import csv
import io
import re

from twotower.reports.table import Cell, Table, as_csv, as_markdown, as_text, plain_cell

TABLE = Table(
    "Errors",
    ["run", "top-1 | %", "remark", "command"],
    [
        [Cell("a|b"), Cell("1.50", 1.5, "± 0.10"), Cell("says [bold]"), Cell("python x", kind="command")],
        [Cell("c"), Cell(""), Cell('a comma, and "quotes"'), Cell("")],
    ],
    "Of two runs.",
)


def test_markdown() -> None:
    assert as_markdown(TABLE).splitlines() == [
        "### Errors",
        "",
        "| run | top-1 \\| % | remark | command |",
        "| --- | ---: | --- | --- |",
        "| a\\|b | 1.50 (± 0.10) | says [bold] | `python x` |",
        '| c |  | a comma, and "quotes" |  |',
        "",
        "Of two runs.",
    ]


def test_a_spreadsheet_reads_the_same_texts() -> None:
    text = as_csv(TABLE)
    assert list(csv.reader(io.StringIO(text))) == [TABLE.heads, *([cell.text for cell in row] for row in TABLE.rows)]
    assert "\r" not in text
    numbers = [plain_cell(content).text for content in (1234.56789, 7, None, "x", 0.5)]
    assert numbers == ["1234.57", "7", "", "x", "0.5"]


def test_a_screen_shows_texts_as_they_are_and_breaks_only_where_it_may() -> None:
    lines = as_text([TABLE, TABLE], 60, unbroken=range(4)).splitlines()
    assert sum(line.startswith("Errors") for line in lines) == 2
    assert any("says [bold]" in line for line in lines), "brackets are no markup"
    assert max(len(line) for line in lines) <= 60
    long = Table("T", ["a", "b"], [[Cell("word " * 30), Cell("stays whole here")]])
    assert any("stays whole here" in line for line in as_text([long], 40, unbroken=[1]).splitlines())
    assert not any("stays whole here" in line for line in as_text([long], 30).splitlines())


def test_columns_of_numbers_are_those_with_values_or_those_that_are_named() -> None:
    rows = [[Cell("a"), Cell("1", 1.0), Cell("")]]
    assert Table("T", ["", "", ""], rows).number_columns() == {1}
    assert Table("T", ["", "", ""], rows, first_number=1).number_columns() == {1, 2}


HOSTILE = "a\x1b]0;pwn\x07|`<img src=x onerror=window.taken=1>\n\u202e<script>1</script> [x](http://x) [y]: z"


def test_names_from_files_are_no_markup_and_steer_no_terminal() -> None:
    """GitHub shows HTML elements of a certain kind, and follows links; a terminal obeys control characters."""
    rows = [[Cell(HOSTILE, note=HOSTILE), Cell(HOSTILE, kind="command"), Cell("python x | y", kind="command")]]
    table = Table(HOSTILE, [HOSTILE, "b", "c"], rows, HOSTILE)
    for text in (as_markdown(table), as_text([table], 100), as_csv(table)):
        assert not [sign for sign in text if not sign.isprintable() and sign != "\n"]
    text = as_markdown(table)
    assert len(text.splitlines()) == 7, "a line end in a name ends no row"
    assert "<" not in text
    assert re.search(r"(?<!\\)\]\(", text) is None
    assert re.search(r"(?<!\\)\]:", text) is None
    assert len(re.findall(r"(?<!\\)\|", text.splitlines()[4])) == 4, "a bar in a name ends no cell"
    assert "| `python x \\| y` |" in text
    ours = re.sub(r"(?<!\\)`python x \\\| y`", "", text)
    assert re.search(r"(?<!\\)`", ours) is None, "a backtick of a name begins no code"
