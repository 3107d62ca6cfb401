"""The author's four CIFAR-10 networks of 2011 in plain torch, from cuda-convnet's files; nothing of src/ is used.

Each is written layer by layer from layers-80sec.cfg, -18pct.cfg, -conv-local-13pct.cfg and -conv-local-11pct.cfg, and
the update from layer-params-*.cfg and weights.cuh:150-163. `Rules` has what a wrong implementation might do.

Parameters: {"conv1.weight": ..., ...}; of a local layer weight [H, W, K, C, 3, 3] and bias [H, W, K].
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import oracle
from helpers.references import Parameters, conv, dense, gradients, pool, relu


@dataclass(frozen=True)
class Rules:
    """What is done where one might do something else; the defaults are right.

    Attributes:
        size_of_scale: factor on the scales of cmrnorm and rnorm; 9 leaves out their division.
        divide_by_all: whether averages count the pixels of a window that lie outside of the image.
        partial: whether a last window that hangs over the edge is taken.
        shared: whether a local layer has the kernels and biases of its first pixel everywhere.
        norms: whether there are any.
        norm_moved: whether the norm of 18pct stands before the ReLU, and the second of 11pct behind the pooling.
    """

    size_of_scale: float = 1.0
    divide_by_all: bool = False
    partial: bool = True
    shared: bool = False
    norms: bool = True
    norm_moved: bool = False


RIGHT = Rules()


def local(p: Parameters, name: str, x: Tensor, rules: Rules) -> Tensor:
    """3 x 3 pixels around each pixel of the padded image, times that pixel's own kernels, plus its own biases."""
    weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
    padded = F.pad(x, (1, 1, 1, 1))
    rows = []
    for i in range(x.shape[2]):
        pixels = []
        for j in range(x.shape[3]):
            kernels, biases = (weight[0, 0], bias[0, 0]) if rules.shared else (weight[i, j], bias[i, j])
            window = padded[:, None, :, i : i + 3, j : j + 3]  # [B, 1, C, 3, 3]
            pixels.append((window * kernels).sum((2, 3, 4)) + biases)
        rows.append(torch.stack(pixels, dim=2))
    return torch.stack(rows, dim=2)


def cmrnorm(x: Tensor, rules: Rules) -> Tensor:
    """Over 9 maps, scale 0.001 / 9, power 0.75."""
    return oracle.lrn(x, 0.001 / 9 * rules.size_of_scale, n=9, k=1.0, beta=0.75) if rules.norms else x


def rnorm(x: Tensor, rules: Rules) -> Tensor:
    """Over 3 x 3 pixels, scale 0.00005 / 9, power 0.75."""
    return oracle.spatial_norm(x, 0.00005 * rules.size_of_scale, n=3, beta=0.75) if rules.norms else x


def _maximum(x: Tensor, rules: Rules) -> Tensor:
    return pool(x, partial=rules.partial)


def _average(x: Tensor, rules: Rules) -> Tensor:
    return pool(x, partial=rules.partial, average=True, divide_by_all=rules.divide_by_all)


def net_80sec(p: Parameters, images: Tensor, rules: Rules = RIGHT) -> Tensor:
    """fc64 and fc10 are fc4 and fc5."""
    x = relu(_maximum(conv(p, "conv1", images, pad=2), rules))
    x = _average(relu(conv(p, "conv2", x, pad=2)), rules)
    x = _average(relu(conv(p, "conv3", x, pad=2)), rules)
    return dense(p, "fc5", relu(dense(p, "fc4", x.flatten(1))))


def net_18pct(p: Parameters, images: Tensor, rules: Rules = RIGHT) -> Tensor:
    """fc10 is fc4."""
    x = _maximum(conv(p, "conv1", images, pad=2), rules)
    x = relu(rnorm(x, rules)) if rules.norm_moved else rnorm(relu(x), rules)
    x = rnorm(_average(relu(conv(p, "conv2", x, pad=2)), rules), rules)
    x = _average(relu(conv(p, "conv3", x, pad=2)), rules)
    return dense(p, "fc4", x.flatten(1))


def net_13pct(p: Parameters, images: Tensor, rules: Rules = RIGHT) -> Tensor:
    """fc10 is fc5."""
    x = _maximum(relu(conv(p, "conv1", images, pad=2)), rules)
    x = _maximum(relu(conv(p, "conv2", x, pad=2)), rules)
    x = relu(local(p, "local3", x, rules))
    return dense(p, "fc5", relu(local(p, "local4", x, rules)).flatten(1))


