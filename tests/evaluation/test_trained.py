"""Networks from Python: loaded in a line, shown arrays and files, and looked into layer by layer."""

from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import twotower
from helpers.fake_runs import NUM_CLASSES, draw_images, fake_run
from twotower.config import EvaluateConfig, ExportConfig
from twotower.data.batch import Share
from twotower.data.dataset import MEAN_IMAGE
from twotower.data.feed import ValidationFeed
from twotower.evaluation.evaluate import make_predictions
from twotower.evaluation.subject import open_subject
from twotower.model import plain
from twotower.weights.export import export_run
from twotower.weights.read_weights import read_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose images are squares of 72 pixels, which no way of resizing can change."""
    folder = tmp_path_factory.mktemp("trained")
    images = draw_images(folder / "images")
    for path in images.rglob("*.png"):
        with Image.open(path) as image:
            square = image.resize((72, 72))
        square.save(path)
    run = fake_run(folder / "run", images, "data.size=72", "input.std=[40,40,40]")
    subject = open_subject(str(run), EvaluateConfig(run=str(run), device="cpu"))
    np.save(run / MEAN_IMAGE, subject.dataset.mean_image)
    return run


@pytest.fixture(scope="module")
def network(run: Path) -> twotower.TrainedNetwork:
    return twotower.load_network(run, device="cpu")


@pytest.fixture(scope="module")
def photographs(run: Path) -> list[Path]:
    return sorted((run.parent / "images" / "val").rglob("*.png"))[:4]


def noise(count: int, height: int = 80, width: int = 96) -> NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def read_stored(run: Path, crops: str) -> tuple[torch.Tensor, list[Path]]:
    """Evaluation's log-probabilities of the validation images, computed in one batch, and the images' files."""
    settings = EvaluateConfig(run=str(run), crops=crops, device="cpu")
    subject = open_subject(str(run), settings)
    val = subject.dataset.val
    files = [run.parent / "images" / val.name(index) for index in range(len(val))]
    return make_predictions(subject, settings)[crops].log_probabilities, files


@pytest.mark.parametrize("crops", ["centre", "ten"])
def test_images_that_are_not_resized_get_the_bits_of_evaluation(
    run: Path, network: twotower.TrainedNetwork, crops: str
) -> None:
    """DALI, where it is installed, decodes for evaluation, and Pillow decodes here."""
    stored, files = read_stored(run, crops)
    ours = network.log_probabilities(files, crops)
    assert ours.shape == stored.shape == (3 * NUM_CLASSES, NUM_CLASSES)
    assert torch.equal(ours, stored)
    assert (ours - stored.roll(1, 0)).abs().max() > 0.1, "the images make no difference"
    if crops == "centre":
        assert torch.allclose(network.logits(files).log_softmax(1), ours, atol=1e-4)


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_resized_images_get_the_bits_of_the_torch_loader_and_nearly_those_of_dali(
    tmp_path: Path, loader: str
) -> None:
    """DALI rounds one pixel in five of these images to the neighbouring grey level; the logits follow."""
    if loader == "dali":
        pytest.importorskip("nvidia.dali")
    images = draw_images(tmp_path / "images", num_val=1)
    run = fake_run(tmp_path / "run", images, "data.size=72", "input.std=[40,40,40]", f"input.loader={loader}")
    subject = open_subject(str(run), EvaluateConfig(run=str(run), device="cpu"))
    np.save(run / MEAN_IMAGE, subject.dataset.mean_image)
    network = twotower.load_network(run, device="cpu")
    stored, files = read_stored(run, "centre")
    difference = (network.log_probabilities(files) - stored).abs().max()
    assert (difference == 0) == (loader == "torch")
    assert difference < 0.1
    share = Share(NUM_CLASSES, 0, 1, torch.device("cpu"), 1)
    feed = ValidationFeed(subject.dataset, subject.dataset.val, subject.config.input, share, crops="centre")
    with closing(feed):
        theirs = next(feed).images
    levels = ((network.preprocess(files) - theirs) * 40).abs()  # input.std divided them by 40
    assert levels.max() < 1.01, "some pixel differs by more than one grey level"
    assert ((levels > 0.99).float().mean() > 0.05) == (loader == "dali")


@pytest.mark.parametrize("kind", ["run", "checkpoint", "export"])
def test_one_line_loads_a_run_and_an_exported_file(
    run: Path, network: twotower.TrainedNetwork, tmp_path: Path, kind: str
) -> None:
    if kind == "export":
        written = export_run(ExportConfig(run=str(run), output=str(tmp_path), force=True))
        path = next(file for file in Path(tmp_path).glob("*.safetensors"))
        assert written
        other = twotower.load_network(path, device="cpu", check=False)  # it was never trained
    else:
        path = run / "checkpoints" / "step-00000001" if kind == "checkpoint" else run
        other = twotower.load_network(str(path), device="cpu")
    images = noise(2)
    # Exported files have the scale of the input in conv1, which rounds differently.
    assert torch.allclose(other.logits(images), network.logits(images), rtol=1e-3, atol=1e-3)
    assert other.classes == network.classes == [f"c{label}" for label in range(NUM_CLASSES)]


def test_layers_are_those_of_the_network_in_one_piece(run: Path, network: twotower.TrainedNetwork) -> None:
    """plain.py shares no code with the towers; its modules are hooked at the last step of each layer."""
    imported = read_checkpoint(run)
    assert imported.network is not None
    size = network.input.crop_size
    tensors = {name: tensor.float() for name, tensor in imported.tensors.items()}
    whole = plain.Network(asdict(imported.network), tensors | {"mean_image": torch.zeros(3, size, size)}).eval()
    images = noise(3)
    seen: dict[str, torch.Tensor] = {}
    for name, module in whole.named_children():
        layer = name.split("_")[0]
        module.register_forward_hook(lambda module, inputs, output, layer=layer: seen.update({layer: output}))
    with torch.no_grad():
        logits = whole(network.preprocess(images))
    ours = network.activations(images, network.layers)
    assert list(ours) == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
    for name, values in ours.items():
        scale = seen[name].abs().max()
        assert values.shape == seen[name].shape
        assert (values - seen[name]).abs().max() < 1e-5 * scale, name
        halves = [network.activations(images, name, tower=tower)[name] for tower in range(2)]
        assert torch.equal(torch.cat(halves, dim=1), values)
        assert (torch.cat(halves[::-1], dim=1) - seen[name]).abs().max() > 1e-2 * scale, "towers in the wrong order"
    assert torch.allclose(network.logits(images), logits, rtol=1e-4, atol=1e-3)


def test_images_are_paths_or_arrays(network: twotower.TrainedNetwork, photographs: list[Path]) -> None:
    several = network.logits(photographs)
    assert several.shape == (4, NUM_CLASSES)
    assert torch.allclose(network.logits(str(photographs[1])), several[1:2], rtol=1e-4, atol=1e-3)
    images = noise(2)
    assert torch.allclose(network.logits([images[0], photographs[0]])[1], several[0], rtol=1e-4, atol=1e-3)
    assert network.logits(images[0]).shape == (1, NUM_CLASSES)
    assert network.preprocess(images).shape == (2, 3, 64, 64)
    assert network.preprocess(images, crops="ten").shape == (2, 10, 3, 64, 64)
    ranked = network.predict(images, top=3)
    assert [len(row) for row in ranked] == [3, 3]
    best = network.logits(images).argmax(dim=1)
    assert [row[0][0] for row in ranked] == [network.names[index] for index in best]


def test_gradients_flow_through_a_call_and_not_through_questions(network: twotower.TrainedNetwork) -> None:
    images = network.preprocess(noise(1)).requires_grad_()
    network(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0
    assert not network.logits(noise(1)).requires_grad
    network.zero_grad()


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda n: n.activations(noise(1), "conv9"), r"there is no layer conv9; the layers are conv1, .*fc8\."),
        (lambda n: n.activations(noise(1), "conv1", tower=2), r"there is no tower 2; the network has 2"),
        (lambda n: n.logits(noise(1).astype(np.float32)), r"an array of float32 .*give uint8 \[H, W, 3\]"),
        (lambda n: n.logits(noise(1)[0, :, :, 0]), r"an array of uint8 \[80, 96\]; give uint8 \[H, W, 3\]"),
        (lambda n: n.logits([]), r"there are no images; give paths"),
        (lambda n: n.logits("nowhere.jpg"), r"nowhere\.jpg cannot be read: No such file"),
        (lambda n: n.preprocess(noise(1), crops="five"), r"crops=five is not known; choose one of centre, ten"),
        (lambda n: twotower.load_network("nowhere"), r"^nowhere does not exist; give a run's .*\.caffemodel"),
        (lambda n: twotower.load_network("nowhere", checkpoint="step-1"), r"^nowhere does not exist"),
        (
            lambda n: twotower.build_network("alexnet_2013"),
            r"network=alexnet_2013 is not among .*conf/network; choose one of alexnet, alexnet_2012, .*one_tower, ",
        ),
        (lambda n: twotower.build_network("alexnet", widht=1), r"widht"),
        (lambda n: twotower.build_network("alexnet", 0), r"^num_classes=0 is not at least 1"),
        (lambda n: n.predict(noise(1), top=0), r"^top=0 is not at least 1"),
        (lambda n: twotower.load_network("nowhere", device="gpu"), r"device=gpu is not known"),
        (lambda n: twotower.load_network(__file__, network="alexnot"), r"network=alexnot is not among .*caffenet, "),
    ],
)
def test_mistakes_are_one_sentence(network: twotower.TrainedNetwork, ask: object, sentence: str) -> None:
    assert callable(ask)
    with pytest.raises(ValueError, match=sentence) as caught:
        ask(network)
    assert "\n" not in str(caught.value)


def test_presets_are_built_with_the_input_that_they_were_made_for() -> None:
    network = twotower.build_network("caffenet", 10, width=0.125, device="cpu")
    assert (len(network.towers), network.size, network.input.colour_noise) == (1, 256, "none")
    assert network.classes[:3] == ["0", "1", "2"]
    again = twotower.build_network("caffenet", 10, width=0.125, device="cpu")
    other = twotower.build_network("caffenet", 10, width=0.125, seed=1, device="cpu")
    images = noise(1)
    assert torch.equal(network.logits(images), again.logits(images))
    assert not torch.equal(network.logits(images), other.logits(images))
