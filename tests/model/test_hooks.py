"""Hooks on a tower's layers fire, keep what they saw, and change nothing."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from helpers.towers import load_network
from twotower.distributed.exchange import InProcessExchange
from twotower.model import tower as towers_module
from twotower.model.tower import Tower, forward

SIZE, CLASSES = 67, 6


def build(name: str, **changes: object) -> list[Tower]:
    network = load_network(name, width=0.125, image_size=SIZE, **changes)
    return [Tower(network, CLASSES, tower, seed=0) for tower in range(network.towers)]


def images() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def step(towers: list[Tower]) -> tuple[Tensor, list[Tensor]]:
    """Logits and all gradients of a training step."""
    for tower in towers:
        tower.zero_grad()
        tower.at_step(0, slice(None), 2)
    logits = forward(towers, images(), InProcessExchange())
    logits.square().sum().backward()
    return logits.detach(), [p.grad.clone() for tower in towers for p in tower.parameters() if p.grad is not None]


def watched(towers: list[Tower]) -> Iterator[tuple[str, nn.Module]]:
    for number, tower in enumerate(towers):
        yield from ((f"tower{number}.{name}", module) for name, module in tower.layers.named_modules() if name)


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012", "one_tower"])
def test_every_module_fires_once_and_keeps_what_it_saw(name: str) -> None:
    towers = build(name)
    plain = step(towers)
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def keep(name: str) -> object:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen.setdefault(name, []).extend((value, value.detach().clone()) for value in (*inputs, output))

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in watched(towers)]  # type: ignore[arg-type]
    hooked = step(towers)
    assert seen.keys() == {name for name, module in watched(towers)}
    assert len(seen) > 15 * len(towers)
    for name, values in seen.items():
        assert all(torch.equal(value, copy) for value, copy in values), f"{name} was overwritten"
    for handle in handles:
        handle.remove()
    seen.clear()
    for logits, gradients in (hooked, step(towers)):
        assert torch.equal(logits, plain[0])
        assert all(torch.equal(*pair) for pair in zip(gradients, plain[1], strict=True))
    assert not seen


def test_an_activation_in_place_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong rule: conv4's sum is read after the ReLU has overwritten it."""
    monkeypatch.setattr(towers_module, "_is_hooked", lambda layer: False)
    towers, seen = build("alexnet"), []
    towers[0].layers["conv4"].sum.register_forward_hook(lambda module, inputs, output: seen.append(output))
    step(towers)
    assert seen[0].min() >= 0


def test_a_hook_sees_the_sum_of_both_halves_and_may_change_it() -> None:
    towers = build("alexnet")
    conv3, seen = towers[0].layers["conv3"], []
    conv3.sum.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    conv3.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    before, _ = step(towers)
    assert seen[0].min() < 0
    assert torch.equal(seen[0].relu(), seen[1])
    conv3.register_forward_hook(lambda module, inputs, output: output * 0)
    assert not torch.equal(step(towers)[0], before)


def test_a_hook_with_keywords_keeps_the_sum_over_the_own_half() -> None:
    """conv3 is given that sum and adds the other half's to it; the wrong rule, in place, is run as well."""
    towers, plain = build("alexnet"), step(build("alexnet"))
    conv3, fc6 = towers[0].layers["conv3"], towers[0].layers["fc6"]
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Tensor], output: Tensor) -> None:
        seen.append((keywords["own_sum"], keywords["own_sum"].detach().clone()))

    def keep_before(module: nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
        seen.append((keywords["own_sum"], keywords["own_sum"].detach().clone()))

    for layer in (conv3, conv3.sum, fc6, fc6.sum):
        layer.register_forward_hook(keep, with_kwargs=True)
        layer.register_forward_pre_hook(keep_before, with_kwargs=True)
    logits, gradients = step(towers)
    assert len(seen) == 8
    assert all(torch.equal(value, copy) for value, copy in seen)
    assert torch.equal(logits, plain[0])
    assert all(torch.equal(*pair) for pair in zip(gradients, plain[1], strict=True))


def test_the_sum_over_the_own_half_would_be_overwritten_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong rule: nobody notices that there is a hook."""
    monkeypatch.setattr(towers_module, "_is_hooked", lambda layer: False)
    towers = build("alexnet")
    seen: list[tuple[Tensor, Tensor]] = []
    towers[0].layers["conv3"].register_forward_pre_hook(
        lambda module, inputs, keywords: seen.append((keywords["own_sum"], keywords["own_sum"].detach().clone())),
        with_kwargs=True,
    )
    step(towers)
    assert not torch.equal(*seen[0])


def test_hooks_that_would_never_fire_are_refused() -> None:
    for tower in (*build("alexnet"), *build("one_tower")):
        for module, name in ((tower, "Tower"), (tower.layers, "TowerLayers")):
            for register in (
                module.register_forward_hook,
                module.register_forward_pre_hook,
                module.register_full_backward_hook,
                module.register_full_backward_pre_hook,
            ):
                with pytest.raises(RuntimeError, match=rf'on a {name} never fires.*tower\.layers\["conv3"\]'):
                    register(lambda *values: None)  # type: ignore[operator]


def test_backward_hooks_see_the_gradient_of_a_layer() -> None:
    towers, seen = build("alexnet"), []
    layer = towers[1].layers["conv2"]
    layer.register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0]))
    plain = step(build("alexnet"))
    logits, gradients = step(towers)
    assert torch.equal(logits, plain[0])
    assert all(torch.equal(*pair) for pair in zip(gradients, plain[1], strict=True))
    assert seen[0].shape == (2, 16, 3, 3)
    assert seen[0].abs().max() > 0


def test_one_tower_is_called_by_itself_and_one_of_two_is_not() -> None:
    (tower,) = build("one_tower")
    tower.eval()
    assert torch.equal(tower(images()), forward([tower], images(), InProcessExchange()))
    with pytest.raises(ValueError, match=r"this is tower 0 of 2.*twotower\.forward\(\[tower0, tower1\], images"):
        build("alexnet")[0](images())
