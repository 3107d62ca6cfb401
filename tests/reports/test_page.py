"""A report's page: what is in the file, and what a browser makes of it."""

import base64
import os
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from jinja2 import Environment
from PIL import Image

from helpers.browser import Visitor, open_browser
from twotower.reports import page
from twotower.reports.page import Figure, Page, Section, render
from twotower.reports.table import Cell, Table

pytestmark = pytest.mark.timeout(90)
HOSTILE = """<script>window.taken=1</script><img src=x onerror="window.taken=1">"'&amp; </style></title>--><b>"""
PRINT_TRIALS = 4
TEXTS = "h1, p, th > span, td > span, small, code, a, button, figcaption"
VOID = {"meta", "link", "img", "wbr"}


class Reading(HTMLParser):
    """The results of a parser that is no browser: tags with their attributes, and the text of each element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[tuple[str, list[str]]] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, []))

    def handle_endtag(self, tag: str) -> None:
        opened, parts = self.open.pop()
        assert opened == tag
        self.texts.append((tag, "".join(parts)))
        if self.open:
            self.open[-1][1].extend(parts)

    def handle_data(self, data: str) -> None:
        if self.open:
            self.open[-1][1].append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    def shows(self, tag: str, text: str) -> bool:
        return any(name == tag and text in shown for name, shown in self.texts)


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "blue.png"
    Image.new("RGB", (1000, 700), "#0072b2").save(path)
    return path


ROWS: list[tuple[str, float | None, str]] = [
    ("run 10", 9.0, "b"),
    ("run 9", 100.0, "a"),
    ("run 2", None, "b"),
    ("run 1", 10.0, "\u2013"),
    ("run 3", float("nan"), "a"),
    ("run 30", -2.5, "a"),
    ("run 4", float("inf"), ""),
]
ERROR = "top-1 error, percent of all images"


def sample(png: Path) -> Page:
    rows = [
        [Cell(run, note="3 seeds"), Cell(f"{value} %", value, "9 to 11"), Cell(group, kind="good"), Cell("-")]
        for run, value, group in ROWS
    ]
    command = "python launch/two_gpu.py ablation=no_lrn seed=0 'data.root=my photographs'"
    for row in rows:
        row.append(Cell(command, kind="command"))
    table = Table("Errors", ["run", ERROR, "group", "a column that is empty", "command"], rows, "Of seven runs.")
    kinds = Table("Kinds", ["kind", "it"], [[Cell(kind), Cell("x", kind=kind)] for kind in ("good", "bad", "muted")])
    figures = [Figure(f"Picture {i}", png, f"Legend {i}.", f"figures/{i}.csv") for i in range(3)]
    paragraphs = ["A paragraph that is long enough to need several lines on a telephone. " * 3]
    return Page("A report", paragraphs, [Section("One", paragraphs, [table]), Section("Two", [], [kinds], figures)])


def hostile(png: Path) -> Page:
    table = Table(
        HOSTILE,
        [HOSTILE] * 2,
        [[Cell(HOSTILE, 1.0, HOSTILE), Cell(HOSTILE, note=HOSTILE, kind="command")]],
        HOSTILE,
    )
    figure = Figure(HOSTILE, png, HOSTILE, HOSTILE)
    return Page(HOSTILE, [HOSTILE], [Section(HOSTILE, [HOSTILE], [table], [figure])])


def check_escaped(html: str) -> None:
    """Checks that a hostile page has our script and picture alone, no handler, and every text as it was given."""
    reading = Reading(html)
    assert (reading.count("script"), reading.count("style"), reading.count("img")) == (1, 1, 1)
    assert not [name for _, attributes in reading.tags for name in attributes if name.startswith("on")]
    for tag in ("title", "h1", "h2", "p", "a", "caption", "th", "td", "code", "small", "figcaption"):
        assert reading.shows(tag, HOSTILE), tag
    assert [attributes["alt"] for tag, attributes in reading.tags if tag == "img"] == [HOSTILE]


def foreign(html: str) -> list[str]:
    """Addresses in the page that are neither embedded, nor an anchor in it, nor a file beside it."""
    named = [
        value or "" for _, a in Reading(html).tags for key, value in a.items() if key in ("src", "href", "srcset")
    ]
    named += re.findall(r"url\([^)]*\)|@import[^;]*", html)
    return [address for address in named if not re.match(r"data:|#|\./(?!/)", address)]


def test_texts_are_escaped(png: Path) -> None:
    check_escaped(render(hostile(png)))


def test_a_page_that_does_not_escape_is_found(png: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make_environment(**options: Any) -> Environment:
        return Environment(**(options | {"autoescape": False}))

    monkeypatch.setattr(page, "Environment", make_environment)
    with pytest.raises(AssertionError):
        check_escaped(render(hostile(png)))


def test_everything_is_in_the_file(png: Path) -> None:
    html = render(sample(png))
    assert foreign(html) == []
    embedded = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert [base64.b64decode(text) for text in embedded] == [png.read_bytes()] * 3
    wrong = html.replace("</main>", '<img src="https://example.org/a.png"><a href="//example.org">a</a></main>')
    assert foreign(wrong) == ["https://example.org/a.png", "//example.org"]


@pytest.mark.parametrize("data", ["javascript:alert(1)", "https://example.org/a.csv", "a b#c?.csv"])
def test_a_data_file_is_a_path_beside_the_page(png: Path, data: str) -> None:
    html = render(Page("A", [], [Section("B", figures=[Figure("C", png, data=data)])]))
    address = next(a["href"] for tag, a in Reading(html).tags if tag == "a" and (a["href"] or "").startswith("./"))
    assert address is not None
    assert not set(address) & set(":?# ")
    assert foreign(html) == []


def test_structure(png: Path) -> None:
    reading = Reading(render(sample(png)))
    ids = [attributes["id"] for _, attributes in reading.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    inner = {(a["href"] or "")[1:] for tag, a in reading.tags if tag == "a" and (a["href"] or "").startswith("#")}
    assert inner == {"content", "section-1", "section-2", "table-1", "table-2", "figure-1", "figure-2", "figure-3"}
    assert inner <= set(ids)
    assert ("html", {"lang": "en"}) in reading.tags
    scopes = [attributes["scope"] for tag, attributes in reading.tags if tag == "th"]
    assert (scopes.count("col"), scopes.count("row")) == (5 + 2, 7 + 3)
    assert reading.shows("caption", "Table 2. Kinds")
    assert reading.shows("figcaption", "Figure 3. Picture 2.")


def test_bytes_that_are_no_text_can_be_written(png: Path) -> None:
    name = os.fsdecode(b"run-\xff")
    html = render(Page(name, [], [Section("A", figures=[Figure("B", png, data=name)])]))
    assert r"run-\xff" in html.encode("utf-8").decode()


def test_columns_of_numbers() -> None:
    rows = [
        [Cell("a"), Cell("1.5 %", 1.5), Cell("done", 0.0), Cell("1"), Cell("\u2013")],
        [Cell("b"), Cell("\u2013"), Cell("failed", 1.0), Cell("2"), Cell("3", 3.0)],
    ]
    assert Table("A", ["", "", "", "", ""], rows).number_columns() == {1, 4}


def test_what_cannot_be_shown(png: Path, tmp_path: Path) -> None:
    def of(table: list[Table], figures: list[Figure]) -> Page:
        return Page("A", [], [Section("B", [], table, figures)])

    with pytest.raises(ValueError, match=r"row 2 of the table 'T' has 1 cells for 2 heads"):
        render(of([Table("T", ["a", "b"], [[Cell("1"), Cell("2")], [Cell("1")]])], []))
    with pytest.raises(ValueError, match=r"of kind 'ugly'; choose one of"):
        render(of([Table("T", ["a"], [[Cell("1", kind="ugly")]])], []))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"text\.png, which is no PNG"):
        render(of([], [Figure("F", tmp_path / "text.png")]))
    with pytest.raises(FileNotFoundError):
        render(of([], [Figure("F", tmp_path / "none.png")]))


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


class Reader(Visitor):
    """Someone who reads a report."""

    def read(self, html: str) -> None:
        path = self.folder / "page.html"
        path.write_text(html, encoding="utf-8")
        self.open(path)

    def print(self) -> str:
        """A PDF in base 64. Chromium's print service may not be up yet on a loaded machine, and is asked again."""
        from selenium.common.exceptions import WebDriverException

        for _ in range(PRINT_TRIALS - 1):
            try:
                return str(self.browser.print_page())
            except WebDriverException as error:
                if "Printing failed" not in str(error):
                    raise
                time.sleep(1)
        return str(self.browser.print_page())

    def head(self, column: int) -> str:
        return f"#table-1 thead th:nth-child({column}) button"

    def runs(self) -> list[str]:
        """Names of the runs in the first column, from top to bottom."""
        shown = self.ask("[...document.querySelectorAll('#table-1 tbody th > span')].map(e => e.textContent)")
        return [text.removeprefix("run ") for text in shown]

    def orders(self) -> list[str | None]:
        return list(
            self.ask("[...document.querySelectorAll('#table-1 thead th')].map(e => e.getAttribute('aria-sort'))")
        )


