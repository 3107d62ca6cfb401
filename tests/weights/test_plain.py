"""plain.py, the file that is exported: a module for each step, which hooks and torch.fx find."""

from dataclasses import asdict

import pytest
import torch
from torch import Tensor, fx

from helpers.towers import load_network
from twotower.model import plain
from twotower.weights.merged import expected_shapes

CLASSES, SIZE = 5, 67


def build(name: str) -> plain.Network:
    network = load_network(name, width=0.125, image_size=SIZE)
    generator = torch.Generator().manual_seed(0)
    shapes = expected_shapes(network, CLASSES)
    tensors = {key: torch.randn(shape, generator=generator) * 0.1 for key, shape in shapes.items()}
    return plain.Network(asdict(network), tensors | {"mean_image": torch.zeros(3, SIZE, SIZE)}).eval()


def images() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["alexnet_2012", "no_exchange", "half_tower"])
def test_hooks_fire_at_each_step_and_torch_fx_follows(name: str) -> None:
    network, seen = build(name), {}
    for step, module in network.named_children():
        module.register_forward_hook(
            lambda module, inputs, output, step=step: seen.update({step: (output, output.clone())})
        )
    logits = network(images())
    assert list(seen) == [step for step, _ in network.named_children()]
    assert {"conv1", "conv1_pool", "conv1_activation", "fc6_dropout", "fc8"} <= seen.keys() or name == "half_tower"
    assert all(torch.equal(*pair) for pair in seen.values())
    assert torch.equal(fx.symbolic_trace(build(name))(images()), logits)


def test_the_steps_of_2012_have_their_names_in_their_order() -> None:
    steps = [step for step, _ in build("alexnet_2012").named_children()]
    assert steps[:5] == ["conv1_pad", "conv1", "conv1_lrn", "conv1_pool", "conv1_activation"]
    assert steps[5:10] == ["conv2", "conv2_activation", "conv2_lrn", "conv2_spatial_norm", "conv2_pool"]
    assert steps[-1] == "fc8"
