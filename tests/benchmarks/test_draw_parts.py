"""The picture of a step's parts."""

from pathlib import Path

import pytest

from twotower.benchmarks.draw_parts import draw_parts, list_bars

PARTS = {
    "fp32": {
        "step: conv1": 200.0,
        "step: other": 50.0,
        "step: exchange": 2.0,
        "floor: conv1": 190.0,
        "update alone": 9.0,
    },
    "bf16": {"step: conv1": 100.0},
}


def test_each_bar_has_its_own_parts() -> None:
    assert list_bars(PARTS) == [
        ("step, fp32", [("conv1", 200.0), ("other", 50.0), ("exchange", 2.0)]),
        ("floor, fp32", [("conv1", 190.0)]),
        ("step, bf16", [("conv1", 100.0)]),
    ]


def test_the_picture_says_how_long_each_takes(tmp_path: Path) -> None:
    path = tmp_path / "parts.svg"
    draw_parts(PARTS, path)
    text = path.read_text()
    for words in ("step, fp32", "floor, fp32", "step, bf16", "252 ms", "190 ms", "100 ms"):
        assert f"<!-- {words} -->" in text


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        draw_parts(PARTS, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no"):
        draw_parts(PARTS, tmp_path / "no" / "parts.svg")
