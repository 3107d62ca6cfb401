"""The notebook runs from top to bottom, and is stored without what it shows."""

import json

import nbformat
import pytest
from nbclient import NotebookClient

from helpers.paths import ROOT

FILE = ROOT / "course" / "notebook.ipynb"


@pytest.fixture(scope="module")
def stored() -> nbformat.NotebookNode:
    return nbformat.read(FILE, as_version=4)


def test_it_is_small_and_without_output(stored: nbformat.NotebookNode) -> None:
    assert FILE.stat().st_size < 20_000
    nbformat.validate(stored)
    cells = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert len(cells) >= 5
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    assert set(json.loads(FILE.read_text())["metadata"]) == {"kernelspec", "language_info"}


def test_it_runs_from_top_to_bottom(stored: nbformat.NotebookNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel of its own on loopback, which ends with it; each cell has a time-out, and so has the test."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MPLBACKEND", raising=False)
    client = NotebookClient(
        stored, timeout=120, startup_timeout=120, kernel_name="python3", resources={"metadata": {"path": FILE.parent}}
    )
    client.create_kernel_manager()
    assert client.km.ip == "127.0.0.1"
    client.execute()
    outputs = [output for cell in stored.cells for output in cell.get("outputs", [])]
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "tower 0 has [[1.0, 2.0]] and reads [[30.0, 40.0]] from the other one" in said
    assert "tower 0: 1 of its own + 5 from the other tower = [[6.0, 6.0]]" in said
    assert "tower 1: 3 of its own + 2 from the other tower = [[5.0, 5.0]]" in said
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