@pytest.fixture
def reader(browser: Any, tmp_path: Path) -> Reader:
    return Reader(browser, tmp_path)


def test_numbers_are_sorted_as_numbers_and_back(reader: Reader, png: Path) -> None:
    reader.read(render(sample(png)))
    assert reader.orders() == [None] * 5
    reader.find(reader.head(2)).click()
    assert reader.runs() == ["30", "10", "1", "9", "4", "2", "3"]  # 2 and 3 have no value
    assert reader.orders() == [None, "ascending", None, None, None]
    reader.find(reader.head(2)).click()
    assert reader.runs() == ["4", "9", "1", "10", "30", "2", "3"]
    assert reader.orders() == [None, "descending", None, None, None]


def test_texts_are_sorted_by_the_alphabet_and_ties_stay(reader: Reader, png: Path) -> None:
    reader.read(render(sample(png)))
    reader.find(reader.head(1)).click()
    assert reader.runs() == ["1", "2", "3", "4", "9", "10", "30"]
    reader.find(reader.head(3)).click()
    assert reader.runs() == ["3", "9", "30", "2", "10", "1", "4"]
    reader.find(reader.head(3)).click()
    assert reader.runs() == ["2", "10", "3", "9", "30", "1", "4"]
    reader.find(reader.head(4)).click()  # an empty column changes nothing
    assert reader.runs() == ["2", "10", "3", "9", "30", "1", "4"]


