"""Counts in singular and plural, epochs with sensible digits, durations, names without their common beginning."""

import re
from pathlib import Path

import pytest

from helpers.paths import ROOT
from twotower.ground.wording import counted, counted_epochs, epochs_done, format_duration, split_common


def test_one_is_singular_and_everything_else_plural() -> None:
    assert [counted(number, "epoch") for number in (0, 1, 2, 12_800)] == [
        "0 epochs",
        "1 epoch",
        "2 epochs",
        "12,800 epochs",
    ]
    assert [counted(number, "class", "classes") for number in (1, 3)] == ["1 class", "3 classes"]


@pytest.mark.parametrize(
    ("epochs", "shown"),
    [
        (4.0, "4"),
        (0.01695, "0.017"),
        (0.5454, "0.55"),
        (3.5, "3.5"),
        (90.0, "90"),
        (12.249, "12.25"),
        (0.0004, "0.0004"),
    ],
)
def test_parts_of_an_epoch(epochs: float, shown: str) -> None:
    assert epochs_done(epochs) == shown
    assert counted_epochs(epochs) == f"{shown} epochs"
    assert counted_epochs(1.0) == "1 epoch"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.4, "0 s"),
        (40, "40 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7530, "2 h 06 min"),
        (47 * 3600, "47 h 00 min"),
        (100 * 3600, "4 d 04 h"),
    ],
)
def test_durations_have_their_two_largest_units(seconds: float, shown: str) -> None:
    assert format_duration(seconds) == shown


def test_names_without_what_they_have_in_common() -> None:
    paths = [Path("sweeps/a/seed=0"), Path("sweeps/a/seed=1")]
    assert split_common(paths) == ("sweeps/a", ["seed=0", "seed=1"])
    assert split_common([Path("runs/a"), Path("sweeps/a")]) == ("", ["runs/a", "sweeps/a"])
    assert split_common([Path("runs/a")]) == ("runs", ["a"])
    assert split_common([Path("a"), Path("a/b")]) == ("", ["a", "a/b"])
    assert split_common([Path("/x/a"), Path("/x/a")]) == ("/x", ["a", "a"])


def test_no_text_counts_by_itself() -> None:
    """An f-string such as f"{len(runs)} runs" would say "1 runs" one day; `counted` does not."""
    nouns = "epoch|step|run|shard|reject|thread|seed|core|replica"
    pattern = re.compile(
        rf"\{{(?:len\([^{{}}]*\)|[^{{}}]*(?:count|num_\w+|steps|epochs|total|threads)\w*)\}} (?:{nouns})s\b"
    )
    sources = [*(ROOT / "src").rglob("*.py"), *(ROOT / "launch").glob("*.py")]
    assert len(sources) > 60
    found = [
        f"{path.name}: {line.strip()}"
        for path in sources
        for line in path.read_text().splitlines()
        # Lines that have only a plural: they have compared the count with 1 just before.
        if pattern.search(line) and " > 1 " not in line
    ]
    assert pattern.search('f"{len(runs)} runs in"')
    assert pattern.search('f"{trainer.total_steps} steps of"')
    assert not found
