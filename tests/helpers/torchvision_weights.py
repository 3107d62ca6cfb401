"""Weights in torchvision's layout, and the forward pass as its authors wrote it."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CLASSES, SIZE = 11, 99


def torchvision_state(width: float = 0.125) -> dict[str, Tensor]:
    """Names and shapes of torchvision/models/alexnet.py, at a part of the width."""
    generator = torch.Generator().manual_seed(6)
    maps = [3, *(int(width * n) for n in (64, 192, 384, 256, 256))]
    units = int(width * 4096)
    shapes = {
        f"features.{place}": (maps[i + 1], maps[i], size, size)
        for i, (place, size) in enumerate(zip((0, 3, 6, 8, 10), (11, 5, 3, 3, 3), strict=True))
    }
    shapes |= {
        "classifier.1": (units, maps[-1] * 36),
        "classifier.4": (units, units),
        "classifier.6": (CLASSES, units),
    }
    state = {}
    for name, shape in shapes.items():
        scale = float(np.prod(shape[1:]) * 0.5) ** -0.5
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * scale
        state[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.2
    return state


def torchvision_logits(state: dict[str, Tensor], rgb: Tensor, scaled: bool = True) -> Tensor:
    """The forward pass of torchvision's alexnet with the transforms of its weights; 224 pixels."""
    w = {name: tensor.double() for name, tensor in state.items()}
    mean, std = (
        torch.tensor(v, dtype=torch.float64)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    x = (rgb / 255 - mean) / (std if scaled else 1)
    for place, stride, pad, pools in (
        (0, 4, 2, True),
        (3, 1, 2, True),
        (6, 1, 1, False),
        (8, 1, 1, False),
        (10, 1, 1, True),
    ):
        x = F.conv2d(x, w[f"features.{place}.weight"], w[f"features.{place}.bias"], stride, pad).relu()
        x = F.max_pool2d(x, 3, 2) if pools else x
    x = F.adaptive_avg_pool2d(x, 6).flatten(1)
    for place in (1, 4, 6):
        x = x @ w[f"classifier.{place}.weight"].T + w[f"classifier.{place}.bias"]
        x = x.relu() if place != 6 else x
    return x