def test_heads_work_from_the_keyboard(reader: Reader, png: Path) -> None:
    reader.read(render(sample(png)))
    reader.focus(reader.head(1))
    reader.press("TAB", "ENTER")
    assert reader.runs()[0] == "30"
    assert reader.ask("document.activeElement.textContent") == ERROR
    assert reader.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    reader.press("SPACE")
    assert reader.runs()[0] == "4"


def test_figures_are_enlarged_from_the_keyboard(reader: Reader, png: Path) -> None:
    reader.read(render(sample(png)))

    def shown() -> str:
        return str(reader.ask("document.querySelector('dialog[open] p').textContent.slice(0, 9)"))

    small = reader.find("#figure-2 img").size["width"]
    reader.focus("#figure-2 button")
    reader.press("ENTER")
    assert shown() == "Figure 2."
    assert reader.find("dialog img").size["width"] > 1.3 * small
    assert reader.find("dialog img").get_attribute("alt") == "Picture 1"
    reader.press("ARROW_RIGHT")
    assert shown() == "Figure 3."
    reader.press("ARROW_RIGHT")
    assert shown() == "Figure 1."
    reader.press("ARROW_LEFT")
    assert shown() == "Figure 3."
    reader.press("ESCAPE")
    assert not reader.ask("document.querySelector('dialog').open")
    assert reader.ask("document.activeElement.closest('figure').id") == "figure-2"
    reader.find("#figure-1 button").click()
    assert shown() == "Figure 1."
    reader.find("dialog img").click()
    assert not reader.ask("document.querySelector('dialog').open")


