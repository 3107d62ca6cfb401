"""Other libraries, which may not be installed, and what docs/python.md shows of them."""

import importlib
import re
import sys
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch

from helpers.paths import ROOT


@cache
def _declare_operators() -> torch.library.Library:
    """Two of torchvision's operators, which importing it takes for granted; nothing here calls them."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def load_torchvision() -> ModuleType:
    """torchvision, also PyPI's beside torch's build for CPUs, where its own operators cannot be loaded.

    Or the test is skipped, with the reason.
    """
    need("torchvision")
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _declare_operators()
    return importlib.import_module("torchvision")


def need(*names: str) -> None:
    """Skips the test, with the reason, unless all of these are installed."""
    for name in names:
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


def run_examples() -> dict[str, Any]:
    """What the page's block on other libraries defines; it reads photograph.jpg in the current folder."""
    text = (ROOT / "docs" / "python.md").read_text()
    found = re.search(r"## With other libraries\n.*?```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {}
    exec(compile(found[1], "python.md", "exec"), names)
    return names
