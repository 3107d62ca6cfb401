"""Each silent error leaves a loss that falls, and a check of the project finds it; the page has what comes out."""

import importlib.util
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from helpers.course import import_course
from helpers.paths import ROOT

PAGE = ROOT / "course" / "README.md"


@pytest.fixture(scope="module")
def catch() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        import_course(patch)
        import catch

        yield catch


@pytest.fixture(scope="module")
def rows(catch: ModuleType) -> list:
    """One pair of processes goes through all errors; swaps have a time-out, and so have the processes."""
    return catch.catch_all()


def read_table(text: str) -> list[list[str]]:
    lines = text.split("<!-- table: silent errors -->\n")[1].split("<!-- end -->")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.timeout(480)
def test_every_error_is_caught(rows: list, catch: ModuleType) -> None:
    """And without an error no check says anything."""
    right, *wrong = rows
    assert right.error is None
    assert right.caught_by == []
    assert len(wrong) == len(catch.ERRORS) >= 20
    assert [row.error.name for row in wrong if not row.caught_by] == []
    for check in catch.CHECKS:
        assert any(row.caught_by == [check] for row in wrong) or check in ("logits", "gradients", "images"), check


def test_every_loss_falls(rows: list) -> None:
    """That is what makes them silent."""
    assert [row.error for row in rows if not row.losses[1] < 0.95 * row.losses[0]] == []


def test_the_page_has_this_table(rows: list, catch: ModuleType) -> None:
    """`python course/catch.py` writes it anew. Losses may differ by what sums in another order make of them."""
    text = PAGE.read_text()
    found, shown = read_table(catch.fill_table(text, rows)), read_table(text)
    assert [line[:1] + line[3:] for line in found] == [line[:1] + line[3:] for line in shown]
    for ours, theirs in zip(found[2:], shown[2:], strict=True):
        assert [float(loss) for loss in ours[1:3]] == pytest.approx([float(loss) for loss in theirs[1:3]], abs=0.05)


def test_the_page_explains_each_check(catch: ModuleType) -> None:
    explained = re.findall(r"^\| ([a-z ]+) \| [^|]+ \| [^|]+ \|$", PAGE.read_text(), re.MULTILINE)
    assert [check for check in explained if check in catch.CHECKS] == list(catch.CHECKS)


def test_the_page_counts_what_its_table_shows() -> None:
    """How many of the errors two of the checks find."""
    text = PAGE.read_text()
    head, _, _, *errors = read_table(text)
    found = {check: sum(row[head.index(check)] == "x" for row in errors) for check in ("gradients", "updates")}
    assert f"That finds {found['gradients']} of the {len(errors)} errors" in text
    assert f"after three updates finds {found['updates']}." in text


def load_tests(room: str, name: str) -> ModuleType:
    path = Path(__file__).parent.parent / room / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_of_the_project", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("error", "room", "file", "test"),
    [
        ("weights_alike", "model", "test_network", "test_initial_weights_come_from_their_streams"),
        ("one_mask_for_both", "model", "test_layers", "test_dropout_masks_come_from_their_streams"),
        ("mask_of_step_0", "model", "test_layers", "test_dropout_masks_come_from_their_streams"),
    ],
)
def test_what_no_comparison_tells_the_projects_tests_do(
    catch: ModuleType, error: str, room: str, file: str, test: str
) -> None:
    """The check `draws` stands for these tests, which fail with the error; without it they pass, elsewhere."""
    from silent_errors import ERRORS, put_in

    run = getattr(load_tests(room, file), test)
    with ExitStack() as stack:
        put_in(stack, next(one for one in ERRORS if one.name == error), SimpleNamespace(tower=0))
        with pytest.raises(AssertionError):
            run()