def test_a_command_is_copied(reader: Reader, png: Path) -> None:
    reader.read(render(sample(png)))
    reader.devtools("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    button = reader.find("#table-1 tbody tr:nth-child(2) .copy")
    button.click()
    copied = reader.browser.execute_async_script(
        "const [done] = arguments; navigator.clipboard.readText().then(done, e => done(String(e)))"
    )
    assert copied == "python launch/two_gpu.py ablation=no_lrn seed=0 'data.root=my photographs'"
    assert button.text == "copied"


def test_a_telephone_scrolls_tables_and_not_the_page(reader: Reader, png: Path) -> None:
    reader.window(360, 740)
    html = render(sample(png))
    reader.read(html)
    assert reader.overflow() == 0
    table = reader.find("#table-1")
    assert reader.ask("arguments[0].scrollWidth - arguments[0].clientWidth", table) > 100
    cells = "[...document.querySelector('#table-1 tbody tr').cells].slice(0, 2)"
    before = reader.ask(f"{cells}.map(e => e.getBoundingClientRect().left)")
    reader.ask("arguments[0].scrollLeft = 90", table)
    after = reader.ask(f"{cells}.map(e => e.getBoundingClientRect().left)")
    assert after == pytest.approx([before[0], before[1] - 90])
    reader.read(html.replace("</main>", '<img width="900" height="9" src="data:," alt=""></main>'))
    assert reader.overflow() > 400


def test_a_table_that_goes_on_says_so(reader: Reader, png: Path) -> None:
    reader.window(360, 740)
    reader.read(render(sample(png)))
    hint = "[...document.querySelectorAll('#table-1 .scrolls')].map(e => e.textContent)"
    assert reader.ask(hint) == ["scroll for more →"]
    reader.window(1280, 800)
    for _ in range(50):  # the event of the new width may be late
        if reader.ask(hint) == []:
            break
        time.sleep(0.1)
    assert reader.ask(hint) == [], "where all of it is seen there is nothing to say"


def test_white_pictures_are_dimmed_in_the_dark(reader: Reader, png: Path) -> None:
    reader.read(render(sample(png)))
    style = "getComputedStyle(document.querySelector('figure img')).filter"
    assert reader.ask(style) == "none"
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    reader.devtools("Emulation.setEmulatedMedia", media="screen", features=dark)
    assert "brightness" in reader.ask(style)


def test_print(reader: Reader, png: Path) -> None:
    reader.devtools(
        "Emulation.setEmulatedMedia", media="", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    reader.read(render(sample(png)))
    pdf = base64.b64decode(reader.print())
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) in (3, 4)
    reader.devtools("Emulation.setEmulatedMedia", media="print", features=[])
    style = "getComputedStyle(document.querySelector(arguments[0]))"
    assert reader.ask(f"[{style}.color, {style}.backgroundColor]", "body") == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    assert reader.ask(f"{style}.display", ".copy") == "none"
    assert reader.ask(f"{style}.breakInside", "figure") == "avoid"
    assert reader.ask(f"{style}.breakInside", "table") == "auto"
    assert reader.ask(f"{style}.overflowX", ".table") == "visible"


def test_without_javascript_everything_is_there(reader: Reader, png: Path) -> None:
    reader.devtools("Emulation.setScriptExecutionDisabled", value=True)
    reader.read(render(sample(png)))
    assert reader.ask("document.querySelectorAll('button, dialog').length") == 0
    assert reader.find("#table-1 thead th:nth-child(2)").text == ERROR
    assert reader.runs() == [run.removeprefix("run ") for run, _, _ in ROWS]
    assert reader.find("#table-1 tbody").is_displayed()
    for number in (1, 2, 3):
        assert reader.find(f"#figure-{number} img").size["width"] > 300


def test_nothing_is_requested(reader: Reader, png: Path) -> None:
    reader.read(render(sample(png)))
    reader.find("#figure-1 button").click()
    assert reader.requested() == []
    wrong = '<!DOCTYPE html><title>A</title><img src="http://127.0.0.1:9/a.png">'
    reader.read(wrong)
    assert reader.requested() == ["http://127.0.0.1:9/a.png"]


def test_texts_do_not_run(reader: Reader, png: Path) -> None:
    # The page's own policy is removed, so that the escapes alone are on trial.
    html = re.sub(r"<meta http-equiv[^>]*>", "", render(hostile(png)))
    reader.read(html)
    assert reader.ask("[document.title, window.taken ?? null]") == [HOSTILE, None]
    reader.read(html.replace("</main>", "<script>window.taken = 1</script></main>"))
    assert reader.ask("window.taken") == 1


def test_the_policy_stops_a_script_that_is_not_the_pages(reader: Reader, png: Path) -> None:
    reader.read(render(sample(png)).replace("</main>", "<script>window.taken = 1</script></main>"))
    assert reader.ask("window.taken ?? null") is None
    assert reader.ask("document.querySelectorAll('.sort').length") == 7  # the page's own script has run


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(reader: Reader, png: Path, scheme: str) -> None:
    """Every contrast is at least 4.5, which WCAG 2.2 (AA) asks for."""
    reader.devtools(
        "Emulation.setEmulatedMedia", media="", features=[{"name": "prefers-color-scheme", "value": scheme}]
    )
    html = render(sample(png))
    reader.read(html)
    assert (sum(numbers_of(reader.ask("getComputedStyle(document.body).backgroundColor"))) < 150) == (
        scheme == "dark"
    )
    contrasts = reader.contrasts(TEXTS)
    assert len(contrasts) > 50
    assert [contrast for contrast in contrasts if contrast[0] < 4.5] == []
    assert (
        reader.ask("getComputedStyle(document.querySelector('figure img')).backgroundColor") == "rgb(255, 255, 255)"
    )
    reader.read(re.sub(r"<meta http-equiv[^>]*>", "", html).replace("</style>", "small { color: #808080 }</style>"))
    assert [contrast for contrast in reader.contrasts(TEXTS) if contrast[0] < 4.5]


def numbers_of(colour: str) -> list[float]:
    return [float(number) for number in re.findall(r"[\d.]+", colour)]
