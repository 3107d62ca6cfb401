"""What README and docs show of Python runs as it stands there; so do torch.hub and a wheel elsewhere."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.paths import ROOT

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [(path, number, text) for path in PAGES for number, text in enumerate(BLOCK.findall(path.read_text()))]


def test_the_page_on_python_has_examples() -> None:
    assert len([path for path, _, _ in BLOCKS if path.name == "python.md"]) >= 4


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("path", "number", "text"), BLOCKS, ids=[f"{path.stem}-{n}" for path, n, _ in BLOCKS])
def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path, number: int, text: str) -> None:
    """In a folder with a photograph, and with hubconf.py as in the checkout."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photograph.jpg")
    (tmp_path / "hubconf.py").write_text((ROOT / "hubconf.py").read_text())
    monkeypatch.chdir(tmp_path)
    exec(compile(text, f"{path.name}[{number}]", "exec"), {})


def test_importing_it_is_light_and_names_are_there() -> None:
    script = (
        "import sys, twotower; assert 'torch' not in sys.modules; "
        "assert all(hasattr(twotower, name) for name in dir(twotower)); print(*dir(twotower))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert {"TrainedNetwork", "build_network", "load_network", "forward", "__version__"} <= set(done.stdout.split())


def test_an_unknown_name_is_told() -> None:
    import twotower

    with pytest.raises(AttributeError, match=r"twotower has no load; it has .*load_network"):
        _ = twotower.load


@pytest.mark.usefixtures("one_thread")
def test_torch_hub_builds_and_loads() -> None:
    options = {"num_classes": 5, "width": 0.125, "source": "local", "trust_repo": True, "device": "cpu"}
    network = torch.hub.load(str(ROOT), "build_network", "one_tower", **options)
    assert network.logits(np.zeros((1, 300, 300, 3), np.uint8)).shape == (1, 5)
    for name, num_towers in (("alexnet", 2), ("alexnet_2012", 2), ("one_tower", 1)):
        network = torch.hub.load(str(ROOT), name, **options)
        assert len(network.towers) == num_towers
        assert network.title == f"{name}, untrained"
    with pytest.raises(ValueError, match="nowhere does not exist"):
        torch.hub.load(str(ROOT), "load_network", "nowhere", source="local", trust_repo=True)


def test_a_wheel_works_outside_of_the_checkout(tmp_path: Path) -> None:
    """conf/ is inside it. Unpacked, as pip does, and used from another folder."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, capture_output=True, timeout=120, check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        file.extractall(tmp_path / "site")
    assert {"twotower/py.typed", "twotower/conf/config.yaml", "twotower/data/synsets.tsv"} <= names
    assert {f"twotower/reports/{name}" for name in ("page.html", "page.css", "page.js", "labbook.csv")} <= names
    for network in ("alexnet_shapes", "cifar_18pct", "cifar_80sec"):
        assert f"twotower/zoo/{network}/model.safetensors" in names
    assert not any(name.startswith(("tests", "launch")) for name in names)
    script = (
        "import numpy as np, torch, twotower; torch.set_num_threads(1); print(twotower.__file__); "
        "from twotower.config.presets import CONF; print(CONF); "
        "network = twotower.build_network('caffenet', 5, width=0.125, device='cpu'); "
        "print(tuple(network.logits(np.zeros((2, 300, 300, 3), np.uint8)).shape), network.input.colour_noise); "
        "print(twotower.load_network('cifar_80sec', device='cpu').classes[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    package, conf, answer, first = done.stdout.splitlines()
    assert first == "airplane"
    assert Path(package) == tmp_path / "site" / "twotower" / "__init__.py"
    assert Path(conf) == tmp_path / "site" / "twotower" / "conf"
    assert answer == "(2, 5) none"
