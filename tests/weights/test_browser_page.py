"""The page of a network: what is in the file, and what the towers in a browser make of a picture.

The oracle is the network in Python, in float32; measured deviations are below 1e-6 of the largest logit.
"""

import base64
import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image
from scipy.stats import binomtest
from torch import Tensor

from helpers.browser import Visitor, open_browser
from helpers.fake_runs import fake_config
from twotower.config import ExportConfig
from twotower.data.dataset import MEAN_IMAGE
from twotower.data.decode import cut_square
from twotower.distributed.exchange import Flight, InProcessExchange
from twotower.evaluation.load_network import load_network
from twotower.evaluation.trained import TrainedNetwork
from twotower.model.tower import Tower
from twotower.runs import checkpoint
from twotower.weights import browser_page
from twotower.weights.export import export_run
from twotower.weights.merged import split
from twotower.weights.proof import Measured
from twotower.weights.read_weights import read_checkpoint

pytestmark = pytest.mark.timeout(120)
HOSTILE = """</script><img src=x onerror="window.taken=1">"'&amp;<!--"""
CLASSES = [HOSTILE, "bee", "cat", "dog", "elk", "fox", "gnu"]  # tower 0 has four of them, tower 1 three
TOLERANCE = 1e-4  # of the largest logit
PREPARED = 70
DEFAULT = "network=alexnet_2012"
# Orders of steps, norms of both kinds, poolings that end with a cut window, groups, layers without shared weights.
NETWORKS = {
    "default": [DEFAULT],
    "little crosses, as float16": ["network=no_exchange", "ablation=half_exchange", "network.activation=sigmoid"],
    "average pooling, tanh": ["network=cifar_four_layer", "network.towers=2", "network.activation=tanh"],
    "groups": ["network=caffe_alexnet"],
    "not shared": ["network=cifar_11pct", "network.width=0.25"],
    "as large as the default run's": [DEFAULT, "network.width=0.25", "network.image_size=224", "input.crop_size=224"],
}


def make_run(folder: Path, *overrides: str) -> Path:
    """A run whose weights are not as they were drawn, and whose biases matter."""
    config = fake_config(folder / "nowhere", "network.image_size=64", "input.crop_size=64", *overrides)
    network, run = config.network, folder / "run"
    run.mkdir(parents=True)
    stream = np.random.default_rng(0)
    prepared = PREPARED if network.image_size == 64 else 256
    np.save(run / MEAN_IMAGE, stream.uniform(80, 160, (prepared, prepared, 3)).astype(np.float32))
    generator = torch.Generator().manual_seed(2)
    for index in range(network.towers):
        tower = Tower(network, len(CLASSES), index, seed=5)
        for name, p in tower.paper_named_parameters().items():
            fan_in = p[0].numel() if "weight" in name else 10
            p.data = torch.randn(p.shape, generator=generator) * 1.5 / fan_in**0.5
        checkpoint.save_tower(run / "checkpoints", 120, tower, {})
    last = {"loss": 1.5, "top1_error": 40.0, "top5_error": 10.0}
    about = checkpoint.Manifest(
        120, asdict(network), CLASSES, {}, {}, {"last": last}, {"seed": 5, "num_train": 4000, "num_val": 600}, {}
    )
    checkpoint.complete(run / "checkpoints", about, keep=1)
    OmegaConf.save(OmegaConf.structured(config), run / "config.yaml")
    return run


# What the network of `make_run` would have answered; the run's last validation has other errors.
MEASURED = Measured(
    {"loss": 1.2, "top1_error": 25.0, "top5_error": 3.0}, 600, None, 500, 25.0, 60.0, "cifar10", "0" * 64
)


def export(run: Path, measured: Measured | None = None) -> Path:
    return export_run(ExportConfig(run=str(run), to="html"), lambda _: measured)[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), DEFAULT)


@pytest.fixture(scope="module")
def page(run: Path) -> Path:
    return export(run, MEASURED)


