"""Fixtures that several rooms share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from helpers.commands import draw_images


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 + 7 noisy images of three colours, as a folder to train on."""
    return draw_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Of torch, for a module: more of them only wait for each other on small networks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
