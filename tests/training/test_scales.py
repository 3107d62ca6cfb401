"""What tells whether a network learns: sizes of weights, updates and outputs, and a loss that does not move."""

import math
import statistics

import pytest
import torch
import torch.nn.functional as F

from helpers.towers import load_network
from twotower.distributed.exchange import InProcessExchange
from twotower.model.conv1_kernels import colour_selectivity
from twotower.model.tower import Tower, forward
from twotower.training.layer_scales import OutputScales, as_values, measure
from twotower.training.optim import VelocitySGD
from twotower.training.stuck_loss import StuckLoss


def selectivity(kernel: list[list[list[float]]]) -> float:
    """Pixel by pixel: the part of the energy that is not along the grey axis."""
    chroma = whole = 0.0
    for reds, greens, blues in zip(*kernel, strict=True):
        for r, g, b in zip(reds, greens, blues, strict=True):
            along_grey = (r + g + b) / math.sqrt(3)
            whole += r * r + g * g + b * b
            chroma += r * r + g * g + b * b - along_grey**2
    return chroma / whole


def test_colour_selectivity_of_known_kernels():
    grey = torch.randn(1, 1, 5, 5).expand(1, 3, 5, 5)
    opponent = torch.tensor([1.0, -1.0, 0.0])[None, :, None, None] * torch.randn(1, 1, 5, 5)
    red = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None] * torch.randn(1, 1, 5, 5)
    found = colour_selectivity(torch.cat([grey, opponent, red]))
    assert found.tolist() == pytest.approx([0, 1, 2 / 3], abs=1e-6)
    drawn = colour_selectivity(torch.randn(96, 3, 11, 11, generator=torch.Generator().manual_seed(0)))
    assert float(drawn.mean()) == pytest.approx(2 / 3, abs=0.01)


def test_scales_are_what_was_computed():
    """Against the tensors themselves: weights before and after the step, and the logits of fc8."""
    network = load_network("alexnet_2012", width=0.0625, image_size=100)
    towers = [Tower(network, 12, t, seed=0) for t in (0, 1)]
    rules = [VelocitySGD(tower.paper_named_parameters(), 0.9, 5e-4, 2.0, False) for tower in towers]
    images, labels = torch.randn(4, 3, 100, 100) * 50, torch.randint(12, (4,))
    for step, rate in enumerate((0.01, 0.001)):
        before = [
            {name: p.detach().clone() for name, p in tower.paper_named_parameters().items()} for tower in towers
        ]
        for tower, rule in zip(towers, rules, strict=True):
            tower.train()
            tower.at_step(step, slice(None), 4)
            rule.set_rate(rate)
        with OutputScales(towers[0]) as first, OutputScales(towers[1]) as second:
            logits = forward(towers, images, InProcessExchange())
        F.cross_entropy(logits, labels).backward()
        for rule in rules:
            rule.step()
    found = as_values(
        [measure(towers[0], rules[0], first), measure(towers[1], rules[1], second)], list(network.layers)
    )
    assert len(found) == 2 * (8 * 3 + 1)
    for t, tower in enumerate(towers):
        now = {name: p.detach() for name, p in tower.paper_named_parameters().items()}
        for layer in network.layers:
            names = [name for name in now if name.startswith(f"{layer}.weight")]
            weight = torch.cat([now[name].flatten() for name in names]).abs().mean()
            if layer == "conv1":
                true = statistics.mean(selectivity(kernel) for kernel in now["conv1.weight"].tolist())
                assert found[f"tower{t}/conv1/colour"] == pytest.approx(true)
            update = torch.cat([(now[name] - before[t][name]).flatten() for name in names]).abs().mean()
            assert found[f"tower{t}/{layer}/weight"] == pytest.approx(float(weight), rel=1e-5)
            assert found[f"tower{t}/{layer}/update"] == pytest.approx(float(update), rel=1e-3)
        half = logits[:, 6 * t : 6 * t + 6]
        assert found[f"tower{t}/fc8/output"] == pytest.approx(float(half.detach().abs().mean()), rel=1e-5)
    with torch.no_grad():
        first.of.clear()
        forward(towers, images, InProcessExchange())
    assert not first.of, "outside of its context nothing is measured"


def test_a_stuck_loss_is_explained_once():
    stuck = StuckLoss(10, after_steps=100)
    assert stuck.look(50, 2.31) is None
    assert stuck.look(90, math.log(10)) is None
    notice = stuck.look(100, 2.302)
    assert notice is not None
    assert "ln(10) = 2.303" in notice
    assert "optim.learning_rate" in notice
    assert stuck.look(110, 2.302) is None


@pytest.mark.parametrize("losses", [[2.31, 2.2, 2.31, 2.31], [2.0] * 4, [8.4] * 4])
def test_a_loss_that_moved_is_left_alone(losses):
    stuck = StuckLoss(10, after_steps=3)
    assert [stuck.look(step + 1, loss) for step, loss in enumerate(losses)] == [None] * 4