# The file


class Parts(HTMLParser):
    """The page as a parser sees it that is no browser: tags, and the content of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[tuple[str, str | None, str]] = []
        self.texts: dict[str, list[str]] = {"dt": [], "dd": []}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.raw.append((tag, dict(attrs).get("id"), ""))

    def handle_data(self, data: str) -> None:
        if self.lasttag in self.texts and data.strip():
            self.texts[self.lasttag].append(data)
        if self.tags and self.tags[-1][0] in ("script", "style") and self.lasttag == self.tags[-1][0]:
            tag, name, content = self.raw[-1]
            self.raw[-1] = (tag, name, content + (data if self.cdata_elem else ""))

    def facts(self) -> dict[str, str]:
        """Of the list at the top: what stands at each name."""
        return dict(zip(self.texts["dt"], self.texts["dd"], strict=True))

    def content(self, tag: str, name: str | None) -> str:
        (found,) = [content for kind, each, content in self.raw if (kind, each) == (tag, name)]
        return found


def test_each_worker_gets_the_weights_of_its_own_tower(run: Path, page: Path) -> None:
    """All of them in the order of the layers, bit for bit, and none of the other tower's."""
    parts = Parts(page.read_text())
    imported = read_checkpoint(run)
    assert imported.network is not None
    for tower in range(2):
        own = split(imported.tensors, imported.network, len(CLASSES), tower)
        stored = np.frombuffer(base64.b64decode(parts.content("script", f"weights-{tower}")), "<f4")
        assert np.array_equal(stored, torch.cat([tensor.flatten() for tensor in own.values()]).numpy())


def test_the_page_asks_for_nothing_and_runs_only_its_own_script(page: Path) -> None:
    html = page.read_text()
    parts = Parts(html)
    for _, attributes in parts.tags:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "srcset", "action")]
        assert re.match(r"#|data:", attributes.get("href") or "#")
    assert not re.findall(r"url\(|@import", parts.content("style", None))
    (policy,) = [a["content"] for tag, a in parts.tags if tag == "meta" and "http-equiv" in a]
    assert policy is not None
    allowed = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(parts.content(tag, None).encode()).digest()).decode()
        assert allowed.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert allowed == {
        "default-src": "'none'",
        "img-src": "data:",
        "worker-src": "blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    # A class's name cannot end the element that it stands in.
    assert json.loads(parts.content("script", "about"))["classes"] == CLASSES


def test_the_page_says_what_was_trained_and_measured(run: Path, page: Path, tmp_path: Path) -> None:
    """Without images it says nothing about errors, although the run has some of its last validation."""
    own = {"classes": "7", "width": "0.0625", "data": "cifar10", "seed": "0", "step": "120"}
    errors = {}
    for title, wrong in (("top-1 error", 150), ("top-5 error", 18)):
        true = binomtest(wrong, 600).proportion_ci(0.95, "wilson")
        errors[title] = f"{wrong / 6:.2f} % (95 % interval {100 * true.low:.2f} to {100 * true.high:.2f} %)"
    assert Parts(page.read_text()).facts() == own | errors | {"measured on": "600 validation images"}

    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    for kind, name in (("folder", "a folder of 4,000 training images"), ("shapes", "shapes")):
        config = OmegaConf.load(tmp_path / "run" / "config.yaml")
        config.data.kind = kind
        OmegaConf.save(config, tmp_path / "run" / "config.yaml")
        assert Parts(export(tmp_path / "run").read_text()).facts() == own | {"data": name}


def test_a_network_that_is_too_large_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser_page, "MOST_MEGABYTES", 0.1)
    with pytest.raises(ValueError, match=r"alexnet_2012 .* has 0\.\d MB of weights, .* at most 0\.1 MB"):
        export_run(ExportConfig(run=str(run), to="html", output=str(tmp_path)), lambda _: pytest.fail("measured"))
    assert list(tmp_path.iterdir()) == []


