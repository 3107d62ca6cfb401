"""README and docs: short, complete, and what follows from the code is as the code has it."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.paths import ROOT
from twotower.config import DescribeConfig
from twotower.config.presets import preset
from twotower.figures.figure2 import draw_figure2
from twotower.model.layer_numbers import describe

OUTSIDE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in OUTSIDE), *sorted((ROOT / "docs").glob("*.md")), ROOT / "course" / "README.md"]
LINK = re.compile(r"\]\(([^)#]+)\)|src(?:set)?=\"([^\"]+)\"")
TESTS = sorted((ROOT / "tests").glob("*/test_*.py"))
TABLES = runpy.run_path(str(ROOT / "docs" / "tables.py"))


def test_the_readme_is_a_front_door() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    order = [
        "figure2-light.svg",
        "| forward |",
        "make train",
        "## Results",
        "```python",
        "## Dive into the code",
        "## Limits",
    ]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(page: Path) -> None:
    found = [first or second for first, second in LINK.findall(page.read_text())]
    local = [link for link in found if not link.startswith("http")]
    assert [link for link in local if not (page.parent / link).exists()] == []
    if page.stem in ("README", "data", "sweeps"):
        assert local or page.stem != "README"


def test_the_index_names_every_page() -> None:
    text = (ROOT / "docs" / "README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert len(pages) >= 12
    assert {page for page in pages if f"({page})" not in text} == set()


@pytest.mark.parametrize("name", ["clusters", "data", "lines", "networks", "training"])
def test_tables_are_those_of_conf(name: str) -> None:
    """python docs/tables.py writes them anew."""
    text = (ROOT / "docs" / f"{name}.md").read_text()
    assert "<!-- table: " in text
    assert TABLES["fill_tables"](text) == text, "stale: run python docs/tables.py"


def test_a_stale_table_is_noticed() -> None:
    text = (ROOT / "docs" / "networks.md").read_text()
    stale = text.replace("60,965,224", "60,965,225", 1)
    assert stale != text
    assert TABLES["fill_tables"](stale) == text


LINES = runpy.run_path(str(ROOT / "docs" / "lines_2012.py"))


def test_every_line_of_2012_is_here_as_it_was() -> None:
    """But for what is named as otherwise; and the paper's network is another one."""
    lines = LINES["read_lines"]()
    assert sum(line.towers for line in lines) == 350, "layers-145.cfg and layer-params-145.cfg have so many"
    otherwise = {line for line in lines if LINES["answer"](line)[0] != LINES["translate"](line)}
    assert {(line.section, line.key) for line in otherwise if line.key != "partialSum"} == {
        ("fc1000", "gpu"),
        ("logprob", "gpu"),
    }
    assert len(otherwise) == 7
    paper = preset("alexnet")
    there = [line for line in lines if line.section in LINES["PLACES"] and line.key not in LINES["TRAINING"]]
    there = [line for line in there if line.key != "wball" and line not in otherwise]
    assert {
        (line.section, line.key) for line in there if LINES["describe"](line, paper) != LINES["translate"](line)
    } >= {
        *(("conv3a", "initW"), ("rnorm1a", "scale"), ("rnorm1a", "inputs"), ("pool1a", "neuron"), ("cnorm2a", "size"))
    }


def test_every_line_of_2012_names_a_test_that_is_there() -> None:
    named = {LINES["find_test"](line) for line in LINES["read_lines"]() if line.key != "partialSum"}
    assert len(named) >= 15
    for test in named:
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE), test


@pytest.mark.parametrize("page", ["SECURITY.md", "docs/reliability.md"])
def test_what_is_said_of_security_and_reliability_is_tested(page: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / page).read_text()))
    written = {name for path in TESTS for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)}
    assert len(named) >= {"SECURITY.md": 20, "docs/reliability.md": 5}[page]
    assert named - written == set()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_figure_2_is_what_the_command_draws(tmp_path: Path, theme: str) -> None:
    """python launch/describe.py network=alexnet_2012 output=docs/images/figure2-dark.svg theme=dark

    Coordinates and colours are compared, not the outlines of letters, which come with matplotlib's fonts.
    """
    settings = DescribeConfig()
    network = preset("alexnet_2012")
    layers = describe(network, settings.num_classes, settings.batch_size)
    draw_figure2(layers, network.name, network.image_size, settings.batch_size, tmp_path / "it.svg", theme)

    def structure(text: str) -> list[str]:
        return re.findall(r"<!-- (.*?) -->|fill: (#[0-9a-f]{6})", text)

    drawn, stored = ((path.read_text()) for path in (tmp_path / "it.svg", ROOT / f"docs/images/figure2-{theme}.svg"))
    assert len(structure(drawn)) > 50
    assert structure(drawn) == structure(stored)
    other = (ROOT / f"docs/images/figure2-{'light' if theme == 'dark' else 'dark'}.svg").read_text()
    assert structure(drawn) != structure(other)


def test_pages_speak_of_no_machine() -> None:
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(?:home|root|work|tmp|opt)/", page.read_text()), page


YAMLS = [
    *sorted((ROOT / ".github").rglob("*.yml")),
    ROOT / "CITATION.cff",
    ROOT / ".pre-commit-config.yaml",
    ROOT / "environment.yml",
]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.name)
def test_yamls_of_the_habits_parse(path: Path) -> None:
    content: Any = yaml.safe_load(path.read_text())
    assert isinstance(content, dict)
    assert len(YAMLS) >= 6
    if path.name == "CITATION.cff":
        assert {"cff-version", "message", "title", "authors", "version", "references"} <= content.keys()
        assert content["references"][0]["year"] == 2012
    if path.name == "test.yml":
        steps = [step.get("run", "") for job in content["jobs"].values() for step in job["steps"]]
        assert any("make test" in step for step in steps)
        assert any("make quick" in step for step in steps)
        assert any("tests/evaluation/test_adapters.py" in step for step in steps)
