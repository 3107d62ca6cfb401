"""Every network of conf/network trains on what photographs look like, at its own rate and from its own input.

A network whose first weights are made for pixels of another scale goes to infinity within a few steps, which small
random tensors of the right size would never show. So the images are made as photographs are: large smooth structures,
contrast at every scale that falls with its frequency, the whole range of 0..255, JPEG, of different sizes.
"""

import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from helpers.composing import compose
from helpers.paths import ROOT
from twotower.config import Config
from twotower.data.batch import Batch, Share
from twotower.data.feed import open_train
from twotower.data.preparing.first_use import prepare
from twotower.distributed.exchange import InProcessExchange
from twotower.model.tower import Tower, forward
from twotower.training.optim import VelocitySGD

NETWORKS = sorted(path.stem for path in (ROOT / "conf" / "network").glob("*.yaml"))
CLASSES, BATCH, STEPS = 4, 16, 16
WIDTH, SIZE = 0.125, 128  # at 99 pixels an input that is 127 times too large does little harm
CPU = torch.device("cpu")
GUESSING = math.log(CLASSES)

# Networks whose rate is that of their own experiment.
EXPERIMENTS = {name for name in NETWORKS if (ROOT / "conf" / "experiment" / f"{name}.yaml").exists()}

# What a loss may do in 16 steps of 16 images, and why.
FALLS = {
    "alexnet_2012",
    "cifar_11pct",
    "cifar_13pct",
    "cifar_18pct",
    "cifar_80sec",
    "cifar_four_layer",
    "exchange_conv4",
    "lrn1_only",
    "no_exchange",
    "norm_below_relu",
    "one_tower",
    "six_conv",
    "six_conv_bottleneck",
}
STAYS = {
    "alexnet": "conv3-5 begin with a third of alexnet_2012's spread: it learns after 35 steps here",
    "alexnet_cifar": "torch's first weights shrink what passes, and its source has Adam: not after 80 steps",
    "alexnet_v2": "rises and falls by turns at this rate with so few images",
    "caffe_alexnet": "small first weights: it learns after 20 steps",
    "caffenet": "biases of 1 make large outputs, and the loss climbs to 2 before it falls",
    "half_tower": "fc layers begin with 0.01, and its source has Adam: it learns after 30 steps",
    "torchvision_alexnet": "torch's first weights shrink what passes: it learns after 70 steps",
}


def photograph(stream: np.random.Generator, label: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3]: clouds with a spectrum of 1/f in related colours, and on them a class's bright form."""
    height, width = (int(side) for side in stream.integers(260, 420, 2))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(stream.standard_normal((3, height, width))) / frequency
    clouds = np.fft.irfft2(noise, (height, width))
    grey, red, blue = clouds / clouds.std(axis=(1, 2), keepdims=True)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    form = (x > 0, y > 0, np.hypot(x, y) < 0.7, np.abs(x) + np.abs(y) > 1)[label]
    picture = np.stack([grey + 0.3 * red, grey, grey + 0.3 * blue], axis=2) + np.where(form, 1.5, -1.5)[:, :, None]
    low, high = np.quantile(picture, (0.02, 0.98))
    return (255 * (picture - low) / (high - low)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, stream = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for split, count in (("train", BATCH), ("val", CLASSES)):
        for number in range(count):
            path = root / split / f"class{number % CLASSES}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photograph(stream, number % CLASSES)).save(path, quality=90)
    return root


def small(name: str, root: Path) -> Config:
    """A network's own configuration at an eighth of the width; those for 32 pixels keep them."""
    smaller = [f"network.width={WIDTH}", f"network.image_size={SIZE + 3 * name.startswith('caffe')}"]
    if "cifar" in name:
        smaller = ["network.width=0.25"]
    chosen = f"experiment={name}" if name in EXPERIMENTS else f"network={name}"
    return compose(chosen, "data=folder", f"data.root={root}", *smaller)


_fed: dict[str, list[Batch]] = {}


def batches(config: Config) -> list[Batch]:
    """What a training is fed in its first steps; networks with one input share it."""
    key = f"{config.input} {config.data}"
    if key not in _fed:
        share = Share(BATCH, 0, 1, CPU, 1)
        dataset = prepare(config.data, progress=False)
        with closing(open_train(dataset, config.input, share, seed=0, first_step=0)) as feed:
            _fed[key] = [
                Batch(batch.images.clone(), batch.labels) for batch, _ in zip(feed, range(STEPS), strict=False)
            ]
    return _fed[key]


def train(config: Config) -> list[float]:
    """The loss of each step, at the configuration's own rate; the last one is the first that is not finite."""
    network, optim, exchange, losses = config.network, config.optim, InProcessExchange(), list[float]()
    towers = [Tower(network, CLASSES, tower, config.seed) for tower in range(network.towers)]
    rules = [
        VelocitySGD(
            tower.paper_named_parameters(),
            optim.momentum,
            optim.weight_decay,
            network.bias_rate,
            network.bias_decay,
            optim.rule,
            network.layer_decays(),
        )
        for tower in towers
    ]
    for step, batch in enumerate(batches(config)):
        for tower, rule in zip(towers, rules, strict=True):
            tower.train()
            tower.at_step(step, slice(None), BATCH)
            rule.set_rate(optim.learning_rate)
        loss = F.cross_entropy(forward(towers, batch.images, exchange), batch.labels)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            break
        loss.backward()
        for rule in rules:
            rule.step()
    return losses


def test_every_network_is_tried() -> None:
    """Guards the tests below against running nothing, and asks of a new network what its loss should do."""
    assert len(NETWORKS) > 10
    assert not FALLS & STAYS.keys()
    assert {"cifar_80sec", "cifar_18pct", "cifar_13pct", "cifar_11pct"} == EXPERIMENTS
    assert FALLS | STAYS.keys() == set(NETWORKS)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_learns_from_photographs(name: str, photographs: Path) -> None:
    """No loss is NaN or far above that of guessing, ln 4; most fall within 16 steps, the others are known not to."""
    config = small(name, photographs)
    assert config.optim.learning_rate == (0.001 if name in EXPERIMENTS else 0.01)
    is_scaled = (config.input.mean_value, config.input.std) != (None, [1, 1, 1])
    assert is_scaled == (name in ("alexnet_cifar", "half_tower", "torchvision_alexnet"))
    losses = train(config)
    assert len(losses) == STEPS
    assert max(losses) < 3 * GUESSING, losses
    if name in FALLS:
        assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.15, losses


@pytest.mark.usefixtures("one_thread")
def test_a_scale_that_is_foreign_is_found(photographs: Path) -> None:
    """What the test above must reject: half_tower on pixels of 0..255, as it was until it had a scale."""
    config = small("half_tower", photographs)
    config = replace(config, input=replace(config.input, mean_value=None, std=[1.0, 1.0, 1.0]))
    losses = train(config)
    assert not max(losses) < 3 * GUESSING
