"""launch/evaluate.py weights=FILE: from the file to the error rate, for our own files and for others'."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from helpers.fake_runs import NUM_CLASSES, draw_images, fake_run
from helpers.torchvision_weights import CLASSES, torchvision_logits, torchvision_state
from helpers.towers import load_network
from twotower.config import EvaluateConfig, ExportConfig, InputConfig
from twotower.data.dataset import MEAN_IMAGE
from twotower.evaluation.evaluate import evaluate_run, evaluate_weights
from twotower.weights.export import export_run

SIZE = 224


def test_an_exported_file_has_the_errors_of_its_run(tmp_path: Path) -> None:
    images = draw_images(tmp_path / "images")
    run = fake_run(tmp_path / "run", images)
    of_run = evaluate_run(EvaluateConfig(run=str(run), crops="ten", device="cpu"))
    shutil.copy(images / ".twotower" / MEAN_IMAGE, run / MEAN_IMAGE)  # as training leaves it
    (path, *_) = export_run(ExportConfig(run=str(run), output=str(tmp_path / "export"), force=True))
    settings = EvaluateConfig(weights=str(path), data_root=str(images), crops="ten", device="cpu")
    found = evaluate_weights(settings)
    assert found["network"] == "alexnet_2012"
    for view in ("centre", "ten"):
        assert found[view]["num_images"] == 3 * NUM_CLASSES
        for key in ("top1_error", "top5_error"):
            assert found[view][key] == of_run[view][key]
        assert found[view]["loss"] == pytest.approx(of_run[view]["loss"], rel=1e-5)
    with pytest.raises(
        ValueError, match=r"is network=alexnet_2012 with network.width=0.0625 and 7 classes.*caffenet"
    ):
        evaluate_weights(EvaluateConfig(weights=str(path), data_root=str(images), network=load_network("caffenet")))


def test_torchvisions_file_on_images_in_plain_torch(tmp_path: Path) -> None:
    """Images of the size that conv1 sees, so that nothing is resized or cropped: the loss is that of their pixels."""
    stream = np.random.default_rng(0)
    pixels = []
    for label in range(CLASSES):
        for split in ("train", "val"):
            picture = stream.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            path = tmp_path / "images" / split / f"c{label:02d}" / "0.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(picture).save(path)
            if split == "val":
                pixels.append(torch.from_numpy(picture).permute(2, 0, 1).double())
    state = torchvision_state()
    torch.save(state, tmp_path / "alexnet.pth")
    network = load_network("torchvision_alexnet", width=0.125, prepared_size=SIZE)
    settings = EvaluateConfig(
        weights=str(tmp_path / "alexnet.pth"),
        data_root=str(tmp_path / "images"),
        network=network,
        input=InputConfig(mean="central"),
        device="cpu",
    )
    found = evaluate_weights(settings)["centre"]
    labels = torch.arange(CLASSES)
    logits = torchvision_logits(state, torch.stack(pixels))
    assert found["loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    assert found["top1_error"] == pytest.approx(100 * float((logits.argmax(1) != labels).double().mean()))
    wrong = torchvision_logits(state, torch.stack(pixels).flip(1))
    assert abs(float(F.cross_entropy(wrong, labels)) - found["loss"]) > 1e-3 * found["loss"]


def test_a_run_keeps_its_mean_and_its_classes(tmp_path: Path) -> None:
    """On other data the run's own mean is subtracted; other classes are refused, however many there are."""
    images, others = draw_images(tmp_path / "images"), draw_images(tmp_path / "others")
    run = fake_run(tmp_path / "run", images)
    settings = EvaluateConfig(run=str(run), device="cpu")
    before = evaluate_run(settings)["loss"]
    mean_image = np.load(images / ".twotower" / MEAN_IMAGE)
    np.save(run / MEAN_IMAGE, mean_image + 40)
    assert evaluate_run(replace(settings, fresh=True))["loss"] != before
    np.save(run / MEAN_IMAGE, mean_image)
    assert evaluate_run(replace(settings, fresh=True))["loss"] == before
    (others / "train" / "c3").rename(others / "train" / "cat")
    (others / "val" / "c3").rename(others / "val" / "cat")
    with pytest.raises(ValueError, match="the first that differs is c3 there, c4 here"):
        evaluate_run(replace(settings, data_root=str(others)))
    np.save(run / MEAN_IMAGE, mean_image[:100, :100])
    with pytest.raises(ValueError, match="brought to 100 pixels, and the data set has 256"):
        evaluate_run(settings)
