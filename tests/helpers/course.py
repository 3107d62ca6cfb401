"""The folder course/, whose files import each other by their bare names."""

import sys

import pytest

from helpers.paths import ROOT


def import_course(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a test import the course's files, and forgets them afterwards."""
    monkeypatch.syspath_prepend(str(ROOT / "course"))
    for name in ("exchange", "grade", "catch", "silent_errors", "grading"):
        for loaded in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
            monkeypatch.delitem(sys.modules, loaded)
