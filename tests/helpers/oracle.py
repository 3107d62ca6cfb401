"""What the two towers must compute, as ONE network of plain torch that shares no code with src/.

It is written from Figure 2, sections 3 to 5 of the paper and from config 145 of the 2012 source, number by number:
conv2, conv4 and conv5 are grouped convolutions with two groups, conv1, conv3 and the fully-connected layers are
whole, each half is normalised for itself. Slow and literal on purpose: nothing here is clever.

Parameters: {"conv1.weight": ..., "conv1.bias": ..., ..., "fc8.bias": ...}, with maps and units of tower 0 first.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
GROUPED = ("conv2", "conv4", "conv5")  # each tower reads only its own half
WHOLE = ("conv3", "fc6", "fc7", "fc8")  # each tower reads both halves
PADS = {"conv2": 2, "conv3": 1, "conv4": 1, "conv5": 1}
PARAMETERS = {  # both towers, 1000 classes
    "conv1": 34_944,
    "conv2": 307_456,
    "conv3": 885_120,
    "conv4": 663_936,
    "conv5": 442_624,
    "fc6": 37_752_832,
    "fc7": 16_781_312,
    "fc8": 4_097_000,
}
TOTAL_PARAMETERS = 60_965_224
INITIAL_BIASES = {"conv1": 0, "conv2": 1, "conv3": 0, "conv4": 1, "conv5": 1, "fc6": 1, "fc7": 1, "fc8": 0}


@dataclass(frozen=True)
class Preset:
    """What tells the paper's text from the code of 2012."""

    conv1_steps: tuple[str, ...]
    conv2_steps: tuple[str, ...]
    conv5_steps: tuple[str, ...]
    lrn_alpha: float  # as it multiplies the sum of squares
    initial_stds: dict[str, float]
    bias_rate: float  # multiple of the weights' rate
    bias_decays: bool


PRESETS = {
    "alexnet": Preset(
        conv1_steps=("relu", "lrn", "pool"),
        conv2_steps=("relu", "lrn", "pool"),
        conv5_steps=("relu", "pool"),
        lrn_alpha=1e-4,
        initial_stds=dict.fromkeys(LAYERS, 0.01),
        bias_rate=1.0,
        bias_decays=True,
    ),
    "alexnet_2012": Preset(
        conv1_steps=("lrn", "pool", "relu"),
        conv2_steps=("relu", "lrn", "spatial_norm", "pool"),
        conv5_steps=("pool", "relu"),
        lrn_alpha=1e-4 / 5,
        initial_stds=dict.fromkeys(LAYERS, 0.01) | {"conv3": 0.03, "conv4": 0.03, "conv5": 0.03},
        bias_rate=2.0,
        bias_decays=False,
    ),
}


