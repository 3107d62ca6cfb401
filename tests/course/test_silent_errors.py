"""Each silent error leaves a loss that falls, and a check of the project finds it; the page has what comes out."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.course import import_course
from helpers.paths import ROOT
from helpers.processes import run_processes

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


@pytest.mark.timeout(600)
def test_every_error_is_caught(rows: list, catch: ModuleType) -> None:
    """By tests of the project that fail, or by what it says while it trains. Without an error none does."""
    right, *wrong = rows
    assert right.error is None
    assert right.caught_by == []
    assert len(wrong) == len(catch.ERRORS) >= 24
    assert [row.error.name for row in wrong if not row.caught_by] == []
    for check in catch.CHECKS:
        assert any(row.caught_by == [check] for row in wrong) or check in ("logits", "gradients"), check


def test_every_loss_falls(rows: list) -> None:
    """That is what makes them silent."""
    assert [row.error for row in rows if not row.losses[1] < 0.95 * row.losses[0]] == []


def test_four_errors_leave_the_loss_alone(rows: list) -> None:
    """As the page says; all others change what is learned."""
    right, *wrong = rows
    alike = [row.error.name for row in wrong if row.losses == right.losses]
    assert alike == ["both_send_first", "other_order", "test_not_scaled", "one_step_more"]
    assert "Four errors leave each loss as it was" in PAGE.read_text()


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
    assert f"after five updates finds {found['updates']}." in text


def test_the_page_names_the_tests_that_are_asked(catch: ModuleType) -> None:
    text = PAGE.read_text()
    asked = [*catch.PAIR_TESTS.values(), *catch.DRAW_TESTS]
    assert [test.__name__ for test in asked if f"`{test.__name__}`" not in text] == []


def slice_and_drop(world: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """First gradients with the request dropped, and with an all-gather whose backward takes the own slice."""
    import test_exchange as pair

    from silent_errors import ERRORS, put_in

    with ExitStack() as stack:
        put_in(stack, next(error for error in ERRORS if error.name == "no_gradient_back"), world)
        dropped = pair.train_case(world, "alexnet").gradients[0]
    images, labels = pair.batch()
    settings = ("alexnet", pair.SMALL, pair.CLASSES, images.double(), labels, pair.RATES)
    return dropped, pair.train_tower(world, *settings, kind="slicing").gradients[0]


@pytest.mark.usefixtures("catch")
def test_no_gradient_back_is_sliced_instead_of_summed(tmp_path: Path) -> None:
    """One error under two names: what the request would have brought is what lies outside of the own slice."""
    for dropped, sliced in run_processes(slice_and_drop, tmp_path).values():
        assert len(dropped) == len(sliced) > 15
        assert all(torch.equal(dropped[name], sliced[name]) for name in dropped)
