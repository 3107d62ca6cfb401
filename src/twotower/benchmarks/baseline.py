"""The same network as people usually write it: one process, grouped convolutions, torch's own normalisation.

The benchmark compares the towers with it; training never runs it. With one `groups=2` convolution for two towers and
`local_response_norm` over all maps it computes nearly the same function: its norm reaches across the towers' edge.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from twotower.config import LRNConfig, NetworkConfig, SpatialNormConfig
from twotower.model.layer_table import IMAGE_MAPS, Row, plan
from twotower.model.tower import ACTIVATION_LAYERS


class PlainSpatialNorm(nn.Module):
    def __init__(self, config: SpatialNormConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        c = self.config
        return x * (1 + c.alpha * F.avg_pool2d(x * x, c.n, 1, c.n // 2)).pow(-c.beta)


def _make_lrn(lrn: LRNConfig) -> nn.Module:
    # torch divides alpha by n.
    return nn.LocalResponseNorm(lrn.n, lrn.alpha if lrn.alpha_over_n else lrn.alpha * lrn.n, lrn.beta, lrn.k)


def _make_steps(row: Row, network: NetworkConfig) -> list[nn.Module]:
    steps: list[nn.Module] = []
    for step in row.config.then:
        if step == "activation":
            steps.append(ACTIVATION_LAYERS[network.activation]())
        elif step == "lrn" and network.lrn is not None:
            steps.append(_make_lrn(network.lrn))
        elif step == "spatial_norm" and network.spatial_norm is not None:
            steps.append(PlainSpatialNorm(network.spatial_norm))
        elif step == "pool":
            kind = nn.MaxPool2d if row.config.pooling == "max" else nn.AvgPool2d
            steps.append(kind(network.pool.size, network.pool.stride, ceil_mode=network.pool.partial))
        elif step == "dropout":
            steps.append(nn.Dropout(1 - network.dropout_keep))
    return steps


def build_baseline(network: NetworkConfig, num_classes: int) -> nn.Sequential:
    """Images [B, 3, 224, 224] -> logits [B, classes], with as many parameters as the two towers together."""
    modules: list[nn.Module] = []
    units = IMAGE_MAPS
    for row in plan(network, num_classes):
        if row.config.kind == "linear" and row.config.reads == "own" and network.towers == 2:
            raise ValueError(
                f"network={network.name} has a linear layer in which each tower reads itself ({row.name}), which no "
                "single layer of torch computes; choose another network for the comparison."
            )
        if row.is_local:
            raise ValueError(
                f"network={network.name} has a local layer ({row.name}), for which torch has none of its own; choose "
                "another network for the comparison."
            )
        kernels, c = sum(row.kernels), row.config
        if c.kind == "linear":
            if not any(isinstance(module, nn.Flatten) for module in modules):
                modules.append(nn.Flatten())
                units = sum(row.maps_in)
            modules.append(nn.Linear(units, kernels))
        else:
            if c.overhang:
                modules.append(nn.ZeroPad2d((0, c.overhang, 0, c.overhang)))
            groups = c.groups * (network.towers if c.reads == "own" else 1)
            modules.append(nn.Conv2d(units, kernels, c.size, c.stride, c.pad, groups=groups))
        modules += _make_steps(row, network)
        units = kernels
    return nn.Sequential(*modules)
