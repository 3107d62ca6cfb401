"""A network from its yaml, and what towers compute in a few training steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from helpers.paths import ROOT
from twotower.config import NetworkConfig, OptimConfig, arrange_layers
from twotower.distributed.exchange import Exchange
from twotower.model.layers import Dropout
from twotower.model.tower import Tower, forward
from twotower.training.optim import VelocitySGD


def load_network(name: str, **overrides: Any) -> NetworkConfig:
    """conf/network/NAME.yaml as a `NetworkConfig`; overrides by key, e.g. `width=0.125`, `lrn={"n": 3}`."""

    def chain(name: str) -> list[Any]:
        yaml = OmegaConf.load(ROOT / "conf" / "network" / f"{name}.yaml")
        parents = [one for one in yaml.pop("defaults", []) if isinstance(one, str) and one != "_self_"]
        return [part for parent in parents for part in chain(parent)] + [yaml]

    network = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(NetworkConfig), *chain(name), overrides))
    assert isinstance(network, NetworkConfig)
    return arrange_layers(network)


@dataclass
class Run:
    """What `run_towers` saw; the lists hold one entry for each tower of this process."""

    test_logits: Tensor
    logits: Tensor  # of the first training step
    before: list[dict[str, Tensor]]  # the parameters
    gradients: list[dict[str, Tensor]]  # of the first training step
    after: list[dict[str, Tensor]]  # the parameters after one update for each rate


def run_towers(
    towers: Sequence[Tower],
    network: NetworkConfig,
    exchange: Exchange,
    images: Tensor,
    labels: Tensor,
    rates: Sequence[float],
) -> Run:
    """One test pass, then a training step for each rate, always on the same images."""
    named = [tower.paper_named_parameters() for tower in towers]
    optim = OptimConfig()
    decays = optim.weight_decay, network.bias_rate, network.bias_decay, optim.rule, network.layer_decays()
    rules = [VelocitySGD(p, optim.momentum, *decays) for p in named]
    for tower in towers:
        tower.eval()
    with torch.no_grad():
        test_logits = forward(towers, images, exchange)
    before, logits, gradients = copies(named), torch.empty(0), []
    for step, rate in enumerate(rates):
        for tower, rule in zip(towers, rules, strict=True):
            tower.train()
            tower.at_step(step, slice(None), len(images))
            rule.set_rate(rate)
        z = forward(towers, images, exchange)
        F.cross_entropy(z, labels).backward()
        if step == 0:
            logits = z.detach()
            gradients = [{name: p.grad.clone() for name, p in p_of.items()} for p_of in named]
        for rule in rules:
            rule.step()
    return Run(test_logits, logits, before, gradients, after=copies(named))


def copies(named: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The values as they are now."""
    return [{name: p.detach().clone() for name, p in p_of.items()} for p_of in named]


def masks_at(towers: Sequence[Tower], step: int, images: Tensor) -> dict[str, Tensor]:
    """The masks [B, units] of both towers that the dropout of fc6 and fc7 lets through at a step."""
    masks: dict[str, list[Tensor]] = {"fc6": [], "fc7": []}
    for tower in towers:
        tower.train()
        tower.at_step(step, slice(None), len(images))
        for row in tower.rows:
            for module in tower.layers[row.name].modules():
                if isinstance(module, Dropout):
                    masks[row.name].append(module(images.new_ones(len(images), row.kernels[tower.tower])))
    whole = {name: torch.cat(both, dim=1) for name, both in masks.items()}
    assert all(mask.unique().tolist() == [0, 1] for mask in whole.values()), "kept or not, and nothing rescaled"
    return whole