def lrn(x: Tensor, alpha: float, n: int = 5, k: float = 2.0, beta: float = 0.75) -> Tensor:
    """y_i = x_i / (k + alpha * sum of x_j^2 over max(0, i - n/2) <= j <= min(N - 1, i + n/2))^beta, map by map."""
    maps = x.shape[1]
    ys = []
    for i in range(maps):
        total = torch.zeros_like(x[:, i])
        for j in range(max(0, i - n // 2), min(maps - 1, i + n // 2) + 1):
            total = total + x[:, j] ** 2
        ys.append(x[:, i] / (k + alpha * total) ** beta)
    return torch.stack(ys, dim=1)


def spatial_norm(x: Tensor, alpha: float = 1e-3, n: int = 5, beta: float = 0.75) -> Tensor:
    """y = x / (1 + alpha / n^2 * sum of x^2 over the n x n pixels around)^beta, cut at the edge of the image."""
    height, width = x.shape[2:]
    squares = F.pad(x**2, (n // 2,) * 4)
    total = torch.zeros_like(x)
    for dy in range(n):
        for dx in range(n):
            total = total + squares[:, :, dy : dy + height, dx : dx + width]
    return x / (1 + alpha / n**2 * total) ** beta


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maps of tower 0, maps of tower 1."""
    middle = x.shape[1] // 2
    return x[:, :middle], x[:, middle:]


def steps(x: Tensor, names: tuple[str, ...], preset: Preset, split_norm: bool = True) -> Tensor:
    """Applies the steps in their order. `split_norm=False` is the wrong rule that lets windows cross the towers."""
    for name in names:
        if name == "relu":
            x = x.clamp(min=0)
        elif name == "pool":
            x = F.max_pool2d(x, kernel_size=3, stride=2, ceil_mode=True)
        elif name == "spatial_norm":
            x = spatial_norm(x)
        elif split_norm:
            x = torch.cat([lrn(half, preset.lrn_alpha) for half in halves(x)], dim=1)
        else:
            x = lrn(x, preset.lrn_alpha)
    return x


def logits(
    parameters: dict[str, Tensor],
    images: Tensor,
    preset: Preset,
    masks: dict[str, Tensor] | None,
    keep: float = 0.5,
    split_norm: bool = True,
) -> Tensor:
    """[B, classes] of images [B, 3, S, S].

    Args:
        masks: of fc6 and fc7, [B, units] of 0 and 1; they multiply without rescaling. None: the test, where all
            units count times `keep`.
    """

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
        return F.conv2d(x, weight, bias, stride, PADS.get(name, 0), groups=2 if name in GROUPED else 1)

    x = F.pad(images, (0, 3, 0, 3))  # the image, and 3 pixels of zeros to the right and below
    x = steps(conv("conv1", x, stride=4), preset.conv1_steps, preset, split_norm)
    x = steps(conv("conv2", x), preset.conv2_steps, preset, split_norm)
    x = conv("conv3", x).clamp(min=0)
    x = conv("conv4", x).clamp(min=0)
    x = steps(conv("conv5", x), preset.conv5_steps, preset)
    x = x.flatten(1)  # maps of tower 0 (map, row, column), then those of tower 1
    for name in ("fc6", "fc7"):
        x = (x @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]).clamp(min=0)
        x = x * (masks[name] if masks is not None else keep)
    return x @ parameters["fc8.weight"].T + parameters["fc8.bias"]


def loss(z: Tensor, labels: Tensor) -> Tensor:
    """The mean over the batch of -ln p of the right class."""
    p = (z - z.amax(1, keepdim=True)).exp()
    p = p / p.sum(1, keepdim=True)
    return -p[torch.arange(len(labels)), labels].log().mean()


def gradients(
    parameters: dict[str, Tensor],
    images: Tensor,
    labels: Tensor,
    preset: Preset,
    masks: dict[str, Tensor] | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and dL/dw for each parameter."""
    leaves = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    z = logits(leaves, images, preset, masks)
    found = torch.autograd.grad(loss(z, labels), list(leaves.values()))
    return z.detach(), dict(zip(leaves, found, strict=True))


def update(
    parameters: dict[str, Tensor],
    velocities: dict[str, Tensor],
    grads: dict[str, Tensor],
    rate: float,
    bias_rate: float,
    bias_decays: bool,
) -> None:
    """One step of section 5 in place: v <- 0.9 v - 0.0005 rate w - rate g; w <- w + v. A rate of 0 freezes."""
    for name, w in parameters.items():
        is_bias = name.endswith("bias")
        own_rate = rate * bias_rate if is_bias else rate
        decay = 0.0 if is_bias and not bias_decays else 0.0005
        if own_rate > 0:
            velocities[name] = 0.9 * velocities[name] - decay * own_rate * w - own_rate * grads[name]
            parameters[name] = w + velocities[name]


def train(
    parameters: dict[str, Tensor],
    preset: Preset,
    images: Tensor,
    labels: Tensor,
    masks: list[dict[str, Tensor]],
    rates: list[float],
) -> dict[str, Tensor]:
    """The parameters after one step for each rate, always on the same images."""
    parameters = dict(parameters)
    velocities = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for mask, rate in zip(masks, rates, strict=True):
        _, grads = gradients(parameters, images, labels, preset, mask)
        update(parameters, velocities, grads, rate, preset.bias_rate, preset.bias_decays)
    return parameters


def merge(tower0: dict[str, Tensor], tower1: dict[str, Tensor]) -> dict[str, Tensor]:
    """The whole network's parameters (or gradients) from those of its towers.

    Rows of tower 0 come first. A layer that reads both towers has the columns [own | other] in tower 0 and
    [other | own] in tower 1, as both count the maps of tower 0 first.
    """
    whole = {}
    for layer in LAYERS:
        if layer in WHOLE:
            rows0 = torch.cat([tower0[f"{layer}.weight_own"], tower0[f"{layer}.weight_other"]], dim=1)
            rows1 = torch.cat([tower1[f"{layer}.weight_other"], tower1[f"{layer}.weight_own"]], dim=1)
        else:
            rows0, rows1 = tower0[f"{layer}.weight"], tower1[f"{layer}.weight"]
        whole[f"{layer}.weight"] = torch.cat([rows0, rows1])
        whole[f"{layer}.bias"] = torch.cat([tower0[f"{layer}.bias"], tower1[f"{layer}.bias"]])
    assert len(whole) == 2 * len(LAYERS)
    assert sum(t.numel() for t in whole.values()) == sum(t.numel() for d in (tower0, tower1) for t in d.values())
    return whole


def deviation(found: Tensor | dict[str, Tensor], true: Tensor | dict[str, Tensor]) -> float:
    """The largest |found - true| relative to the largest |true|; of several tensors, that of the worst.

    So a small gradient counts as much as a large one. Raises: AssertionError if there is nothing to compare.
    """
    if isinstance(found, Tensor) or isinstance(true, Tensor):
        assert isinstance(found, Tensor)
        assert isinstance(true, Tensor)
        assert found.shape == true.shape
        found, true = found.detach(), true.detach()
        scale = float(true.abs().max())
        assert scale > 0, "a comparison with zeros says nothing"
        return float((found.double() - true.double()).abs().max()) / scale
    assert found.keys() == true.keys()
    assert found, "nothing to compare"
    return max(deviation(found[name], true[name]) for name in true)
