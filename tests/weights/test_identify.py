"""Which AlexNet a file is: each is found in every layout that it comes in, and what is none of them is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers.commands import command, finish
from helpers.fake_runs import fake_run
from helpers.paths import ROOT
from twotower.config.presets import preset
from twotower.model.tower import Tower
from twotower.weights.any_file import read_layers_of
from twotower.weights.differences import list_differences
from twotower.weights.identify import TITLES, Identity, identify
from twotower.weights.merged import expected_shapes, merge

WIDTH, CLASSES = 0.0625, 10
NO_NUMBER_TELLS = {"alexnet", "alexnet_2012", "caffenet"}  # biases of 1 in the same layers


def trained(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Weights as if they had been trained: heavy tails, and biases around where they begin."""
    draw = torch.Generator().manual_seed(seed)
    network = replace(preset(name), width=WIDTH)
    state = {}
    for key, shape in expected_shapes(network, CLASSES).items():
        numbers = torch.randn(shape, generator=draw)
        if key.endswith("weight"):
            state[key] = 0.03 * numbers**3
        else:
            state[key] = network.layers[key.partition(".")[0]].initial_bias + 0.04 * numbers
    return state


def saved(state: dict[str, Tensor], path: Path) -> Identity:
    torch.save(state, path)
    return identify(path)


def names(found: Identity) -> set[str]:
    return {network.name for network in found.networks}


@pytest.mark.parametrize("name", sorted(TITLES))
def test_each_is_found_among_all(name: str, tmp_path: Path) -> None:
    found = saved(trained(name), tmp_path / "weights.pth")
    assert names(found) == (NO_NUMBER_TELLS if name in NO_NUMBER_TELLS else {name})
    assert (found.width, found.num_classes, found.untrained) == (WIDTH, CLASSES, [])


def test_biases_tell_the_networks_of_one_shape_apart(tmp_path: Path) -> None:
    """With the biases of another one it would be taken for that; half way between it is not decided."""
    state, other = trained("caffe_alexnet"), trained("caffenet")
    assert expected_shapes(preset("caffe_alexnet"), CLASSES) == expected_shapes(preset("caffenet"), CLASSES)
    biases = {key: value for key, value in other.items() if key.endswith("bias")}
    assert names(saved(state | biases, tmp_path / "a.pth")) == NO_NUMBER_TELLS
    between = {key: (state[key] + value) / 2 for key, value in biases.items()}
    assert names(saved(state | between, tmp_path / "b.pth")) == {*NO_NUMBER_TELLS, "caffe_alexnet"}


def as_torchvision_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Wrapped by DataParallel."""
    places = ("features.0", "features.3", "features.6", "features.8", "features.10")
    places += ("classifier.1", "classifier.4", "classifier.6")
    stems = dict(zip(preset("torchvision_alexnet").layers, places, strict=True))
    return {
        f"module.{stems[stem]}.{part}": value
        for key, value in state.items()
        for stem, _, part in [key.partition(".")]
    }


def as_checkpoint(state: dict[str, Tensor], path: Path) -> Path:
    torch.save({"epoch": 3, "state_dict": as_torchvision_names(state)}, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def as_safetensors(state: dict[str, Tensor], path: Path) -> Path:
    """Which sorts its names, so that the classifier comes before the features."""
    save_file(as_torchvision_names(state), path.with_suffix(".safetensors"))
    return path.with_suffix(".safetensors")


def as_caffe_npz(state: dict[str, Tensor], path: Path) -> Path:
    np.savez(path.with_suffix(".npz"), **{key: value.numpy() for key, value in state.items()})
    return path.with_suffix(".npz")


def as_tensorflow_npz(state: dict[str, Tensor], path: Path) -> Path:
    """Maps last, and fc6 to fc8 as convolutions."""
    arrays = {}
    for key, value in state.items():
        array = value.numpy()
        if key.endswith("weight"):
            linear = key.startswith("fc")
            side = 5 if key == "fc6.weight" else 1
            array = array.reshape(len(array), -1, side, side) if linear else array
            array = array.transpose(2, 3, 1, 0)
        arrays[key] = array
    np.savez(path.with_suffix(".npz"), **arrays)
    return path.with_suffix(".npz")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("torchvision_alexnet", as_checkpoint),
        ("torchvision_alexnet", as_safetensors),
        ("caffe_alexnet", as_caffe_npz),
        ("alexnet_v2", as_tensorflow_npz),
    ],
)
def test_in_the_layouts_that_they_come_in(
    name: str, write: Callable[[dict[str, Tensor], Path], Path], tmp_path: Path
) -> None:
    assert names(identify(write(trained(name), tmp_path / "weights"))) == {name}


@pytest.mark.parametrize("name", ["alexnet_2012", "torchvision_alexnet", "alexnet_v2"])
def test_weights_that_were_only_drawn_are_said(name: str, tmp_path: Path) -> None:
    network = replace(preset(name), width=WIDTH)
    towers = [Tower(network, CLASSES, tower, seed=3).paper_named_parameters() for tower in range(network.towers)]
    drawn = merge([{key: parameter.detach() for key, parameter in tower.items()} for tower in towers])
    assert set(saved(drawn, tmp_path / "a.pth").untrained) == set(network.layers)
    one = trained(name) | {key: value for key, value in drawn.items() if key.startswith("fc7.")}
    assert saved(one, tmp_path / "b.pth").untrained == ["fc7"]


@pytest.mark.parametrize(
    ("name", "network", "alike", "size"),
    [
        ("alexnet_shapes", "alexnet_2012", NO_NUMBER_TELLS, (0.25, 12)),
        ("cifar_80sec", "cifar_80sec", {"cifar_80sec"}, (1.0, 10)),
        ("cifar_18pct", "cifar_18pct", {"cifar_18pct", "cifar_four_layer"}, (1.0, 10)),
    ],
)
def test_trained_networks_are_found_without_their_metadata(
    name: str, network: str, alike: set[str], size: tuple[float, int], tmp_path: Path
) -> None:
    """Those of results/, from their layers' weights alone: the right one is among what no number tells apart."""
    file = ROOT / "results" / name / "model.safetensors"
    state = {key: value for key, value in load_file(file).items() if "mean_image" not in key}
    found = saved(state, tmp_path / "weights.pth")
    assert network in names(found) == alike
    assert (found.width, found.num_classes, found.untrained) == (*size, [])
    assert f"the shapes of its {len(state) // 2} layers fit " in found.reasons[0]
    assert identify(file).reasons == [f"it says that it is {network}"]