# In a browser


class CutExchange(InProcessExchange):
    """What a tower would receive is zeros."""

    def finish(self, flight: Flight) -> list[Tensor]:
        return [torch.zeros_like(peer) for peer in super().finish(flight)]


def deviation(found: Sequence[float], true: Tensor) -> float:
    return float((torch.tensor(found, dtype=torch.float64) - true.double()).abs().max() / true.double().abs().max())


@dataclass
class Answer:
    """What the page shows: all logits in the order of the classes, and the likeliest classes."""

    logits: list[float]
    likeliest: list[str]


class Onlooker(Visitor):
    """Someone who shows pictures to the towers in a page."""

    def visit(self, page: Path) -> None:
        shutil.copy(page, self.folder / "page.html")
        self.open(self.folder / "page.html")
        self.wait()

    def state(self, name: str) -> str:
        return str(self.ask("document.querySelector('main').dataset[arguments[0]] ?? ''", name))

    def wait(self) -> None:
        """Until the page has answered, and has compared itself with the known answer."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.state("state") == "failed" or (
                self.state("state") == "ready" and self.state("checked") in ("passed", "failed")
            ):
                return
            time.sleep(0.03)
        raise AssertionError(f"no answer: {self.find('main').text}")

    def show(self, path: Path) -> None:
        before = self.state("answers")
        self.find("#file").send_keys(str(path))
        deadline = time.monotonic() + 30
        while self.state("answers") == before and not self.complaint() and time.monotonic() < deadline:
            time.sleep(0.03)
        self.wait()

    def drop(self, path: Path) -> None:
        """As from a file manager: what the page does not take, the browser opens in its place."""
        before = self.state("answers")
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for event in ("dragEnter", "dragOver", "drop"):
            self.devtools("Input.dispatchDragEvent", type=event, x=300, y=300, data=data)
        deadline = time.monotonic() + 30
        while self.state("answers") == before and not self.complaint() and time.monotonic() < deadline:
            time.sleep(0.03)
        self.wait()

    def canvas(self, selector: str) -> NDArray[np.int64]:
        """The R, G, B of a canvas, [height, width, 3]."""
        width, height, values = self.ask(
            "(e => [e.width, e.height, [...e.getContext('2d').getImageData(0, 0, e.width, e.height).data]])"
            "(document.querySelector(arguments[0]))",
            selector,
        )
        return np.array(values).reshape(height, width, 4)[..., :3]

    def shades(self, tower: int) -> NDArray[np.float64]:
        """The colours of no, half and the most activation of a tower, [3, 3]."""
        style = "getComputedStyle(document.documentElement).getPropertyValue(arguments[0]).trim()"
        stops = [self.ask(style, f"--{name}-{tower}") for name in ("low", "middle", "high")]
        wide = ["".join(c * (2 if len(stop) == 4 else 1) for c in stop[1:]) for stop in stops]
        return np.array([list(bytes.fromhex(stop)) for stop in wide], np.float64)

    def choose(self, mode: str) -> None:
        self.find(f"input[value={mode}]").click()
        self.wait()

    def complaint(self) -> str:
        return str(self.ask("document.getElementById('error').textContent"))

    def answer(self) -> Answer:
        cells = "[...document.querySelectorAll('#all tbody tr td:nth-child(2)')].map(e => Number(e.textContent))"
        names = "[...document.querySelectorAll('#answer li > span:first-child')].map(e => e.firstChild.textContent)"
        return Answer(self.ask(cells), self.ask(names))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture
def onlooker(browser: Any, tmp_path: Path) -> Onlooker:
    return Onlooker(browser, tmp_path)


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of the prepared size: nothing is resized, and a PNG is the same pixels to both."""
    path = tmp_path_factory.mktemp("pictures") / "square.png"
    coarse = np.random.default_rng(1).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((PREPARED, PREPARED), Image.Resampling.BICUBIC).save(path)
    return path


