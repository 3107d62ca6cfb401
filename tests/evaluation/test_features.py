"""Features: the outputs of layers and steps for many images, in files that other libraries read."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from contextlib import suppress
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

import twotower
from helpers.archives import tree_files, write_tree
from helpers.command_checks import script_of, task_of
from helpers.commands import DEADLINE, environment
from helpers.paths import ROOT
from helpers.prepared_sets import made
from twotower.evaluation.extract_features import extract_features, iterate_features
from twotower.evaluation.image_lists import GivenImages, open_images
from twotower.ground import row_files

pytestmark = pytest.mark.usefixtures("one_thread")
WANTED = ["conv2.sum", "conv2", "fc7"]


@pytest.fixture(scope="module")
def network() -> twotower.TrainedNetwork:
    return twotower.build_network("alexnet_2012", 7, width=0.0625, device="cpu", image_size=64, prepared_size=72)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images at three depths, and what is no image by its name."""
    root = tmp_path_factory.mktemp("photographs")
    for number, name in enumerate(["b.png", "a/2.png", "a/10.jpg", "a/x/1.JPEG", "c/1.png", "c/2.png", "c/3.png"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (80, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (root / "notes.txt").write_text("no image")
    (root / "a" / ".hidden.png").write_text("no image")
    (root / "a" / "round").symlink_to(root)
    return root


ORDER = ["a/10.jpg", "a/2.png", "a/x/1.JPEG", "b.png", "c/1.png", "c/2.png", "c/3.png"]


def read_files(folder: Path, format: str) -> dict[str, NDArray[np.float32]]:
    """By numpy's and safetensors' own readers."""
    if format == "safetensors":
        return load_file(folder / "features.safetensors")
    return {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}


def read_names(folder: Path) -> list[str]:
    with (folder / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == [str(number) for number in range(len(rows))]
    return [row["file"] for row in rows]


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012", "no_exchange"])
def test_every_step_is_that_of_the_network_in_one_piece(name: str) -> None:
    """plain.py shares no code with the towers, and torch's hooks watch each of its modules."""
    network = twotower.build_network(name, 7, width=0.0625, device="cpu", image_size=64, prepared_size=72)
    images = np.random.default_rng(1).integers(0, 256, (2, 72, 72, 3), dtype=np.uint8)
    whole, seen = network.in_one_piece(), {}
    for module_name, module in whole.named_children():
        step = module_name.replace("_", ".", 1) if "_" in module_name else f"{module_name}.sum"
        module.register_forward_hook(lambda module, inputs, output, step=step: seen.update({step: output.detach()}))
    logits = whole(network.preprocess(images))
    ours = network.activations(images, network.steps)
    assert seen.keys() - ours.keys() <= {"conv1.pad", "fc6.flatten"}
    assert len(ours) >= 19
    assert list(ours)[:1] == ["conv1.sum"]
    for step, values in ours.items():
        largest = seen[step].abs().max()
        assert values.shape == seen[step].shape
        assert (values - seen[step]).abs().max() <= 1e-5 * largest, step
        halves = [network.activations(images, step, tower=tower)[step] for tower in range(2)]
        assert (torch.cat(halves, dim=1) - values).abs().max() <= 1e-6 * largest
        assert (torch.cat(halves[::-1], dim=1) - values).abs().max() > 1e-2 * largest, "towers in the wrong order"
    assert torch.allclose(network.logits(images), logits, rtol=1e-4, atol=1e-3)
    for layer in network.layers:
        last = [step for step in network.steps if step.startswith(f"{layer}.")][-1]
        torch.testing.assert_close(network.activations(images, layer)[layer], ours[last], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tower", [None, 1])
@pytest.mark.parametrize("format", ["npy", "safetensors"])
def test_files_hold_what_activations_returns(
    network: twotower.TrainedNetwork, photographs: Path, tmp_path: Path, format: str, tower: int | None
) -> None:
    output = tmp_path / "new" / "features"
    extracted = extract_features(network, photographs, WANTED, output, format=format, tower=tower, batch_size=3)
    found = read_files(output, format)
    assert read_names(output) == ORDER
    assert found.keys() == set(WANTED)
    for name, wanted in network.activations([photographs / file for file in ORDER], WANTED, tower).items():
        assert found[name].dtype == np.float32
        assert found[name].shape == extracted.shapes[name] == tuple(wanted.shape)
        np.testing.assert_allclose(found[name], wanted.numpy(), rtol=1e-5, atol=1e-5)
        assert np.abs(found[name][1] - found[name][0]).max() > 1e-3, "the images make no difference"
    about = json.loads((output / "features.json").read_text())
    assert about["layers"] == {name: list(shape) for name, shape in extracted.shapes.items()}
    assert about["tower"] == ("both" if tower is None else tower)
    with pytest.raises(ValueError, match="is there already; choose another folder"):
        extract_features(network, photographs, WANTED, output)


@pytest.mark.parametrize("format", ["npy", "safetensors"])
def test_an_unusable_image_stops_or_has_no_row(
    network: twotower.TrainedNetwork, photographs: Path, tmp_path: Path, format: str
) -> None:
    """Of two tables in one file the second must move down by a row, and of three the third by two."""
    folder, output = tmp_path / "images", tmp_path / "features"
    shutil.copytree(photographs, folder, symlinks=True)
    (folder / "a" / "round").unlink()
    (folder / "a" / "2.png").write_bytes(b"\x89PNG and no more")
    with pytest.raises(ValueError, match=r"a/2.png cannot be used"):
        extract_features(network, folder, WANTED, output, format=format, batch_size=2)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    extracted = extract_features(network, folder, WANTED, output, format=format, batch_size=2, on_error="skip")
    assert len(extracted.problems) == 1
    left = [file for file in ORDER if file != "a/2.png"]
    assert read_names(output) == left
    for name, wanted in network.activations([folder / file for file in left], WANTED).items():
        np.testing.assert_allclose(read_files(output, format)[name], wanted.numpy(), rtol=1e-5, atol=1e-5)
    only = folder / "only"
    only.mkdir()
    (folder / "a" / "2.png").rename(only / "2.png")
    with pytest.raises(ValueError, match="none of the 1 images can be used"):
        extract_features(network, only, WANTED, tmp_path / "other", format=format, on_error="skip")
    assert not (tmp_path / "other").exists()


def test_rows_are_on_the_disk_while_later_images_are_read(network: twotower.TrainedNetwork, tmp_path: Path) -> None:
    """All but the last two batches, whatever the number of images: so memory does not grow with it."""
    batch_size, written = 2, []

    class Watching(GivenImages):
        def read(self, index: int, size: int) -> NDArray[np.uint8]:
            (pending,) = tmp_path.glob(".features.*.pending")
            table = np.memmap(pending / "fc7.npy", np.uint8, "r")[128:].view(np.float32).reshape(len(self), -1)
            written.append((index, int(table.any(axis=1).sum())))
            return super().read(index, size)

    images = np.random.default_rng(2).integers(0, 256, (13, 72, 72, 3), dtype=np.uint8)
    extract_features(network, Watching(list(images)), "fc7", tmp_path / "features", batch_size=batch_size)
    assert len(written) == len(images)
    for index, rows in written:
        assert rows >= index // batch_size * batch_size - 2 * batch_size
    assert written[-1][1] >= 8
    np.testing.assert_allclose(
        np.load(tmp_path / "features" / "fc7.npy"), network.activations(images, "fc7")["fc7"], rtol=1e-5, atol=1e-5
    )


def test_a_prepared_set_gives_its_splits_with_their_classes(network: twotower.TrainedNetwork, tmp_path: Path) -> None:
    root = tmp_path / "set"
    made(write_tree(tmp_path / "tree", tree_files()), root, size=72)
    with pytest.raises(ValueError, match=r"split=test is not in .*; choose one of train, val"):
        open_images(root, "test")
    output = tmp_path / "features"
    extract_features(network, root, "fc7", output, split="train", batch_size=4)
    dataset = open_images(root, "train")
    with (output / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["class"] for row in rows) == 3 * ["cat"] + 3 * ["dog"]
    assert all(f"/{row['class']}" in row["file"] for row in rows)
    squares = np.stack([dataset.read(index, network.size) for index in range(len(dataset))])
    np.testing.assert_allclose(
        np.load(output / "fc7.npy"), network.activations(squares, "fc7")["fc7"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"layers": ["conv9"]}, "there is no layer conv9; the layers are conv1, "),
        ({"layers": ["conv3.lrn"]}, "conv3 has no step lrn; its steps are conv3.sum, conv3.activation"),
        ({"layers": []}, "no layer is asked for"),
        ({"layers": ["fc7", "fc7"]}, "fc7 is asked for twice"),
        ({"tower": 2}, "there is no tower 2"),
        ({"format": "csv"}, "choose one of npy, safetensors"),
        ({"batch_size": 0}, "give 1 or more"),
        ({"on_error": "shout"}, "choose one of stop, skip"),
        ({"split": "val"}, "is for prepared sets"),
        ({"images": []}, "there are no images"),
        ({"output": "fc7.npy"}, "output=fc7.npy is called as a file.*; give output=fc7 and format=npy or"),
    ],
)
def test_what_cannot_be_had_is_refused(
    network: twotower.TrainedNetwork, photographs: Path, tmp_path: Path, options: dict[str, object], told: str
) -> None:
    given = {"images": photographs, "layers": ["fc7"], "output": tmp_path / "features"} | options
    with pytest.raises(ValueError, match=told):
        extract_features(network, **given)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_is_told_before_the_first_image(
    network: twotower.TrainedNetwork, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(row_files.shutil, "disk_usage", lambda folder: usage(10**6, 10**6 - 7000, 7000))
    monkeypatch.setattr("twotower.evaluation.extract_features.iterate_features", None)
    with pytest.raises(ValueError, match=r"has 7,000 bytes free, and the features of all images take 7,168;"):
        extract_features(network, photographs, "fc7", tmp_path / "features")
    assert not list(tmp_path.iterdir())


def test_batches_can_be_had_without_files(network: twotower.TrainedNetwork, photographs: Path) -> None:
    batches = list(iterate_features(network, photographs, ["fc6", "conv5.pool"], batch_size=3))
    assert [batch.rows for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [name for batch in batches for name in batch.names] == ORDER
    assert batches[2].values["fc6"].shape == (1, 256)


def test_paths_without_a_key() -> None:
    """The first is the run, unless weights are given, and the next the images; one layer needs no brackets."""
    to_overrides = script_of("features").to_overrides
    assert to_overrides(["RUN", "DIR", "layers=fc7", "output=x"]) == [
        *("run='RUN'", "data_root='DIR'", "layers=[fc7]", "output='x'")
    ]
    assert to_overrides(["weights=FILE", "DIR", "layers=[fc6,fc7]"])[1:] == ["data_root='DIR'", "layers=[fc6,fc7]"]


def run_main(*arguments: str) -> None:
    """launch/features.py in this process."""
    script = script_of("features")
    task_of(script).__wrapped__(hydra.compose("features", script.to_overrides(list(arguments))))


@pytest.mark.usefixtures("composing")
def test_the_command_on_a_network_by_name(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its files are what `activations` returns; without a terminal it counts the images in lines, and in none
    where the work is short."""
    monkeypatch.setattr("twotower.ground.progress.PLAIN_LINE_SECONDS", 0.0)
    output, layers = tmp_path / "features", ["conv2.lrn", "fc7"]
    words = ("weights=alexnet_shapes", str(photographs), "layers=[conv2.lrn,fc7]", f"output={output}", "tower=1")
    run_main(*words, "batch_size=3")
    assert sorted(path.name for path in output.iterdir()) == [
        "conv2.lrn.npy",
        "fc7.npy",
        "features.json",
        "images.csv",
    ]
    assert read_names(output) == ORDER
    network = twotower.load_network("alexnet_shapes", device="cpu")
    for name, wanted in network.activations([photographs / file for file in ORDER], layers, 1).items():
        np.testing.assert_allclose(read_files(output, "npy")[name], wanted.numpy(), rtol=1e-5, atol=1e-5)
    lines = capsys.readouterr().out.splitlines()
    counts = [line.partition(" images")[0] for line in lines if " of 7 images" in line]
    assert counts == [f"conv2.lrn, fc7: {done} of 7" for done in (3, 6, 7)]
    assert lines[3:5] == ["conv2.lrn: float32 [7, 32, 27, 27]", "fc7: float32 [7, 512]"]
    assert lines[5].startswith(
        f"written: {output / 'conv2.lrn.npy'}, {output / 'fc7.npy'}, and beside them images.csv"
    )
    monkeypatch.setattr("twotower.ground.progress.PLAIN_LINE_SECONDS", 1e9)
    run_main(*words[:3], f"output={tmp_path / 'again'}")
    assert "of 7 images" not in capsys.readouterr().out


def test_a_terminal_shows_a_bar(photographs: Path, tmp_path: Path) -> None:
    """On a pseudo-terminal: the bar counts the images, and is gone at the end."""
    pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
    master, terminal = pty.openpty()
    words = ("weights=cifar_80sec", str(photographs), "layers=conv3", "output=features", "format=safetensors")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launch" / "features.py"), *words],
        cwd=tmp_path,
        env=environment() | {"TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    shown = bytearray()
    try:
        with suppress(OSError):  # Linux ends a terminal that nobody writes to by an error
            while part := os.read(master, 4096):
                shown += part
        assert process.wait(timeout=DEADLINE) == 0, shown.decode()
    finally:
        os.close(master)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    text = shown.decode()
    assert re.search(r"conv3 .*7/7.* images", text), text
    assert text.rindex("7/7") < text.rindex("\x1b[2K") < text.index("conv3: float32 [7, "), "the bar is wiped"
    found = load_file(tmp_path / "features" / "features.safetensors")["conv3"]
    network = twotower.load_network("cifar_80sec", device="cpu")
    wanted = network.activations([photographs / file for file in ORDER], "conv3")["conv3"]
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-5)


def test_in_the_style_of_timm(network: twotower.TrainedNetwork) -> None:
    images = np.random.default_rng(4).integers(0, 256, (2, 72, 72, 3), dtype=np.uint8)
    shown = torch.from_numpy(images[:, 4:68, 4:68]).permute(0, 3, 1, 2).float()
    model = twotower.TimmStyle(network).eval()
    maps = model.forward_features(shown)
    wanted = network.activations(images, ["conv5", "fc7"])
    torch.testing.assert_close(maps, wanted["conv5"], rtol=1e-4, atol=1e-4)
    units = model.forward_head(maps, pre_logits=True)
    torch.testing.assert_close(units, wanted["fc7"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(shown), network.logits(images), rtol=1e-4, atol=1e-4)
    assert (model.num_features, model.head_hidden_size, model.num_classes) == (maps.shape[1], units.shape[1], 7)
    for info, layer in zip(model.feature_info, network.layers, strict=False):
        seen: list[torch.Tensor] = []
        handle = model.get_submodule(info["module"]).register_forward_hook(lambda m, i, o, seen=seen: seen.append(o))
        model(shown)
        handle.remove()
        torch.testing.assert_close(seen[0], network.activations(images, layer)[layer], rtol=1e-4, atol=1e-4)
        assert info["num_chs"] == seen[0].shape[1]
    assert [info["reduction"] for info in model.feature_info] == [8, 16, 16, 16, 32]
    model.reset_classifier(3)
    assert model.get_classifier().out_features == 3
    model(shown).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.reset_classifier(0)
    torch.testing.assert_close(model(shown), units)
    with pytest.raises(ValueError, match="global_pool=avg is not possible"):
        model.reset_classifier(3, "avg")
