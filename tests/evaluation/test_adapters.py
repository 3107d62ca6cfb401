"""The block of docs/python.md on other libraries, with the libraries: what they return is what `activations` returns.

Each is skipped where it is not installed; CONTRIBUTING.md says how to install them. None needs the network.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.adapters import load_torchvision, need, run_examples
from helpers.commands import command, finish
from twotower.weights.identify import TITLES

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder, with a photograph and a folder of five more."""
    root = tmp_path_factory.mktemp("adapters")
    places = [root / "photograph.jpg", *(root / "images" / "a" / f"{number}.png" for number in range(5))]
    for number, place in enumerate(places):
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (260 + number, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield root


@pytest.fixture(scope="module")
def examples(folder: Path) -> dict[str, Any]:
    return run_examples()


def assert_same(values: Any, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(values), wanted, rtol=1e-4, atol=1e-4)
    assert wanted.abs().max() > 1e-2


def test_torchvision_extracts_features(folder: Path, examples: dict[str, Any]) -> None:
    load_torchvision()
    found = examples["with_torchvision"](folder / "photograph.jpg")
    assert list(found) == ["conv2.sum", "conv2.lrn", "fc7"]
    for name, wanted in examples["network"].activations(folder / "photograph.jpg", list(found)).items():
        assert_same(found[name], wanted)


def test_timm_transforms_and_hooks(folder: Path, examples: dict[str, Any]) -> None:
    """On a square of the network's size, which timm and this project cut in the same way."""
    need("timm")
    load_torchvision()
    network = examples["network"]
    pixels = np.asarray(Image.open(folder / "photograph.jpg"))[: network.size, : network.size]
    logits, maps = examples["with_timm"](Image.fromarray(pixels))
    torch.testing.assert_close(logits, network.logits(pixels), rtol=1e-3, atol=1e-3)
    for values, wanted in zip(maps, network.activations(pixels, ["conv2", "conv5"]).values(), strict=True):
        torch.testing.assert_close(values, wanted, rtol=1e-3, atol=1e-3)
    # The convention itself, which needs no timm.
    both = network.activations(folder / "photograph.jpg", ["conv5", "fc7"])
    assert_same(examples["maps"].detach(), both["conv5"])
    assert_same(examples["units"].detach(), both["fc7"])


def test_thingsvision_extracts_features(
    folder: Path, examples: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    need("thingsvision", "tensorflow", "timm", "torchtyping")
    load_torchvision()
    monkeypatch.setattr(np, "AxisError", None, raising=False)  # what the example puts there goes again
    found = examples["with_thingsvision"](str(folder / "images"))
    files = (folder / "names" / "file_names.txt").read_text().split()
    assert [Path(file).name for file in files] == [f"{number}.png" for number in range(5)]
    assert_same(found, examples["network"].activations(files, "conv2")["conv2"])
    assert np.abs(found[1] - found[0]).max() > 1e-2, "the images make no difference"


def test_torchvisions_own_network_is_identified(tmp_path: Path) -> None:
    """From PyPI's package, with weights as it draws them, which nothing downloads."""
    load_torchvision()
    from torchvision.models import alexnet

    torch.manual_seed(0)
    torch.save(alexnet().state_dict(), tmp_path / "weights.pth")
    status, output = finish(command("weights.pth", cwd=tmp_path, script="identify.py"))
    assert status == 0, output
    assert f"weights.pth: {TITLES['torchvision_alexnet']}, width 1, 1,000 classes" in output
    assert "look untrained" in output