def true_logits(network: TrainedNetwork, picture: Path, mode: str) -> Tensor:
    kind = InProcessExchange if mode == "whole" else CutExchange
    network.exchange = kind(network.exchange.precision)
    logits = network.logits([picture])[0]
    first = (len(CLASSES) + 1) // 2  # classes of tower 0
    if mode == "off0":
        logits[:first] = 0
    if mode == "off1":
        logits[first:] = 0
    return logits


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_pythons(onlooker: Onlooker, run: Path, tmp_path: Path, square: Path, name: str) -> None:
    overrides = NETWORKS[name]
    own = run if name == "default" else make_run(tmp_path, *overrides)
    onlooker.visit(export(own))
    assert (onlooker.state("checked"), onlooker.complaint()) == ("passed", "")
    onlooker.show(square)
    network = load_network(own, device="cpu")
    modes = ("whole", "cut", "off0", "off1") if len(network.towers) == 2 else ("whole",)
    found: dict[str, list[float]] = {}
    for mode in modes:
        if mode != "whole":
            onlooker.choose(mode)
        answer = onlooker.answer()
        found[mode] = answer.logits
        true = true_logits(network, square, mode)
        assert deviation(answer.logits, true) < TOLERANCE, mode
        order = true.sort(descending=True, stable=True).indices[:5].tolist()
        assert answer.likeliest == [CLASSES[index] for index in order]
    for mode in modes[1:]:  # what the tolerance must reject
        assert deviation(found[mode], torch.tensor(found["whole"])) > 100 * TOLERANCE


