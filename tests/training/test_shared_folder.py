"""Towers without a common disk are told before the first step; a node that keeps no run leaves a note of who does."""

from pathlib import Path
from typing import Any

from helpers.processes import run_processes
from twotower.training.shared_folder import check_folder_is_shared


def look(world: Any, folders: list[Path]) -> str:
    try:
        check_folder_is_shared(folders[world.rank], world, 0.5)
    except ValueError as error:
        return str(error)
    return "shared"


def test_one_folder_for_all(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    assert run_processes(look, tmp_path / "meet", [run_dir] * 2) == {0: "shared", 1: "shared"}
    assert not list(run_dir.iterdir())


def test_a_folder_of_the_same_name_on_another_disk_is_refused(tmp_path: Path) -> None:
    folders = [tmp_path / "disk0", tmp_path / "disk1"]
    for folder in folders:
        folder.mkdir()
    said = run_processes(look, tmp_path / "meet", folders)
    for rank, folder in enumerate(folders):
        assert said[rank].startswith(f"rank 1 cannot see {folder}, where rank 0 keeps the run;")
        assert "run_dir=DIR on a file system that their machines share" in said[rank]
        assert not list(folder.iterdir())
