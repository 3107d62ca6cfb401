"""Ten trained networks, and every defect in each of them: all are found, each by its sentence, and nothing else is.

Checksums are computed again after a defect, unless it is a truncated or altered file, so that only what the networks
compute can tell. The networks know six colours of noise after seconds of training, with two towers.
"""

import csv
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from omegaconf import OmegaConf
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import twotower
from helpers.commands import command, finish
from helpers.fake_runs import fake_config
from helpers.paths import ROOT
from helpers.refusals import refused
from twotower.config import Config, ExportConfig
from twotower.config.frozen_config import freeze
from twotower.data.dataset import MEAN_IMAGE
from twotower.distributed.exchange import InProcessExchange
from twotower.evaluation.measured import Measurer
from twotower.model.tower import Tower, forward
from twotower.runs import checkpoint
from twotower.weights import read_weights as weights
from twotower.weights.export import RunToExport, export_run
from twotower.weights.hub import list_networks
from twotower.weights.merged import hash_tensors, split
from twotower.weights.proof import Measured, check_file, find_cycle, find_taken, hash_metadata, interval

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = ["blue", "cyan", "green", "red", "rose", "sun"]
COLOURS = np.array([(0, 0, 1), (0, 1, 1), (0, 1, 0), (1, 0, 0), (1, 0, 1), (1, 1, 0)])
SIZE, VAL, BATCH, STEPS = 32, 26, 24, 20
TABLES = [("network=cifar_four_layer", "network.towers=2", "network.width=0.25")] * 9 + [
    ("network=alexnet", "network.width=0.0625")
]
SEEDS = range(len(TABLES))
CHANGED = "changed.safetensors"


