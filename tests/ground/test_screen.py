"""Tables are as wide as needed: the names by which rows differ are never cut, even in a pipe of 80 columns."""

from pathlib import Path

import pytest
from rich.table import Table

from twotower.ground.screen import print_table
from twotower.training.sweep import Job, Sweep

NAME = "sweeps/folder-ablation-learning_rate-seed-8b6b12/ablation=no_overlap,optim.learning_rate=0.00{},seed=0"


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_long_names_stand_whole_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("model", "top-1\nerror, %", "what became of it")
    for number in (1, 2):
        table.add_row(NAME.format(number), f"{number}.00", "finished, as far as that can be said")
    print_table(table, f"runs in {NAME * 2}")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"runs in {NAME * 2}"
    for number in (1, 2):
        (line,) = [line for line in lines[1:] if NAME.format(number) in line]
        assert f"{number}.00" in line
        assert "finished, as far as that can be said" in line


def test_brackets_and_colons_are_part_of_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    """rich takes [bold] for a style and :cat: for an emoji, so a layer's name in brackets would vanish."""
    table = Table("job")
    table.add_row("initial_weights.layers=[conv1],notes=[/x] :cat:")
    print_table(table, "runs in [red]a[/red]")
    printed = capsys.readouterr().out
    assert "initial_weights.layers=[conv1],notes=[/x] :cat:" in printed
    assert "runs in [red]a[/red]" in printed


def test_a_small_table_stays_small(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(Table("a", "b"))
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) < 20


def test_the_jobs_of_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["ablation=no_overlap_plain,optim.learning_rate=0.005,seed=0", "ablation=none,seed=1"]
    Sweep("trial", [Job(name, tmp_path / name) for name in names]).print_table()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"runs in {tmp_path}", "what all have in common stands once"
    assert all(sum(name in line and "unfinished" in line for line in lines) == 1 for name in names)
