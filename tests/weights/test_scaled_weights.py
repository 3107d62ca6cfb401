"""Weights that were trained on pixels over a std, used elsewhere: evaluated, exported, taken over.

Each way of using them is held against the run itself, and rejects what they would say without that std.
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from helpers import oracle
from helpers.composing import compose
from helpers.fake_runs import NUM_CLASSES, draw_images, fake_config, fake_run, scaled_run
from helpers.torchvision_weights import CLASSES, torchvision_logits, torchvision_state
from helpers.towers import load_network
from twotower.config import EvaluateConfig, ExportConfig, InitialWeightsConfig, NetworkConfig
from twotower.distributed.exchange import InProcessExchange
from twotower.evaluation.evaluate import evaluate_run, evaluate_weights
from twotower.model import plain
from twotower.model.tower import Tower, forward
from twotower.runs import checkpoint, rundir
from twotower.weights import read_weights as weights
from twotower.weights.export import export_run
from twotower.weights.merged import divide_image_weights, expected_shapes
from twotower.weights.transfer import inherit, plan_inheritance
from twotower.weights.verify import verify

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("images"))


def test_exported_and_stored_weights_have_the_runs_errors(images: Path, tmp_path: Path) -> None:
    """The merged file has the scale in conv1; a folder's weights as they are get their own scale and constants.

    Whatever input is asked for beside them: mean and scale belong to the weights.
    """
    run = scaled_run(tmp_path / "run", images)
    true = evaluate_run(EvaluateConfig(run=str(run), device="cpu"))["centre"]["loss"]
    (file, _) = export_run(ExportConfig(run=str(run), output=str(tmp_path / "export"), force=True))
    network = fake_config(images, "input=torchvision", "input.crop_size=64").network
    for path, asked in ((file, None), (run, None), (run, compose("input=zero_to_one").input)):
        settings = EvaluateConfig(
            weights=str(path), network=network, input=asked, data_root=str(images), device="cpu"
        )
        assert evaluate_weights(settings)["centre"]["loss"] == pytest.approx(true, rel=1e-5), path
    # What the tolerance must reject: the same weights as if they had been trained without a scale.
    manifest = next((run / "checkpoints").glob("*/manifest.json"))
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"input": {}}))
    settings = EvaluateConfig(weights=str(run), data_root=str(images), device="cpu")
    assert abs(evaluate_weights(settings)["centre"]["loss"] - true) > 1e-2 * true


@torch.no_grad()
def test_plain_takes_pixels_less_the_mean_of_any_network(images: Path, tmp_path: Path) -> None:
    """`network(images - network.mean_image)` is what the towers say of (images - constants) / std."""
    run = scaled_run(tmp_path / "run", images)
    (file, _) = export_run(ExportConfig(run=str(run), output=str(tmp_path / "export"), force=True))
    found = verify(file)
    # The weights are three times as wide as they are drawn: of an untrained run all layers are named.
    assert found.untrained == []
    tensors = load_file(file)
    config = fake_config(images, "input=torchvision", "input.crop_size=64").input
    assert config.mean_value is not None
    for name in ("mean_image", "whole_mean_image"):
        assert torch.equal(tensors[name], torch.tensor(config.mean_value)[:, None, None].expand_as(tensors[name]))
    pixels = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    own = weights.read_checkpoint(run)
    assert own.network is not None
    assert own.std == config.std
    assert own.mean is not None
    towers = weights.build_towers(own.tensors, own.network, NUM_CLASSES, CPU)
    fed = (pixels - own.mean[:, None, None]) / torch.tensor(own.std)[:, None, None]
    logits = forward([tower.double() for tower in towers], fed.double(), InProcessExchange())
    network = plain.load(file)
    assert oracle.deviation(network(pixels - network.mean_image), logits) < 1e-5
    assert oracle.deviation(network(fed), logits) > 1e-2


def test_an_untrained_conv1_is_known_behind_its_scale(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = fake_config(images, "network=torchvision_alexnet", "network.image_size=91")
    tower = Tower(config.network, NUM_CLASSES, 0, seed=0)
    checkpoint.save_tower(run / "checkpoints", 1, tower, {})
    classes = [f"c{label}" for label in range(NUM_CLASSES)]
    scale = checkpoint.read_scale(config.input)
    manifest = checkpoint.Manifest(1, asdict(config.network), classes, {}, {}, {}, {}, {}, scale)
    checkpoint.complete(run / "checkpoints", manifest, keep=1)
    OmegaConf.save(OmegaConf.structured(config), run / "config.yaml")
    np.save(run / rundir.MEAN_IMAGE, np.zeros((256, 256, 3), np.float32))
    (file, _) = export_run(ExportConfig(run=str(run), force=True))
    assert verify(file).untrained == list(config.network.layers)


@pytest.mark.parametrize("towers", [1, 2])
@pytest.mark.parametrize("groups", [1, 3])
def test_weights_are_divided_by_their_own_channels_std(towers: int, groups: int) -> None:
    """With three groups a kernel sees one channel, which depends on its place in its tower."""
    conv1 = {"kind": "conv", "kernels": 12, "reads": "image", "size": 3, "groups": groups, "then": ["activation"]}
    fc2 = {"kind": "linear", "kernels": None, "reads": "both", "then": []}
    table = {"name": "small", "layers": {"conv1": conv1, "fc2": fc2}, "towers": towers, "image_size": 5}
    network = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(NetworkConfig), table))
    assert isinstance(network, NetworkConfig)
    draw, std = torch.Generator().manual_seed(1), [58.0, 5.0, 120.0]
    merged = {name: torch.randn(shape, generator=draw) for name, shape in expected_shapes(network, 4).items()}
    pixels = torch.rand(2, 3, 5, 5, generator=draw, dtype=torch.float64) * 255

    def logits(tensors: dict[str, Tensor], x: Tensor) -> Tensor:
        ours = weights.build_towers(tensors, network, 4, CPU)
        with torch.no_grad():
            return forward([tower.double() for tower in ours], x, InProcessExchange())

    true = logits(merged, pixels / torch.tensor(std)[:, None, None])
    assert oracle.deviation(logits(divide_image_weights(merged, network, std), pixels), true) < 1e-6
    assert oracle.deviation(logits(divide_image_weights(merged, network, std[::-1]), pixels), true) > 1e-2
    assert divide_image_weights(merged, network, [1, 1, 1])["conv1.weight"] is merged["conv1.weight"]


@torch.no_grad()
@pytest.mark.parametrize(("source", "own"), [("torchvision", [1.0, 1.0, 1.0]), ("zero_to_one", [58.0, 57.0, 50.0])])
def test_initial_weights_are_brought_to_the_new_scale(
    images: Path, tmp_path: Path, source: str, own: list[float]
) -> None:
    """So that they say of a pixel what they said in the run that they come from; its scale alone is not enough."""
    run = fake_run(tmp_path / "run", images, f"input={source}", "input.crop_size=64")
    theirs = weights.read_checkpoint(run)
    network = theirs.network
    assert network is not None
    assert theirs.classes is not None
    towers = [Tower(network, NUM_CLASSES, t, seed=9) for t in range(2)]
    for tower in towers:
        given = inherit(InitialWeightsConfig(str(run)), network, theirs.classes, tower, own)
        assert given is not None
        assert given.describe().endswith("; brought to this input's scale: conv1")
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255 - 100

    def of(ours: list[Tower], std: list[float]) -> Tensor:
        return forward([tower.eval() for tower in ours], x / torch.tensor(std)[:, None, None], InProcessExchange())

    true = of(weights.build_towers(theirs.tensors, network, NUM_CLASSES, CPU), list(theirs.std))
    assert oracle.deviation(of(towers, own), true) < 1e-5
    assert oracle.deviation(of(towers, list(theirs.std)), true) > 1e-2
    # From a run with the same scale they are the same bits.
    same = Tower(network, NUM_CLASSES, 0, seed=9)
    given = inherit(InitialWeightsConfig(str(run)), network, theirs.classes, same, theirs.std)
    assert given is not None
    assert given.rescaled == []
    split = weights.split(theirs.tensors, network, NUM_CLASSES, 0)
    assert all(torch.equal(p, split[name]) for name, p in same.paper_named_parameters().items())


@torch.no_grad()
def test_towers_take_over_each_others_kernels(images: Path, tmp_path: Path) -> None:
    """Of the layers that are named, and of no others; each kernel is where the other tower had it."""
    run = fake_run(tmp_path / "run", images)
    theirs = weights.read_checkpoint(run)
    network = theirs.network
    assert network is not None
    assert theirs.classes is not None
    halves = [weights.split(theirs.tensors, network, NUM_CLASSES, t) for t in range(2)]
    for t in range(2):
        tower = Tower(network, NUM_CLASSES, t, seed=9)
        given = inherit(InitialWeightsConfig(str(run), swapped=["conv1", "conv3"]), network, theirs.classes, tower)
        assert given is not None
        assert given.describe().endswith("; swapped between the towers: conv1, conv3")
        for name, parameter in tower.paper_named_parameters().items():
            is_swapped = name.split(".")[0] in ("conv1", "conv3")
            assert torch.equal(parameter, halves[1 - t if is_swapped else t][name]), name
            if is_swapped and not name.endswith("bias"):
                assert not torch.equal(parameter, halves[t][name]), name


@pytest.mark.parametrize(
    ("more", "swapped", "message"),
    [
        ([], ["conv9"], "conv9, which is not taken over; taken over are conv1, "),
        ([], ["fc8"], "fc8, whose halves are classes"),
        (["network=one_tower"], ["conv1"], "needs two towers, and one_tower has one"),
    ],
)
def test_what_cannot_be_swapped_is_refused(
    images: Path, tmp_path: Path, more: list[str], swapped: list[str], message: str
) -> None:
    run = fake_run(tmp_path / "run", images, *more)
    network = weights.read_checkpoint(run).network
    assert network is not None
    classes = [f"c{number}" for number in range(NUM_CLASSES)]
    with pytest.raises(ValueError, match=message):
        plan_inheritance(InitialWeightsConfig(str(run), swapped=swapped), network, classes)


def test_torchvisions_file_gives_the_same_answer_with_any_input(tmp_path: Path) -> None:
    """Evaluated as it was trained, and taken over into a run with torchvision's scale as it came."""
    stream, pixels = np.random.default_rng(0), []
    for label in range(CLASSES):
        for split in ("train", "val"):
            picture = stream.integers(0, 256, (224, 224, 3), dtype=np.uint8)
            path = tmp_path / "images" / split / f"c{label:02d}" / "0.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(picture).save(path)
            if split == "val":
                pixels.append(torch.from_numpy(picture).permute(2, 0, 1).double())
    state = torchvision_state()
    file = tmp_path / "alexnet.pth"
    torch.save(state, file)
    network = load_network("torchvision_alexnet", width=0.125, prepared_size=224)
    labels, found = torch.arange(CLASSES), []
    for preset in ("torchvision", "crops_and_flips", "zero_to_one"):
        settings = EvaluateConfig(
            weights=str(file),
            data_root=str(tmp_path / "images"),
            network=network,
            input=compose(f"input={preset}").input,
            device="cpu",
        )
        found.append(evaluate_weights(settings)["centre"]["loss"])
    assert found[0] == found[1] == found[2]
    logits = torchvision_logits(state, torch.stack(pixels))
    assert found[0] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
