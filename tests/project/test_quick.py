"""`make quick` leaves out slow tests, and still says something about every room."""

import subprocess
import sys
from collections import Counter

from helpers.paths import ROOT
from helpers.slow_tests import SLOW_FILES


def test_files_that_are_left_out_exist() -> None:
    missing = [
        f"{room}/{name}.py"
        for room, names in SLOW_FILES.items()
        for name in names
        if not (ROOT / "tests" / room / f"{name}.py").exists()
    ]
    assert missing == []


def test_quick_tests_every_room() -> None:
    assert '-m "not slow and not gpu"' in (ROOT / "Makefile").read_text()
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "not slow and not gpu", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    selected = Counter(line.split("/")[1] for line in done.stdout.splitlines() if "::" in line)
    rooms = {path.name for path in (ROOT / "tests").iterdir() if list(path.glob("test_*.py"))}
    assert len(rooms) >= 13
    assert {room for room in rooms if selected[room] < 3} == set()
    assert sum(selected.values()) > 500
