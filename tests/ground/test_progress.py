"""Progress without a terminal: lines that make sense in a log, and a time left that is not that of warming up."""

import pytest
from rich.console import Console

from twotower.ground.progress import Meter, metered


def test_a_plain_line_of_progress_makes_sense_where_the_total_is_unknown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("twotower.ground.progress.PLAIN_LINE_SECONDS", 0.0)
    # The ten seconds before the first piece is done, in which processes start, do not count for the rate.
    now = iter([0.0, 10.0, 20.0, 0.0, 10.0, 20.0, 210.0])
    monkeypatch.setattr("twotower.ground.progress.time.monotonic", lambda: next(now))
    listing = Meter("listing", 0)
    listing.advance(500)
    listing.advance(500)
    converting = Meter("converting", 10_000)
    converting.advance(500)
    converting.advance(500)
    converting.advance(9_000)
    assert capsys.readouterr().out.splitlines() == [
        "listing: 500 images",
        "listing: 1,000 images, 50/s",
        "converting: 500 of 10,000 images",
        "converting: 1,000 of 10,000 images, 50/s, 3 min 00 s left",
        "converting: 10,000 of 10,000 images, 48/s",
    ]


def test_lines_come_ten_seconds_apart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = iter([0.0, 4.0, 11.0, 12.0, 22.0])
    monkeypatch.setattr("twotower.ground.progress.time.monotonic", lambda: next(now))
    meter = Meter("training", 100, "steps")
    for step in (10, 20, 30, 40):
        meter.reach(step, f"loss {step}")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(", ")[0] for line in lines] == ["training: 20 of 100 steps", "training: 40 of 100 steps"]
    assert lines[1] == "training: 40 of 100 steps, loss 40, 36 s left", "30 steps took 18 seconds"


def test_a_silent_meter_prints_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("twotower.ground.progress.PLAIN_LINE_SECONDS", 0.0)
    for silent in (True, False):
        with metered("converting", 10, silent=silent) as meter:
            meter.advance(5)
        assert capsys.readouterr().out == ("" if silent else "converting: 5 of 10 images\n")


def test_a_terminal_gets_a_bar_that_goes_when_the_work_ends() -> None:
    console = Console(force_terminal=True, width=100, record=True)
    meter = Meter("converting", 10, console=console)
    meter.advance(5)
    console.print("a line that stays")
    meter.close()
    shown = console.export_text()
    assert "converting" in shown
    assert "5/10" in shown
    assert "a line that stays" in shown
