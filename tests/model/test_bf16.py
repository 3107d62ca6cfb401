"""bf16: convolutions, products and what crosses in bfloat16; weights, gradients, norms and loss in float32."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import oracle
from helpers.composing import compose
from twotower.distributed.exchange import Flight, InProcessExchange
from twotower.model.layers import LocalResponseNorm, SpatialNorm
from twotower.model.tower import Tower, forward

CLASSES, IMAGES = 10, 8


class Watched(InProcessExchange):
    """Remembers what crosses."""

    def __init__(self) -> None:
        super().__init__("single")
        self.crossed: list[torch.dtype] = []

    def start(self, halves: Sequence[Tensor]) -> Flight:
        self.crossed += [half.dtype for half in halves]
        return super().start(halves)


def train_once(network: str, precision: str) -> tuple[float, dict[str, Tensor], Watched, Tensor]:
    """Loss and gradients of one step without dropout, what crossed, and the logits."""
    config = compose(f"network={network}", "network.width=0.125", "network.dropout_keep=1.0").network
    towers = [Tower(config, CLASSES, tower, 0).on(torch.device("cpu"), torch.channels_last) for tower in (0, 1)]
    stream = torch.Generator().manual_seed(1)
    size = config.image_size
    images = torch.randn(IMAGES, 3, size, size, generator=stream).contiguous(memory_format=torch.channels_last) * 50
    labels = torch.randint(CLASSES, (IMAGES,), generator=stream)
    for tower in towers:
        tower.precision = precision
    exchange = Watched()
    logits = forward(towers, images, exchange)
    loss = F.nll_loss(F.log_softmax(logits, 1), labels)
    loss.backward()
    gradients = {
        f"tower{tower.tower}.{name}": parameter.grad
        for tower in towers
        for name, parameter in tower.paper_named_parameters().items()
        if parameter.grad is not None
    }
    return loss.item(), gradients, exchange, logits.detach()


def cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


@pytest.mark.parametrize("network", ["alexnet_2012", "alexnet"])
def test_a_step_is_that_of_fp32_to_the_width_of_bfloat16(network: str) -> None:
    """Gradients point the same way; those of another step would not."""
    loss, gradients, exchange, logits = train_once(network, "bf16")
    true_loss, true_gradients, true_exchange, true_logits = train_once(network, "fp32")
    assert set(exchange.crossed) == {torch.bfloat16}
    assert set(true_exchange.crossed) == {torch.float32}
    assert logits.dtype == torch.float32
    assert loss == pytest.approx(true_loss, rel=0.02)
    assert 0 < oracle.deviation(logits, true_logits) < 0.1
    assert gradients.keys() == true_gradients.keys()
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32, name
        assert cosine(gradient, true_gradients[name]) > 0.9, name
    wrong = {name: gradient.flip(0) for name, gradient in true_gradients.items()}
    assert min(abs(cosine(gradients[name], wrong[name])) for name in wrong) < 0.5


def test_tf32_changes_nothing_on_a_cpu() -> None:
    for found, true in zip(
        train_once("alexnet", "tf32")[1].values(), train_once("alexnet", "fp32")[1].values(), strict=True
    ):
        assert torch.equal(found, true)


@pytest.mark.parametrize("norm", [LocalResponseNorm(12, 5, 2.0, 1e-2, False, 0.75), SpatialNorm(5, 0.1, 0.75)])
def test_norms_compute_in_float32(norm: torch.nn.Module) -> None:
    """A sum of squares in bfloat16 would have eight bits."""
    x = (torch.randn(4, 12, 7, 7, generator=torch.Generator().manual_seed(0)) * 20).bfloat16()
    x = x.contiguous(memory_format=torch.channels_last)

    def run(given: Tensor, autocast: bool) -> tuple[Tensor, Tensor]:
        given = given.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = norm(given)
            y.backward(torch.ones_like(y))  # within, where a product would be of bfloat16
        assert given.grad is not None
        return y.detach(), given.grad

    y, gradient = run(x, True)
    wide_y, wide_gradient = run(x.float(), False)
    assert torch.equal(y, wide_y.bfloat16())
    assert torch.equal(gradient, wide_gradient.bfloat16())
