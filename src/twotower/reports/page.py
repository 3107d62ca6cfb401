"""A report as one HTML file: texts, tables that sort, figures that enlarge.

The file holds its style, its script and its pictures, so that it can be sent, kept and opened without a network. It
says itself what the browser may do (a content security policy): run the one script whose hash is given, show embedded
pictures, and ask nobody for anything. The template page.html escapes all texts; without JavaScript everything can be
read.
"""

import base64
import hashlib
import math
import re
from dataclasses import dataclass, field
from importlib import resources
from itertools import count
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image, UnidentifiedImageError

from twotower.ground.wording import on_lines
from twotower.reports.table import Table

MARK = '<meta name="generator" content="twotower">'  # distinguishes our pages from others
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


@dataclass(frozen=True)
class Chapter:
    """A section whose tables and figures have the numbers that they bear on the page, from 1."""

    section: Section
    tables: list[tuple[int, Table]]
    figures: list[tuple[int, Figure]]


@dataclass(frozen=True)
class Picture:
    """A PNG as the address of an image that is embedded; width and height in pixels."""

    source: str
    width: int
    height: int


def render(page: Page) -> str:
    """One HTML document, to be written in UTF-8. Tables and figures are numbered through all sections.

    Raises: ValueError for a row that does not fit its heads, an unknown kind, or a picture that is no PNG; OSError
    for a picture that cannot be read.
    """
    for section in page.sections:
        for table in section.tables:
            _check(table)
    folder = resources.files("twotower.reports")
    style, script = (folder.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    environment = Environment(
        loader=PackageLoader("twotower.reports", ""),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        finalize=_spell_out,
    )
    document = environment.get_template("page.html").render(
        page=page,
        chapters=_number(page.sections),
        mark=Markup(MARK),
        policy=_state_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        break_at_slashes=_break_at_slashes,
        keep_hyphens=_keep_hyphens,
        sort_value=_sort_value,
        embed=_embed,
        quote=_quote,
    )
    # A file's name may hold bytes that are no text, which cannot be written as UTF-8.
    return document.encode("utf-8", "replace").decode("utf-8")


def _check(table: Table) -> None:
    for number, row in enumerate(table.rows, 1):
        if len(row) != len(table.heads):
            raise ValueError(
                f"row {number} of the table {table.title!r} has {len(row)} cells for {len(table.heads)} heads; "
                "give each row one cell a head."
            )
        for cell in row:
            if cell.kind not in KINDS:
                raise ValueError(
                    f"a cell of the table {table.title!r} is of kind {cell.kind!r}; choose one of "
                    f"{', '.join(repr(kind) for kind in KINDS)}."
                )


def _number(sections: list[Section]) -> list[Chapter]:
    tables, figures = count(1), count(1)
    return [
        Chapter(
            section,
            [(next(tables), table) for table in section.tables],
            [(next(figures), figure) for figure in section.figures],
        )
        for section in sections
    ]


def _state_policy(style: str, script: str) -> str:
    """The content security policy: this style, this script, embedded pictures, and nothing else."""
    return (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _spell_out(content: object) -> object:
    """Names from files may hold signs that steer a terminal, or turn the direction of a line."""
    return content if isinstance(content, Markup) or not isinstance(content, str) else on_lines(content)


def _break_at_slashes(text: str) -> Markup:
    """Lets a line end after a slash, because runs are named by long paths."""
    return escape(on_lines(text)).replace("/", Markup("/<wbr>"))


def _keep_hyphens(head: str) -> Markup:
    """Keeps a line from ending after a hyphen, because columns are narrow and "top-1" must stay whole."""
    return Markup(re.sub(r"\S+-\S+", r"<span>\g<0></span>", str(escape(on_lines(head)))))


def _sort_value(value: float | None) -> str:
    """The number as JavaScript reads it, which spells infinity out; "" for None and NaN."""
    if value is None or math.isnan(value):
        return ""
    return repr(float(value)).replace("inf", "Infinity")


def _embed(figure: Figure) -> Picture:
    content = figure.png.read_bytes()
    try:
        with Image.open(figure.png, formats=["PNG"]) as image:
            width, height = image.size
    except UnidentifiedImageError:
        raise ValueError(f"the figure {figure.title!r} is {figure.png}, which is no PNG; give a PNG file.") from None
    return Picture(f"data:image/png;base64,{base64.b64encode(content).decode()}", width, height)


def _quote(path: str) -> str:
    """The path with percent signs, which keep it a path: no scheme, no host."""
    return quote(path, errors="replace")