def test_what_is_none_is_said_with_the_nearest(tmp_path: Path) -> None:
    state = trained("torchvision_alexnet")
    state["conv4.weight"] = torch.randn(24, 24, 3, 3)
    state["conv4.bias"] = torch.randn(24)
    found = saved(state, tmp_path / "a.pth")
    assert found.networks == []
    assert found.nearest is not None
    name, difference = found.nearest
    assert name in ("torchvision_alexnet", "alexnet_v2")
    assert difference.startswith("conv4 is [24, 24, 3, 3] and would be [")
    for nameless in (
        {"weight": torch.ones(64, 3, 7, 7), "bias": torch.ones(64)},
        {".weight": torch.ones(64, 3, 7, 7)},
    ):
        found = saved(nameless, tmp_path / "single.pth")
        assert found.nearest is not None
        assert found.nearest[1].startswith("layer 1 is [64, 3, 7, 7] and would be [")
    (layer,) = read_layers_of(tmp_path / "single.pth").layers
    assert layer.bias is None
    torch.save({"weight": torch.ones(5, 3), "bias": torch.arange(5.0)}, tmp_path / "single.pth")
    (layer,) = read_layers_of(tmp_path / "single.pth").layers
    assert (layer.name, layer.bias.tolist()) == ("layer 1", [0, 1, 2, 3, 4])  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"holds no state dictionary"):
        saved([1], tmp_path / "b.pth")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"has no layers with weights"):
        saved({"a": torch.ones(3)}, tmp_path / "c.pth")
    (tmp_path / "d.txt").write_text("")
    for file, sentence in (("d.txt", "is of a kind that is not known here"), ("nowhere", "does not exist")):
        with pytest.raises(ValueError, match=sentence):
            identify(tmp_path / file)


def test_differences_to_the_paper_are_those_of_the_tables() -> None:
    assert list_differences(preset("alexnet"), 1000) == []
    rows = {row[0]: row[1:] for row in list_differences(preset("torchvision_alexnet"), 1000)}
    assert rows["conv1, maps or units"] == ("64", "96")
    assert rows["conv2, reads"] == ("all maps", "those of its own half")
    assert rows["LRN"][0] == "none"
    assert "conv3, maps or units" not in rows, "384 in both"
    caffe = {row[0]: row[1:] for row in list_differences(preset("caffe_alexnet"), 1000)}
    assert "conv2, reads" not in caffe, "two groups are two towers that do not see each other"
    assert caffe["pixels of the image"] == ("227", "224")
    two = {row[0]: row[1:] for row in list_differences(preset("alexnet_2012"), 1000)}
    assert two["conv1, order after the sum"] == ("lrn, pool, activation", "activation, lrn, pool")


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    """A run says what it is; a stranger's file is told by its numbers."""
    run = fake_run(tmp_path / "run", tmp_path / "data")
    status, output = finish(command(str(run), cwd=tmp_path, script="identify.py"))
    assert status == 0, output
    assert f"{TITLES['alexnet_2012']}, width 0.0625" in output
    assert "it says that it is alexnet_2012" in output
    torch.save(trained("caffe_alexnet"), tmp_path / "weights.pth")
    status, output = finish(command("weights.pth", cwd=tmp_path, script="identify.py"))
    assert status == 0, output
    assert TITLES["caffe_alexnet"] in output
    torch.save({"conv.weight": torch.randn(64, 3, 7, 7)}, tmp_path / "weights.pth")
    status, output = finish(command("weights.pth", cwd=tmp_path, script="identify.py"))
    assert status == 1
    assert "error: weights.pth is none of the AlexNets that are known here; the nearest is" in output
    assert json.dumps(output).count("Traceback") == 0
    status, output = finish(command(cwd=tmp_path, script="identify.py"))
    assert (status, output.strip()) == (1, "error: give a file of weights: python launch/identify.py FILE")
