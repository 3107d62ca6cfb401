"""A report as one HTML file: texts, tables that sort, figures that enlarge.

The file holds its style, its script and its pictures, so that it can be sent, kept and opened without a network. What
the browser may do is said in it as well (a content security policy): run the one script whose hash is given, show
embedded pictures, and ask nobody for anything. All texts are escaped; without JavaScript everything can be read.
"""

import base64
import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from itertools import count
from pathlib import Path
from urllib.parse import quote

from PIL import Image, UnidentifiedImageError

from twotower.reports.table import Cell, Table

MARK = '<meta name="generator" content="twotower">'  # tells its pages from others
KINDS = ("", "command", "good", "bad", "muted")


@dataclass(frozen=True)
class Figure:
    """A PNG file with its legend. `data` is the path of the file with its numbers, relative to the page."""

    title: str
    png: Path
    caption: str = ""
    data: str = ""


@dataclass(frozen=True)
class Section:
    """A chapter: its paragraphs, then its tables, then its figures."""

    title: str
    paragraphs: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """The whole report. `lead` are the paragraphs between its title and its first section."""

    title: str
    lead: list[str]
    sections: list[Section]


def render(page: Page) -> str:
    """One HTML document, to be written in UTF-8. Tables and figures are numbered through all sections.

    Raises: ValueError for a row that does not fit its heads, an unknown kind, or a picture that is no PNG; OSError
    for a picture that cannot be read.
    """
    style, script = (
        resources.files("twotower.reports").joinpath(name).read_text("utf-8") for name in ("page.css", "page.js")
    )
    tables, figures = count(1), count(1)
    contents, body = [], []
    for number, section in enumerate(page.sections, 1):
        entries, parts = [], [_paragraphs(section.paragraphs)]
        for table, name in zip(section.tables, tables, strict=False):
            entries.append(_entry(f"table-{name}", table.title))
            parts += _table(table, name)
        if section.figures:
            parts.append('<div class="figures">')
            for figure, name in zip(section.figures, figures, strict=False):
                entries.append(_entry(f"figure-{name}", figure.title))
                parts += _figure(figure, name)
            parts.append("</div>")
        inner = ["<ul>", *(f"{entry}</li>" for entry in entries), "</ul>"] if entries else []
        contents += [_entry(f"section-{number}", section.title), *inner, "</li>"]
        body += [
            f'<section id="section-{number}" aria-labelledby="section-{number}-title">',
            f'<h2 id="section-{number}-title">{_text(section.title)}</h2>',
            *parts,
            "</section>",
        ]
    allowed = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    # The empty icon keeps a browser from asking a server for one.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{MARK}
<meta http-equiv="Content-Security-Policy" content="{allowed}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{_text(page.title)}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<h1>{_text(page.title)}</h1>
{_paragraphs(page.lead)}
</header>
<nav aria-labelledby="contents">
<h2 id="contents">Contents</h2>
<ol>
{_lines(contents)}
</ol>
</nav>
<main id="content">
{_lines(body)}
</main>
<script>{script}</script>
</body>
</html>
"""


def _text(text: str) -> str:
    # A file's name may hold bytes that are no text; they could not be written as UTF-8.
    return escape(text.encode("utf-8", "replace").decode("utf-8"))


def _paragraphs(texts: Iterable[str]) -> str:
    return _lines(f"<p>{_text(text)}</p>" for text in texts)


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _entry(anchor: str, title: str) -> str:
    return f'<li><a href="#{anchor}">{_text(title)}</a>'


def _classes(names: Iterable[str]) -> str:
    present = " ".join(name for name in names if name)
    return f' class="{present}"' if present else ""


def _value(value: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    # JavaScript spells infinity out.
    return f' data-value="{float(value)!r}"'.replace("inf", "Infinity")


def _cell(cell: Cell, is_first: bool, is_number: bool) -> str:
    tag, scope = ("th", ' scope="row"') if is_first else ("td", "")
    text = _text(cell.text)
    if is_first:
        text = text.replace("/", "/<wbr>")  # runs are named by long paths
    text = f"<code>{text}</code>" if cell.kind == "command" else f"<span>{text}</span>"
    note = f"<small>{_text(cell.note)}</small>" if cell.note else ""
    classes = _classes([cell.kind, "number" if is_number else ""])
    return f"<{tag}{scope}{classes}{_value(cell.value)}>{text}{note}</{tag}>"


def _head(head: str) -> str:
    # Columns are narrow, and "top-1" must not end a line after its hyphen.
    return re.sub(r"\S+-\S+", r"<span>\g<0></span>", _text(head))


def _table(table: Table, number: int) -> Iterator[str]:
    for place, row in enumerate(table.rows, 1):
        if len(row) != len(table.heads):
            raise ValueError(
                f"row {place} of the table {table.title!r} has {len(row)} cells for {len(table.heads)} heads; "
                "give each row one cell a head."
            )
        for cell in row:
            if cell.kind not in KINDS:
                raise ValueError(
                    f"a cell of the table {table.title!r} is of kind {cell.kind!r}; choose one of "
                    f"{', '.join(repr(kind) for kind in KINDS)}."
                )
    numbers = table.number_columns()
    name = f"table-{number}"
    described = f' aria-describedby="{name}-note"' if table.note else ""
    # The region can be focused, so that the keyboard scrolls a wide table even without JavaScript.
    yield f'<div class="table" id="{name}" role="region" aria-labelledby="{name}-title" tabindex="0">'
    yield f"<table{described}>"
    yield f'<caption><span id="{name}-title"><b>Table {number}.</b> {_text(table.title)}</span></caption>'
    heads = (
        f'<th scope="col"{_classes(["number" if column in numbers else ""])}>{_head(head)}</th>'
        for column, head in enumerate(table.heads)
    )
    yield f"<thead><tr>{''.join(heads)}</tr></thead>"
    yield "<tbody>"
    for row in table.rows:
        yield f"<tr>{''.join(_cell(cell, column == 0, column in numbers) for column, cell in enumerate(row))}</tr>"
    yield "</tbody></table></div>"
    if table.note:
        yield f'<p class="note" id="{name}-note">{_text(table.note)}</p>'


def _figure(figure: Figure, number: int) -> Iterator[str]:
    content = figure.png.read_bytes()
    try:
        with Image.open(figure.png, formats=["PNG"]) as image:
            width, height = image.size
    except UnidentifiedImageError:
        raise ValueError(f"the figure {figure.title!r} is {figure.png}, which is no PNG; give a PNG file.") from None
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    yield f'<figure id="figure-{number}">'
    yield f'<img src="{source}" width="{width}" height="{height}" alt="{_text(figure.title)}">'
    yield f"<figcaption><b>Figure {number}.</b> {_text(figure.title)}{'' if figure.title.endswith('.') else '.'}"
    if figure.caption:
        yield f" {_text(figure.caption)}"
    if figure.data:
        # Percent signs keep it a path: no scheme, no host.
        path = quote(figure.data, errors="replace")
        yield f' <span class="data">Data: <a href="./{path}">{_text(figure.data)}</a></span>'
    yield "</figcaption></figure>"