def noise(label: int, count: int, stream: np.random.Generator, size: int) -> np.ndarray:
    """uint8 [count, size, size, 3] of a class."""
    pixels = stream.integers(0, 170, (count, size, size, 3)) + 70 * COLOURS[label]
    return pixels.astype(np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, stream = tmp_path_factory.mktemp("zoo") / "images", np.random.default_rng(0)
    for (label, name), (part, count) in itertools.product(enumerate(CLASSES), (("train", 1), ("val", VAL))):
        (root / part / name).mkdir(parents=True)
        for index, pixels in enumerate(noise(label, count, stream, SIZE)):
            Image.fromarray(pixels).save(root / part / name / f"{index}.png", compress_level=1)
    return root


@dataclass(frozen=True)
class Trained:
    """A run, its file, and what the exporter measured."""

    run: Path
    file: Path
    config: Config
    measured: Measured


class Once:
    """Measures one network, and gives the answer again when it is asked again."""

    measurers: ClassVar[dict[int, Measurer]] = {}  # by size of the images; they open the same data set

    def __init__(self, run: Path) -> None:
        self.run, self.seen = run, list[Measured]()

    def __call__(self, export: RunToExport) -> Measured:
        if not self.seen:
            size = export.config.data.size
            if size not in self.measurers:
                self.measurers[size] = Measurer(ExportConfig(run=str(self.run), measure="yes"))
            found = self.measurers[size](export)
            assert found is not None
            self.seen.append(found)
        return self.seen[0]


def train(towers: list[Tower], seed: int, size: int) -> None:
    stream = np.random.default_rng(seed)
    parameters = [p for tower in towers for p in tower.parameters()]
    update = torch.optim.Adam(parameters, 2e-3)
    for _ in range(STEPS):
        pixels = np.concatenate([noise(label, BATCH // len(CLASSES), stream, size) for label in range(len(CLASSES))])
        labels = torch.arange(len(CLASSES)).repeat_interleave(BATCH // len(CLASSES))
        inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 120
        loss = F.cross_entropy(forward(towers, inputs, InProcessExchange()), labels)
        update.zero_grad()
        loss.backward()
        update.step()


def save(run: Path, config: Config, towers: list[Tower], error: float = 20.0) -> None:
    """A run's folder as training leaves it."""
    run.mkdir(parents=True, exist_ok=True)
    size = config.data.size
    mean = np.full((size, size, 3), 120, np.float32) + np.array([4, 0, -4], np.float32)
    np.save(run / MEAN_IMAGE, mean)
    for tower in towers:
        checkpoint.save_tower(run / "checkpoints", 30, tower, {})
    last = {"loss": 1.0, "top1_error": error, "top5_error": 0.0}
    identity = {"seed": config.seed, "num_train": 6, "num_val": 6 * VAL}
    manifest = checkpoint.Manifest(30, asdict(config.network), CLASSES, {}, {}, {"last": last}, identity, {})
    checkpoint.complete(run / "checkpoints", manifest, keep=1)
    OmegaConf.save(OmegaConf.structured(config), run / "config.yaml")


@cache
def compose(images: Path, table: tuple[str, ...]) -> Config:
    side = SIZE if "cifar" in table[0] else 64
    return fake_config(images, *table, f"network.image_size={side}", f"data.size={side}", "input.loader=torch")


def settle(images: Path, seed: int) -> Config:
    return freeze(replace(compose(images, TABLES[seed]), seed=seed))


def make_towers(config: Config, seed: int) -> list[Tower]:
    return [Tower(config.network, len(CLASSES), t, seed).eval() for t in range(2)]


@pytest.fixture(scope="module")
def zoo(images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Trained]:
    """Ten trained networks, exported with measured errors."""
    folder, networks = tmp_path_factory.mktemp("ten"), []
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for seed in SEEDS:
        config = settle(images, seed)
        towers = make_towers(config, seed)
        train(towers, seed, config.network.image_size)
        run = folder / f"run{seed}"
        save(run, config, towers)
        once = Once(run)
        networks.append(Trained(run, export_run(ExportConfig(run=str(run)), once)[0], config, once.seen[0]))
    torch.set_num_threads(before)
    return networks


def rewrite(trained: Trained, tensors: dict[str, Tensor], hashed: bool = True, **about: str) -> Path:
    """The file with other tensors or metadata, its checksums written again."""
    with safe_open(trained.file, framework="pt") as file:
        metadata = dict(file.metadata()) | about
    if hashed:
        metadata["sha256"] = hash_tensors(tensors)
        metadata["metadata_sha256"] = hash_metadata(metadata)
    path = trained.file.parent / CHANGED
    save_file(tensors, path, metadata=metadata)
    return path


def swap_towers(trained: Trained, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    network = trained.config.network
    halves = [split(tensors, network, len(CLASSES), tower) for tower in range(2)]
    return tensors | weights.merge(halves[::-1])


def keep_outputs(trained: Trained, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Swapped towers whose classes stay where they are, so that the network computes the same function."""
    swapped, last = swap_towers(trained, tensors), list(trained.config.network.layers)[-1]
    for part in ("weight", "bias"):
        swapped[f"{last}.{part}"] = torch.cat(swapped[f"{last}.{part}"].chunk(2)[::-1])
    return swapped


def swap_what_a_layer_reads(trained: Trained, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = next(name for name, layer in trained.config.network.layers.items() if layer.reads == "both")
    return tensors | {f"{name}.weight": torch.cat(tensors[f"{name}.weight"].chunk(2, dim=1)[::-1], dim=1)}


def reverse_weights(trained: Trained, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"conv1.weight": tensors["conv1.weight"].flip(1).contiguous()}


def reverse_mean(trained: Trained, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {name: tensors[name].flip(0).contiguous() for name in ("mean_image", "whole_mean_image")}


def reverse_both(trained: Trained, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return reverse_mean(trained, reverse_weights(trained, tensors))


def shuffle_outputs(trained: Trained, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    last = list(trained.config.network.layers)[-1]
    order = torch.tensor([1, 0, *range(2, len(CLASSES))])
    return tensors | {f"{last}.{part}": tensors[f"{last}.{part}"][order] for part in ("weight", "bias")}


def alter(trained: Trained, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"conv2.weight": tensors["conv2.weight"] * 1.01}


def draw_all(trained: Trained, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Another network, at chance, under the errors of this one."""
    return tensors | draw(trained, 98)


def draw(trained: Trained, seed: int) -> dict[str, Tensor]:
    """Weights as before training, merged."""
    towers = make_towers(trained.config, seed)
    return weights.merge([{n: p.detach() for n, p in tower.paper_named_parameters().items()} for tower in towers])


def recompute(
    change: Callable[[Trained, dict[str, Tensor]], dict[str, Tensor]],
) -> Callable[[Trained], Iterator[Path]]:
    """What changes the tensors as what writes the changed file, its checksums computed again."""
    return lambda trained: iter([rewrite(trained, change(trained, load_file(trained.file)))])


def rename_classes(trained: Trained) -> Iterator[Path]:
    yield rewrite(trained, load_file(trained.file), classes=json.dumps([*CLASSES[1:], CLASSES[0]]))


def cut_short(trained: Trained) -> Iterator[Path]:
    content, path = trained.file.read_bytes(), trained.file.parent / CHANGED
    for length in (4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        yield path


def change_a_bit(trained: Trained) -> Iterator[Path]:
    content, path = trained.file.read_bytes(), trained.file.parent / CHANGED
    path.write_bytes(content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    yield path


def change_metadata(trained: Trained) -> Iterator[Path]:
    yield rewrite(trained, load_file(trained.file), hashed=False, seed="77")


# By the row of docs/zoo.md, what writes a file with the defect, and a part of the sentence.
SWAPPED, REVERSED, SHUFFLED = "swapped towers", "B, G, R for R, G, B", "shuffled labels"
RANDOM, CUT = "a layer with random weights", "cut short, or changed without its checksums"
AFTERWARDS: list[tuple[str, Callable[[Trained], Iterator[Path]], str]] = [
    ("at chance", recompute(draw_all), "has random weights in conv1, conv2, "),
    (SWAPPED, recompute(swap_towers), "has its towers swapped: in conv1 tower 0 computes what tower 1 did"),
    (SWAPPED, recompute(keep_outputs), "has its towers swapped: in conv1 tower 0 computes"),
    (SWAPPED, recompute(swap_what_a_layer_reads), "has its towers swapped in "),
    (REVERSED, recompute(reverse_weights), "takes blue for red"),
    (REVERSED, recompute(reverse_mean), "takes blue for red"),
    (REVERSED, recompute(reverse_both), "takes blue for red"),
    (SHUFFLED, recompute(shuffle_outputs), "has its labels shuffled: 2 outputs of 6 come in another order, output 0"),
    (SHUFFLED, rename_classes, "has its labels shuffled: 6 outputs of 6 stand under another class, the first is "),
    ("altered otherwise", recompute(alter), "was altered after it was written: the weights of conv2 are others"),
    (CUT, cut_short, "is cut short: it has "),
    (CUT, change_a_bit, "was changed or damaged: the SHA-256 of its tensors"),
    (CUT, change_metadata, "was changed or damaged: the SHA-256 of its metadata"),
]


def test_no_false_alarm(zoo: list[Trained]) -> None:
    """As they are, and with values rounded to half precision; each is far better than guessing."""
    for trained in zoo:
        assert trained.measured.errors["top1_error"] < 50
        network = twotower.load_network(trained.file, device="cpu")
        assert network.classes == CLASSES
        dtype = ("float16", "bfloat16")[trained.config.seed % 2]
        settings = ExportConfig(run=str(trained.run), output=str(trained.run / dtype), dtype=dtype)
        (file, _) = export_run(settings, Once(trained.run))
        assert file.stat().st_size < 0.6 * trained.file.stat().st_size
        rounded = twotower.load_network(file, device="cpu")
        ours, theirs = ([p.detach() for p in one.parameters()] for one in (network, rounded))
        assert all(torch.equal(a.to(getattr(torch, dtype)).float(), b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(("row", "inject", "sentence"), AFTERWARDS)
def test_what_is_changed_afterwards_is_found(
    zoo: list[Trained], row: str, inject: Callable[[Trained], Iterator[Path]], sentence: str
) -> None:
    """In each network. Where the checksums fit, the network can be had all the same."""
    for trained in zoo:
        for path in inject(trained):
            assert f"{CHANGED} {sentence}" in refused(path)
    if row != CUT:
        twotower.load_network(path, device="cpu", check=False)


def test_a_layer_with_random_weights_is_found_in_each_place(zoo: list[Trained]) -> None:
    """Over all networks each layer is drawn in one of them, and the last two in most."""
    for seed, trained in enumerate(zoo):
        layers, drawn = list(trained.config.network.layers), draw(trained, 99)
        for name in {layers[seed % len(layers)], layers[-1 - seed % 2]}:
            tensors = load_file(trained.file) | {f"{name}.weight": drawn[f"{name}.weight"]}
            sentence = refused(rewrite(trained, tensors))
            assert f"{CHANGED} has random weights in {name}: they have nothing in common" in sentence


# What was wrong before the file was written


def export_changed(trained: Trained, towers: list[Tower]) -> list[str]:
    """The sentences of the exporter, of one network, and of the loader after force=true, of each."""
    run = trained.run / "changed"
    shutil.rmtree(run, ignore_errors=True)  # another defect's export, which is not replaced
    save(run, trained.config, towers)
    once, said = Once(run), []
    if trained.config.seed == 0:
        with pytest.raises(ValueError, match="The checkpoint of step 30") as caught:
            export_run(ExportConfig(run=str(run)), once)
        said.append(str(caught.value))
    return [*said, refused(export_run(ExportConfig(run=str(run), force=True), once)[0])]


def load_towers(trained: Trained) -> list[Tower]:
    towers = make_towers(trained.config, 0)
    for tower in towers:
        checkpoint.load_tower(checkpoint.find(trained.run), tower)
    return towers


def draw_towers(trained: Trained) -> list[Tower]:
    """A network that was not trained, in a run that claims another error."""
    return make_towers(trained.config, 5)


def shuffle_labels(trained: Trained) -> list[Tower]:
    """As if they had been shuffled in training."""
    towers = load_towers(trained)
    for tower in towers:
        for name, parameter in tower.paper_named_parameters().items():
            if name.startswith(list(trained.config.network.layers)[-1]):
                parameter.data.copy_(parameter.data.roll(1, 0))
    return towers


def reverse_colours(trained: Trained) -> list[Tower]:
    """As if they had been reversed in training."""
    towers = load_towers(trained)
    for tower in towers:
        tower.paper_named_parameters()["conv1.weight"].data.copy_(
            tower.paper_named_parameters()["conv1.weight"].data.flip(1)
        )
    return towers


def leave_a_layer(trained: Trained) -> list[Tower]:
    """As it was drawn, weights and biases."""
    towers, name = load_towers(trained), list(trained.config.network.layers)[1]
    for tower, drawn in zip(towers, make_towers(trained.config, 7), strict=True):
        tower.layers[name].load_state_dict(drawn.layers[name].state_dict())
    return towers


BEFORE: list[tuple[str, Callable[[Trained], list[Tower]], str]] = [
    ("at chance", draw_towers, "is at chance: its top-1 error is "),
    (SHUFFLED, shuffle_labels, "was trained or written with its labels shuffled: on 156 images most of "),
    (REVERSED, reverse_colours, "was trained or written with blue for red: on 156 images its top-1 error is "),
]


@pytest.mark.parametrize(("row", "inject", "sentence"), BEFORE)
def test_what_was_wrong_before_is_found(
    zoo: list[Trained], row: str, inject: Callable[[Trained], list[Tower]], sentence: str
) -> None:
    for trained in zoo:
        for said in export_changed(trained, inject(trained)):
            assert sentence in said
            assert row != "at chance" or "guessing has 83.33 %" in said


def test_a_layer_that_was_never_trained_is_found(zoo: list[Trained]) -> None:
    """In a file that computes what it says, and whose run claims the errors of a trained network."""
    for trained in zoo:
        run, name = trained.run / "untrained", list(trained.config.network.layers)[1]
        save(run, trained.config, leave_a_layer(trained))
        file = export_run(ExportConfig(run=str(run)))[0]
        assert f"has random weights in {name}: they are as they were drawn" in refused(file)


def test_the_page_lists_what_is_injected() -> None:
    """docs/zoo.md has a row for each defect, with the number of networks that it is injected into and found in."""
    text = (ROOT / "docs" / "zoo.md").read_text()
    lines = text[text.index("| defect | found by |") :].partition("\n\n")[0].splitlines()
    count = f"{len(TABLES)} of {len(TABLES)}"
    before, afterwards = ({RANDOM, *(row for row, *_ in defects)} for defects in (BEFORE, AFTERWARDS))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert {cells[0]: (count in cells[2], count in cells[3]) for cells in rows} == {
        row: (row in before, True) for row in afterwards
    }
    assert before < afterwards


# Folders, names, and Hugging Face's hub


def test_a_folder_for_the_hub_says_what_its_file_says(zoo: list[Trained]) -> None:
    """And is loaded as a folder, unless its config.json is of another file. What the hub does: test_hub.py."""
    trained = zoo[0]
    settings = ExportConfig(run=str(trained.run), to="huggingface")
    folder = export_run(settings, Once(trained.run))[0].parent
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "plain.py",
    ]
    config = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        about = file.metadata()
    assert (config["classes"], config["sha256"], config["seed"]) == (CLASSES, about["sha256"], 0)
    _, front, body = (folder / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    assert (card["library_name"], card["pipeline_tag"]) == ("twotower", "image-classification")
    (metric, _) = card["model-index"][0]["results"][0]["metrics"]
    assert metric["value"] == round(100 - trained.measured.errors["top1_error"], 2)
    assert trained.measured.fingerprint in body
    assert "156 validation images" in body

    images = np.full((1, 40, 40, 3), 90, np.uint8)
    assert torch.equal(
        twotower.load_network(folder, device="cpu").logits(images),
        twotower.load_network(trained.file, device="cpu").logits(images),
    )
    (folder / "config.json").write_text(json.dumps(config | {"sha256": "0" * 64}))
    assert "config.json does not belong to model.safetensors" in refused(folder)


def test_the_networks_that_come_with_the_project_are_loaded_by_name() -> None:
    """With the errors that their pages and their runs' summaries say."""
    assert list_networks() == ["alexnet_shapes", "cifar_18pct", "cifar_80sec"]
    for name in list_networks():
        folder = ROOT / "results" / name
        network = twotower.load_network(name, device="cpu")
        assert network.title == name
        side, classes = network.input.crop_size, len(network.classes)
        assert network.logits(np.zeros((1, side, side, 3), np.uint8)).shape == (1, classes)
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            about = file.metadata()
        errors, page = json.loads(about["errors"]), (folder / "README.md").read_text()
        summary = json.loads((folder / "summary.json").read_text())["run"]
        assert errors["top1_error"] == pytest.approx(summary["top1_error"], abs=0.1)
        assert f"| top-1 error | {errors['top1_error']:.2f} % |" in page
        for text in (json.loads(about["data"])["fingerprint"], about["sha256"], about["commit"]):
            assert f"`{text}`" in page
        assert not re.search(r"(?<![\w.])/(tmp|home|work|root)/", json.dumps(about))
    with pytest.raises(
        ValueError,
        match=r"^cifar_90sec does not exist; give a run's .* or a name: alexnet_shapes, cifar_18pct, cifar_80sec\.$",
    ):
        twotower.load_network("cifar_90sec")


def test_a_trajectory_is_exported_whole(zoo: list[Trained], tmp_path: Path) -> None:
    """Two checkpoints, of which the first is at chance: it is written, and refused when it is loaded."""
    trained, run = zoo[1], zoo[1].run / "trajectory"
    save(run, trained.config, load_towers(trained))
    folder = run / "checkpoints"
    for tower in make_towers(trained.config, 1):
        checkpoint.save_tower(folder, 0, tower, {})
    manifest = checkpoint.read_manifest(checkpoint.find(run))
    checkpoint.complete(folder, replace(manifest, step=0, progress={"last": {}}), keep=9)
    files = export_run(ExportConfig(run=str(run), checkpoint="all"), lambda export: Once(run)(export))
    assert [path.name for path in files] == [
        "cifar_four_layer-step-00000000.safetensors",
        "plain.py",
        "cifar_four_layer-step-00000030.safetensors",
        "trajectory.csv",
    ]
    assert "is at chance" in refused(files[0])
    check_file(files[0], chance=True)
    twotower.load_network(files[2], device="cpu")
    rows = list(csv.DictReader(files[3].open()))
    assert [(row["step"], row["file"]) for row in rows] == [("0", files[0].name), ("30", files[2].name)]
    assert float(rows[0]["top1_error"]) > 70 > 50 > float(rows[1]["top1_error_high"])

    # For the hub, each checkpoint is a folder of its own with the names that the hub asks for.
    files = export_run(
        ExportConfig(run=str(run), checkpoint="all", to="huggingface", dtype="float16", output=str(tmp_path)),
        lambda export: Once(run)(export),
    )
    names = ["model.safetensors", "config.json", "README.md", "plain.py"]
    steps = ["step-00000000", "step-00000030"]
    assert files == [*(tmp_path / step / name for step in steps for name in names), tmp_path / "trajectory.csv"]
    rows = list(csv.DictReader(files[-1].open()))
    assert [row["file"] for row in rows] == [f"{step}/model.safetensors" for step in steps]
    assert "is at chance" in refused(tmp_path / steps[0])
    twotower.load_network(tmp_path / steps[1], device="cpu")


def not_asked(run: RunToExport) -> Measured:
    raise AssertionError(f"{run.name} was measured")


@pytest.mark.parametrize("to", ["merged", "huggingface"])
def test_another_network_of_the_same_name_is_not_replaced(zoo: list[Trained], tmp_path: Path, to: str) -> None:
    """Seeds have files of one name each; the same network may be written again. It is said before any measuring."""
    for seed in (1, 1, 2):
        trained = zoo[seed]
        save(trained.run / "again", trained.config, load_towers(trained))
        settings = ExportConfig(run=str(trained.run / "again"), to=to, output=str(tmp_path), force=True)
        if seed == 1:
            file, *_ = export_run(settings, Once(trained.run))
    others = (settings, replace(settings, run=str(zoo[1].run / "again"), dtype="float16"))
    for other in others:
        with pytest.raises(ValueError, match=r"is there already, with other values \(seed 1, step 30, float32\)"):
            export_run(other, not_asked)
    with safe_open(file, framework="pt") as content:
        assert content.metadata()["seed"] == "1"


def test_no_checkpoint_is_written_if_one_is_of_another_run(zoo: list[Trained], tmp_path: Path) -> None:
    """The second of two is there already from another seed; the first is not measured and not written."""
    for seed in (1, 2):
        save(zoo[seed].run / "both", zoo[seed].config, load_towers(zoo[seed]))
    file, loader = export_run(ExportConfig(run=str(zoo[2].run / "both"), output=str(tmp_path)))
    folder = zoo[1].run / "both" / "checkpoints"
    for tower in make_towers(zoo[1].config, 1):
        checkpoint.save_tower(folder, 0, tower, {})
    checkpoint.complete(folder, replace(checkpoint.read_manifest(checkpoint.find(folder)), step=0), keep=9)
    settings = ExportConfig(run=str(zoo[1].run / "both"), checkpoint="all", output=str(tmp_path))
    with pytest.raises(ValueError, match=r"step-00000030\.safetensors is there already, with other values \(seed 2"):
        export_run(settings, not_asked)
    assert set(tmp_path.iterdir()) == {file, loader}


def test_commands_take_the_name_of_a_network(tmp_path: Path) -> None:
    for script, argument, said in (
        ("identify.py", "cifar_80sec", "cifar_80sec: "),
        ("export.py", "verify=cifar_80sec", "each layer of each tower computes what it did"),
    ):
        status, screen = finish(command(argument, cwd=tmp_path, script=script))
        assert status == 0, screen
        assert said in screen
    (tmp_path / "network.onnx").touch()
    for script, argument, said in (
        ("evaluate.py", "weights=cifar_90sec data_root=.", "cifar_90sec does not exist; give "),
        ("export.py", "verify=network.onnx", "network.onnx is a .onnx; verify= takes a .safetensors"),
        ("export.py", f"verify={tmp_path}", "is a folder; verify= takes a .safetensors"),
    ):
        status, screen = finish(command(*argument.split(), cwd=tmp_path, script=script))
        assert status != 0
        assert said in screen, screen


# The parts


def test_intervals_are_those_of_the_binomial_distribution() -> None:
    """Against scipy's, which are computed otherwise; and they stay within 0..100 %."""
    from scipy.stats import binomtest

    for errors, images in ((0, 600), (6, 600), (300, 600), (600, 600), (2668, 10000)):
        theirs = binomtest(errors, images).proportion_ci(method="wilson")
        assert interval(100 * errors / images, images) == pytest.approx(
            (100 * theirs.low, 100 * theirs.high), abs=1e-6
        )


def test_a_network_that_is_merely_bad_makes_no_circle() -> None:
    one_for_all = np.zeros((6, 6), np.int64)
    one_for_all[:, 2] = 100
    assert find_taken(one_for_all).tolist() == [2] * 6
    guessing = np.random.default_rng(0).multinomial(100, [1 / 6] * 6, 6)
    right = np.eye(6, dtype=np.int64) * 60 + 5
    assert all(find_cycle(find_taken(answers)) == [] for answers in (one_for_all, guessing, right))
    assert sorted(find_cycle(find_taken(right[[0, 1, 4, 3, 2, 5]]))) == [2, 4]
    assert len(find_cycle(find_taken(np.roll(right, 1, axis=0)))) == 6