def net_11pct(p: Parameters, images: Tensor, rules: Rules = RIGHT) -> Tensor:
    """The first norm behind its pooling, the second before it."""
    x = cmrnorm(_maximum(relu(conv(p, "conv1", images, pad=2)), rules), rules)
    x = relu(conv(p, "conv2", x, pad=2))
    x = cmrnorm(_maximum(x, rules), rules) if rules.norm_moved else _maximum(cmrnorm(x, rules), rules)
    x = relu(local(p, "local3", x, rules))
    return dense(p, "fc5", relu(local(p, "local4", x, rules)).flatten(1))


@dataclass(frozen=True)
class Network2011:
    """One of them, with the numbers of its files.

    Attributes:
        shapes: of the weights at full width with ten classes.
        stds: initW by layer.
        decays: wc by layer.
        image_size: pixels.
    """

    logits: Callable[..., Tensor]
    shapes: dict[str, tuple[int, ...]]
    stds: dict[str, float]
    decays: dict[str, float]
    image_size: int

    def num_parameters(self) -> int:
        """Weights, and a bias for each kernel: of a local layer for each kernel of each pixel."""
        total = 0
        for name, shape in self.shapes.items():
            kernels = shape[0] * shape[1] * shape[2] if name.startswith("local") else shape[0]
            inputs = 1
            for number in shape[3 if name.startswith("local") else 1 :]:
                inputs *= number
            total += kernels * (inputs + 1)
        return total


NETWORKS = {
    "cifar_80sec": Network2011(
        net_80sec,
        {
            "conv1": (32, 3, 5, 5),
            "conv2": (32, 32, 5, 5),
            "conv3": (64, 32, 5, 5),
            "fc4": (64, 64 * 4 * 4),
            "fc5": (10, 64),
        },
        {"conv1": 0.0001, "conv2": 0.01, "conv3": 0.01, "fc4": 0.1, "fc5": 0.1},
        {"conv1": 0.004, "conv2": 0.004, "conv3": 0.004, "fc4": 0.03, "fc5": 0.03},
        image_size=32,
    ),
    "cifar_18pct": Network2011(
        net_18pct,
        {"conv1": (32, 3, 5, 5), "conv2": (32, 32, 5, 5), "conv3": (64, 32, 5, 5), "fc4": (10, 64 * 4 * 4)},
        {"conv1": 0.0001, "conv2": 0.01, "conv3": 0.01, "fc4": 0.01},
        {"conv1": 0.004, "conv2": 0.004, "conv3": 0.004, "fc4": 1.0},
        image_size=32,
    ),
    "cifar_13pct": Network2011(
        net_13pct,
        {
            "conv1": (64, 3, 5, 5),
            "conv2": (64, 64, 5, 5),
            "local3": (6, 6, 32, 64, 3, 3),
            "local4": (6, 6, 32, 32, 3, 3),
            "fc5": (10, 32 * 6 * 6),
        },
        {"conv1": 0.0001, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc5": 0.01},
        {"conv1": 0.0, "conv2": 0.0, "local3": 0.004, "local4": 0.004, "fc5": 0.004},
        image_size=24,
    ),
    "cifar_11pct": Network2011(
        net_11pct,
        {
            "conv1": (64, 3, 5, 5),
            "conv2": (64, 64, 5, 5),
            "local3": (6, 6, 64, 64, 3, 3),
            "local4": (6, 6, 32, 64, 3, 3),
            "fc5": (10, 32 * 6 * 6),
        },
        {"conv1": 0.0001, "conv2": 0.01, "local3": 0.04, "local4": 0.04, "fc5": 0.01},
        {"conv1": 0.0, "conv2": 0.0, "local3": 0.004, "local4": 0.004, "fc5": 0.01},
        image_size=24,
    ),
}


def train(
    of: Network2011,
    parameters: Parameters,
    images: Tensor,
    labels: Tensor,
    rates: list[float],
    bias_rate: float = 2.0,
    bias_decays: bool = False,
    decays: dict[str, float] | None = None,
) -> Parameters:
    """The parameters after one step for each rate, always on the same images.

    Args:
        bias_rate: epsB as a multiple of epsW.
        decays: wc by layer; None: as in the file. It is in the velocity times epsW, and does not reach biases.
    """
    weights = dict(parameters)
    velocities = {name: torch.zeros_like(w) for name, w in weights.items()}
    for rate in rates:
        _, found = gradients(lambda p, x, masks: of.logits(p, x), weights, images, labels, None)
        for name, gradient in found.items():
            is_bias = name.endswith("bias")
            own_rate = rate * bias_rate if is_bias else rate
            wc = 0.0 if is_bias and not bias_decays else (decays or of.decays)[name.split(".")[0]]
            velocities[name] = 0.9 * velocities[name] - wc * own_rate * weights[name] - own_rate * gradient
            weights[name] = weights[name] + velocities[name]
    return weights