def cut_tiles(picture: NDArray[np.int64], count: int, side: int, most: int) -> NDArray[np.int64]:
    """Tiles in rows of at most `most` with a gap between them: [count, side, side, 3]."""
    gap = max(1, round(side / 16)) if side > 1 else 0
    columns = min(most, count if side > 1 else max(count, 16))
    rows = -(-count // columns)
    assert picture.shape[:2] == (rows * (side + gap) - gap, columns * (side + gap) - gap)
    corners = [(tile // columns * (side + gap), tile % columns * (side + gap)) for tile in range(count)]
    return np.stack([picture[top : top + side, left : left + side] for top, left in corners])


def test_the_maps_are_the_networks(onlooker: Onlooker, run: Path, page: Path, square: Path) -> None:
    """Each layer of each tower, on one scale for both: the square root of the share of the largest value."""
    onlooker.visit(page)
    onlooker.show(square)
    network = load_network(run, device="cpu")
    for number, (name, both) in enumerate(network.activations([square], network.layers).items(), 1):
        values = both[0].double().numpy()
        levels = np.sqrt((values - min(0, values.min())) / (values.max() - min(0, values.min())))
        for tower, half in enumerate(np.array_split(levels.reshape(len(levels), *values.shape[1:] or (1, 1)), 2)):
            picture = onlooker.canvas(f"#layers li:nth-child({number}) .of-{tower} canvas")
            found = cut_tiles(picture, len(half), half.shape[-1], 16 if half.shape[-1] > 1 else 64)
            stops = onlooker.shades(tower)
            true = np.stack([np.interp(half, [0, 0.5, 1], stops[:, c]) for c in range(3)], axis=-1)
            assert np.abs(found - true).max() < 3, (name, tower)
            if name == "conv1":
                assert np.abs(found[::-1] - true).max() > 20, "maps in another order would pass"


def test_the_kernels_are_the_networks(onlooker: Onlooker, run: Path, page: Path) -> None:
    onlooker.visit(page)
    towers = [tower.paper_named_parameters()["conv1.weight"] for tower in load_network(run, device="cpu").towers]  # type: ignore[union-attr]
    weights = [weight.detach().double().numpy() for weight in towers]
    reach = max(np.abs(each).max() for each in weights)
    for tower, each in enumerate(weights):
        picture = onlooker.canvas(f".kernels figure:nth-child({tower + 1}) canvas")
        found = cut_tiles(picture, len(each), each.shape[-1], most=12)
        true = 127.5 + 127.5 * each.transpose(0, 2, 3, 1) / reach
        assert np.abs(found - true).max() < 0.6
        assert np.abs(found[..., ::-1] - true).max() > 20, "B, G, R would pass"


def test_a_dropped_picture_is_answered(onlooker: Onlooker, page: Path, square: Path, tmp_path: Path) -> None:
    onlooker.visit(page)
    drawn = onlooker.answer()
    onlooker.drop(square)
    dropped = onlooker.answer()
    assert dropped != drawn
    assert onlooker.find("#source").text == square.name
    onlooker.find("#drawn button").click()
    onlooker.wait()
    onlooker.show(square)
    assert onlooker.answer() == dropped
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    onlooker.drop(text)
    assert onlooker.complaint().startswith("notes.png is no picture")
    assert onlooker.answer() == dropped
    onlooker.ask("dispatchEvent(new DragEvent('drop', {dataTransfer: new DataTransfer()}))")
    assert onlooker.complaint().startswith("What was dropped is no file")


def test_what_crosses_is_counted(onlooker: Onlooker, run: Path, page: Path) -> None:
    onlooker.visit(page)
    rows = load_network(run, device="cpu").towers[0].rows  # type: ignore[union-attr]
    true = [4 * row.maps_in[0] * row.size_in**2 for row in rows if row.reads_both]  # type: ignore[union-attr,operator]
    shown = onlooker.ask("[...document.querySelectorAll('.between.way span')].map(e => e.textContent)")
    assert shown == [f"{number:,} bytes each way" for number in true]
    total = f"{sum(true):,}"
    assert onlooker.find("#crossed").text == f"Tower 0 has sent {total} bytes and tower 1 {total}, in 4 exchanges."
    onlooker.choose("cut")
    assert onlooker.find("#crossed").text == "Nothing crosses."


def test_a_page_whose_weights_were_changed_says_so(onlooker: Onlooker, page: Path, tmp_path: Path) -> None:
    html = page.read_text()
    start = html.index('id="weights-1">') + len('id="weights-1">')
    changed = tmp_path / "changed.html"
    changed.write_text(html[:start] + html[start + 64 : start + 128] + html[start : start + 64] + html[start + 128 :])
    onlooker.visit(changed)
    assert onlooker.state("checked") == "failed"
    assert "computes wrongly" in onlooker.complaint()

    changed.write_text(html[:start] + html[start + 16 :])  # four weights are missing
    onlooker.visit(changed)
    assert onlooker.state("state") == "failed"
    assert re.match(r"Tower 1 has stopped: the page has [\d,]+ weights, and", onlooker.complaint())


def test_pictures_are_resized_as_in_python(onlooker: Onlooker, page: Path) -> None:
    """Larger and smaller ones; a level of 255 may differ where Python rounds its weights."""
    onlooker.visit(page)
    stream = np.random.default_rng(0)
    for side, size in ((131, 64), (40, 64), (64, 64)):
        image = stream.integers(0, 256, (side, side, 3), dtype=np.uint8)
        opaque = np.concatenate([image, np.full((side, side, 1), 255, np.uint8)], axis=2)
        text = base64.b64encode(opaque.tobytes()).decode()
        resized = onlooker.ask("[...resize(decodeBytes(arguments[0]), arguments[1], arguments[2])]", text, side, size)
        found: NDArray[np.int64] = np.array(resized).reshape(size, size, 4)[..., :3]
        difference = np.abs(found - cut_square(image, size))
        assert difference.max() <= (1 if side != size else 0)
        assert (difference > 0).mean() < 0.05
    wrong = np.asarray(Image.fromarray(image[:40, :40]).resize((64, 64), Image.Resampling.NEAREST), np.int64)
    assert np.abs(wrong - cut_square(image[:40, :40], 64)).max() > 10


def test_nothing_leaves_the_page(onlooker: Onlooker, page: Path, square: Path) -> None:
    onlooker.visit(page)
    onlooker.show(square)
    # The page's policy must be what stops it: that nobody listens at this port would stop it as well.
    stopped = onlooker.browser.execute_async_script(
        "const [done] = arguments;"
        "addEventListener('securitypolicyviolation', event => done(event.effectiveDirective + event.blockedURI));"
        "fetch('http://127.0.0.1:9/').catch(() => setTimeout(() => done('not by the policy'), 2000))"
    )
    assert stopped == "connect-srchttp://127.0.0.1:9/"
    assert onlooker.requested() == []
    assert onlooker.ask("window.taken ?? null") is None


def test_what_is_no_picture_is_said(onlooker: Onlooker, page: Path, square: Path, tmp_path: Path) -> None:
    onlooker.visit(page)
    before = onlooker.answer()
    text = tmp_path / "<b>notes.png"
    text.write_text("no picture")
    onlooker.show(text)
    assert onlooker.complaint().startswith("<b>notes.png is no picture that this browser can open; choose a JPEG")
    assert onlooker.find("#error").is_displayed()
    onlooker.browser.execute_script("dispatchEvent(new ClipboardEvent('paste', {clipboardData: new DataTransfer()}))")
    assert "no picture on the clipboard" in onlooker.complaint()
    assert onlooker.answer() == before
    onlooker.show(square)
    assert not onlooker.find("#error").is_displayed()


def test_the_keyboard_reaches_everything(onlooker: Onlooker, page: Path) -> None:
    onlooker.visit(page)
    reached = []
    for _ in range(9):
        onlooker.press("TAB")
        reached.append(
            str(onlooker.ask("(e => e.id || e.ariaLabel || e.value || e.nodeName)(document.activeElement)"))
        )
        marked = "#file + .button" if reached[-1] == "file" else ":focus"
        assert onlooker.ask(f"getComputedStyle(document.querySelector('{marked}')).outlineStyle") == "solid", reached
        if reached[-1] == "SUMMARY":
            onlooker.press("ENTER")
    drawn = [f"drawn picture: {name.replace('_', ' ')}" for name in browser_page.DRAWN]
    assert reached == ["A", *drawn, "file", "whole", "SUMMARY", "All classes"]
    onlooker.focus("input[value=whole]")
    onlooker.press("ARROW_DOWN")
    onlooker.wait()
    assert onlooker.ask("document.querySelector('input:checked').value") == "cut"
    assert onlooker.find("#crossed").text == "Nothing crosses."
    onlooker.focus("#drawn button:nth-child(2)")
    onlooker.press("SPACE")
    onlooker.wait()
    assert onlooker.ask("document.querySelector('[aria-pressed=true]').ariaLabel") == "drawn picture: blue circle"
    unnamed = "[...document.querySelectorAll('canvas[role=img]')].filter(e => !e.ariaLabel).length"
    assert onlooker.ask(unnamed) == 0


def test_it_can_be_read_in_both_schemes_and_all_widths(onlooker: Onlooker, page: Path) -> None:
    onlooker.visit(page)
    onlooker.choose("off1")
    shade = "getComputedStyle(document.body).backgroundColor"
    seen = set()
    for scheme in ("light", "dark"):
        onlooker.prefer(scheme)
        seen.add(onlooker.ask(shade))
        contrasts = onlooker.contrasts(
            "h1, h2, h3, p, li > span, li > div, small, dt, dd, label, legend, summary, th"
        )
        assert len(contrasts) > 50
        assert [contrast for contrast in contrasts if contrast[0] < 4.5] == []
        for width in (360, 700, 1024, 1400):
            onlooker.window(width, 800)
            assert onlooker.overflow() <= 0, width
            for box in ("#crop", "#answer", "#layers", ".box"):
                assert onlooker.find(box).rect["width"] > 100, (box, width)
    assert len(seen) == 2
