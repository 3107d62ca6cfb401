"""What each network of conf/network must compute, as ONE network of plain torch that shares no code with src/.

`oracle.py` has the two networks of the paper; here are the others, each written layer by layer from its public
definition and not from its yaml: the layer files of 2012 (layers-145-half, 146, 150, 132, 166, 167), Caffe's
prototxt files, TF-slim's alexnet.py, torchvision's, two teaching codes, and cuda-convnet's layers-18pct.cfg.

Parameters: {"conv1.weight": ..., ..., "fc8.bias": ...}, with maps and units of tower 0 first; widths and number of
classes are those of the parameters. Masks: {layer: [B, units] of 0 and 1} for what the layer puts out; None at test.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import oracle

Parameters = dict[str, Tensor]
Masks = dict[str, Tensor] | None
Table = dict[str, tuple[int | None, int, int]]  # kernels (None: the classes), maps that one of them reads, its side


def conv(p: Parameters, name: str, x: Tensor, stride: int = 1, pad: int = 0, groups: int = 1) -> Tensor:
    return F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], stride, pad, groups=groups)


def dense(p: Parameters, name: str, x: Tensor) -> Tensor:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def dense_per_tower(p: Parameters, name: str, x: Tensor) -> Tensor:
    """Units of a tower read that tower only."""
    parts = zip(oracle.halves(x), p[f"{name}.weight"].chunk(2), p[f"{name}.bias"].chunk(2), strict=True)
    return torch.cat([half @ weight.T + bias for half, weight, bias in parts], dim=1)


def relu(x: Tensor) -> Tensor:
    return x * (x > 0)


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def tanh(x: Tensor) -> Tensor:
    return 2 * sigmoid(2 * x) - 1


ACTIVATIONS = {"relu": relu, "tanh": tanh, "sigmoid": sigmoid}


def pool(
    x: Tensor, size: int = 3, partial: bool = True, average: bool = False, divide_by_all: bool = False
) -> Tensor:
    """Windows of size x size pixels, two pixels apart; `partial` ones hang over the right and bottom edge.

    The average is over the pixels inside the image; `divide_by_all` is the wrong rule that counts those outside.
    """
    side = x.shape[-1]
    count = (math.ceil if partial else math.floor)((side - size) / 2) + 1
    beyond = max(0, 2 * (count - 1) + size - side)

    taken = slice(None, 2 * count - 1, 2)

    def windows(values: Tensor, outside: float) -> Tensor:
        values = F.pad(values, (0, beyond, 0, beyond), value=outside)
        starts = [(dy, dx) for dy in range(size) for dx in range(size)]
        return torch.stack([values[:, :, dy:, dx:][:, :, taken, taken] for dy, dx in starts])

    if not average:
        return windows(x, -math.inf).amax(0)
    inside = windows(torch.ones_like(x), 0.0).sum(0)
    return windows(x, 0.0).sum(0) / (size**2 if divide_by_all else inside)


def lrn(x: Tensor, parts: int, k: float) -> Tensor:
    """alpha = 1e-4 divided by n = 5, beta = 0.75; in each of so many parts for itself."""
    return torch.cat([oracle.lrn(part, 1e-4 / 5, n=5, k=k, beta=0.75) for part in x.chunk(parts, dim=1)], dim=1)


def drop_2012(x: Tensor, masks: Masks, name: str) -> Tensor:
    return x * masks[name] if masks is not None else x * 0.5


def drop_rescaled(x: Tensor, masks: Masks, name: str) -> Tensor:
    return x * masks[name] / 0.5 if masks is not None else x


# The networks of 2012: what they share, then one function each. `parts` is in how many parts LRN sees the maps.


def _layer1(p: Parameters, images: Tensor, parts: int) -> Tensor:
    """conv1 without ReLU, rnorm1, pool1 with ReLU."""
    return relu(pool(lrn(conv(p, "conv1", F.pad(images, (0, 3, 0, 3)), stride=4), parts, k=2.0)))


def _layer2(p: Parameters, x: Tensor, groups: int, parts: int) -> Tensor:
    """conv2 with ReLU, rnorm2, cnorm2, pool2."""
    return pool(oracle.spatial_norm(lrn(relu(conv(p, "conv2", x, pad=2, groups=groups)), parts, k=2.0)))


def _layers345(p: Parameters, x: Tensor, groups: tuple[int, int, int]) -> Tensor:
    x = relu(conv(p, "conv3", x, pad=1, groups=groups[0]))
    x = relu(conv(p, "conv4", x, pad=1, groups=groups[1]))
    return relu(pool(conv(p, "conv5", x, pad=1, groups=groups[2])))


def _fc67(p: Parameters, x: Tensor, masks: Masks, fc: Callable[[Parameters, str, Tensor], Tensor] = dense) -> Tensor:
    x = drop_2012(relu(fc(p, "fc6", x.flatten(1))), masks, "fc6")
    return drop_2012(relu(fc(p, "fc7", x)), masks, "fc7")


def one_tower(p: Parameters, images: Tensor, masks: Masks) -> Tensor:
    """layers-145-half.cfg."""
    x = _layer2(p, _layer1(p, images, parts=1), groups=1, parts=1)
    return dense(p, "fc8", _fc67(p, _layers345(p, x, (1, 1, 1)), masks))


def six_conv(p: Parameters, images: Tensor, masks: Masks, parts: int = 2) -> Tensor:
    """layers-146-2012-2011.cfg: conv6 on the pooled maps of both towers; fc6 reads conv6."""
    x = _layers345(p, _layer2(p, _layer1(p, images, parts), 2, parts), (1, 2, 2))
    return dense(p, "fc8", _fc67(p, relu(conv(p, "conv6", x, pad=1)), masks))


def six_conv_bottleneck(p: Parameters, images: Tensor, masks: Masks, parts: int = 2) -> Tensor:
    """layers-146-2011.cfg: fc1a and fc1b, here fc7b, have neither neuron nor dropout."""
    x = _layers345(p, _layer2(p, _layer1(p, images, parts), 2, parts), (1, 2, 2))
    x = _fc67(p, relu(conv(p, "conv6", x, pad=1)), masks)
    return dense(p, "fc8", dense(p, "fc7b", x))


def no_exchange(p: Parameters, images: Tensor, masks: Masks, parts: int = 2) -> Tensor:
    """layers-150.cfg: the towers meet in fc1000 only."""
    x = _layers345(p, _layer2(p, _layer1(p, images, parts), 2, parts), (2, 2, 2))
    return dense(p, "fc8", _fc67(p, x, masks, dense_per_tower))


def exchange_conv4(p: Parameters, images: Tensor, masks: Masks, parts: int = 2) -> Tensor:
    """layers-132.cfg: conv4 has both towers as inputs, conv3 its own."""
    x = _layers345(p, _layer2(p, _layer1(p, images, parts), 2, parts), (2, 1, 2))
    return dense(p, "fc8", _fc67(p, x, masks))


def norm_below_relu(p: Parameters, images: Tensor, masks: Masks, parts: int = 2) -> Tensor:
    """layers-166.cfg: conv2 without ReLU, rnorm2, cnorm2, pool2 with ReLU."""
    x = lrn(conv(p, "conv2", _layer1(p, images, parts), pad=2, groups=2), parts, k=2.0)
    x = relu(pool(oracle.spatial_norm(x)))
    return dense(p, "fc8", _fc67(p, _layers345(p, x, (1, 2, 2)), masks))


def lrn1_only(p: Parameters, images: Tensor, masks: Masks, parts: int = 2) -> Tensor:
    """layers-167.cfg: conv2 with ReLU, pool2."""
    x = pool(relu(conv(p, "conv2", _layer1(p, images, parts), pad=2, groups=2)))
    return dense(p, "fc8", _fc67(p, _layers345(p, x, (1, 2, 2)), masks))


# Config 145 with one thing changed: the paper's section 7 leaves out one of the middle layers.


def no_conv3(p: Parameters, images: Tensor, masks: Masks) -> Tensor:
    """conv4 has the pooled maps of both towers as inputs, as conv3 had."""
    x = relu(conv(p, "conv4", _layer2(p, _layer1(p, images, 2), 2, 2), pad=1))
    return dense(p, "fc8", _fc67(p, relu(pool(conv(p, "conv5", x, pad=1, groups=2))), masks))


def no_conv4(p: Parameters, images: Tensor, masks: Masks) -> Tensor:
    x = relu(conv(p, "conv3", _layer2(p, _layer1(p, images, 2), 2, 2), pad=1))
    return dense(p, "fc8", _fc67(p, relu(pool(conv(p, "conv5", x, pad=1, groups=2))), masks))


def no_conv5(p: Parameters, images: Tensor, masks: Masks) -> Tensor:
    """The pooling of conv5 follows conv4."""
    x = relu(conv(p, "conv3", _layer2(p, _layer1(p, images, 2), 2, 2), pad=1))
    return dense(p, "fc8", _fc67(p, pool(relu(conv(p, "conv4", x, pad=1, groups=2))), masks))


def average_pooling(p: Parameters, images: Tensor, masks: Masks) -> Tensor:
    x = lrn(conv(p, "conv1", F.pad(images, (0, 3, 0, 3)), stride=4), 2, k=2.0)
    x = relu(conv(p, "conv2", relu(pool(x, average=True)), pad=2, groups=2))
    x = pool(oracle.spatial_norm(lrn(x, 2, k=2.0)), average=True)
    x = relu(conv(p, "conv4", relu(conv(p, "conv3", x, pad=1)), pad=1, groups=2))
    return dense(p, "fc8", _fc67(p, relu(pool(conv(p, "conv5", x, pad=1, groups=2), average=True)), masks))


# Networks of one piece.


def _caffe_top(p: Parameters, x: Tensor, masks: Masks) -> Tensor:
    x = relu(conv(p, "conv3", x, pad=1))
    x = relu(conv(p, "conv4", x, pad=1, groups=2))
    x = pool(relu(conv(p, "conv5", x, pad=1, groups=2)))
    x = drop_rescaled(relu(dense(p, "fc6", x.flatten(1))), masks, "fc6")
    x = drop_rescaled(relu(dense(p, "fc7", x)), masks, "fc7")
    return dense(p, "fc8", x)


def caffe_alexnet(p: Parameters, images: Tensor, masks: Masks, parts: int = 1) -> Tensor:
    """bvlc_alexnet/train_val.prototxt: conv, relu, norm, pool; Caffe's pooling rounds up, its k is 1."""
    x = pool(lrn(relu(conv(p, "conv1", images, stride=4)), parts, k=1.0))
    x = pool(lrn(relu(conv(p, "conv2", x, pad=2, groups=2)), parts, k=1.0))
    return _caffe_top(p, x, masks)


def caffenet(p: Parameters, images: Tensor, masks: Masks, parts: int = 1) -> Tensor:
    """bvlc_reference_caffenet/train_val.prototxt: conv, relu, pool, norm."""
    x = lrn(pool(relu(conv(p, "conv1", images, stride=4))), parts, k=1.0)
    x = lrn(pool(relu(conv(p, "conv2", x, pad=2, groups=2))), parts, k=1.0)
    return _caffe_top(p, x, masks)


def alexnet_v2(p: Parameters, images: Tensor, masks: Masks, partial: bool = False) -> Tensor:
    """slim/nets/alexnet.py: VALID at conv1, at the poolings, and at fc6, a convolution as large as its input."""
    x = pool(relu(conv(p, "conv1", images, stride=4)), partial=partial)
    x = pool(relu(conv(p, "conv2", x, pad=2)), partial=partial)
    x = relu(conv(p, "conv3", x, pad=1))
    x = relu(conv(p, "conv4", x, pad=1))
    x = pool(relu(conv(p, "conv5", x, pad=1)), partial=partial)
    x = F.conv2d(x, p["fc6.weight"].unflatten(1, x.shape[1:]), p["fc6.bias"]).flatten(1)
    x = drop_rescaled(relu(x), masks, "fc6")
    x = drop_rescaled(relu(dense(p, "fc7", x)), masks, "fc7")
    return dense(p, "fc8", x)


def _dropping_before(p: Parameters, x: Tensor, masks: Masks) -> Tensor:
    """The classifier of torchvision: dropout, fc6, ReLU, dropout, fc7, ReLU, fc8."""
    x = drop_rescaled(x.flatten(1), masks, "conv5")
    x = drop_rescaled(relu(dense(p, "fc6", x)), masks, "fc6")
    return dense(p, "fc8", relu(dense(p, "fc7", x)))


def half_tower(p: Parameters, images: Tensor, masks: Masks) -> Tensor:
    """Test2_alexnet/model.py of the course."""
    x = pool(relu(conv(p, "conv1", images, stride=4, pad=2)), partial=False)
    x = pool(relu(conv(p, "conv2", x, pad=2)), partial=False)
    x = relu(conv(p, "conv3", x, pad=1))
    x = relu(conv(p, "conv4", x, pad=1))
    return _dropping_before(p, pool(relu(conv(p, "conv5", x, pad=1)), partial=False), masks)


def torchvision_alexnet(p: Parameters, images: Tensor, masks: Masks) -> Tensor:
    """torchvision/models/alexnet.py, whose `features` are layers 0, 3, 6, 8 and 10 of an nn.Sequential."""
    maps = [len(p[f"conv{i}.bias"]) for i in range(1, 6)]
    features = nn.Sequential(
        nn.Conv2d(3, maps[0], kernel_size=11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(maps[0], maps[1], kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2),
        nn.Conv2d(maps[1], maps[2], kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(maps[2], maps[3], kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(maps[3], maps[4], kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2),
    )
    theirs = {
        f"{place}.{kind}": p[f"conv{i}.{kind}"]
        for i, place in enumerate((0, 3, 6, 8, 10), start=1)
        for kind in ("weight", "bias")
    }
    return _dropping_before(p, torch.func.functional_call(features, theirs, images), masks)


def alexnet_cifar(p: Parameters, images: Tensor, masks: Masks) -> Tensor:
    """models/AlexNet.py of the CIFAR-10 course: 3 x 3 with stride 2 first, poolings of 2 x 2."""
    x = pool(relu(conv(p, "conv1", images, stride=2, pad=1)), size=2, partial=False)
    x = pool(relu(conv(p, "conv2", x, pad=1)), size=2, partial=False)
    x = relu(conv(p, "conv3", x, pad=1))
    x = relu(conv(p, "conv4", x, pad=1))
    return _dropping_before(p, pool(relu(conv(p, "conv5", x, pad=1)), size=2, partial=False), masks)


def cifar_four_layer(
    p: Parameters,
    images: Tensor,
    masks: Masks,
    towers: int = 1,
    activation: str = "relu",
    divide_by_all: bool = False,
    average: bool = True,
) -> Tensor:
    """layers-18pct.cfg without its norms; the average is over the pixels inside the image."""
    assert not masks
    act = ACTIVATIONS[activation]
    x = pool(act(conv(p, "conv1", images, pad=2)))
    x = pool(act(conv(p, "conv2", x, pad=2, groups=towers)), average=average, divide_by_all=divide_by_all)
    x = pool(act(conv(p, "conv3", x, pad=2)), average=average, divide_by_all=divide_by_all)
    return dense(p, "fc4", x.flatten(1))


@dataclass(frozen=True)
class Reference:
    """One network: what it computes, what it is made of, and its numbers at full width."""

    logits: Callable[..., Tensor]
    num_parameters: int
    table: Table
    sizes: tuple[tuple[int, int], ...]  # of the convolutions: pixels of its sum, pixels after pooling
    initial: dict[str, tuple[str, float, float]]  # distribution, its std (of normal, truncated), the bias
    linked: tuple[str, ...] | None = None  # layers that read both towers; None: one tower
    classes: int = 1000
    image_size: int = 224

    def shapes(self, width: float, classes: int, pooled: int) -> dict[str, tuple[int, ...]]:
        """Of the weights when all widths are multiplied, and fc6 reads maps of so many pixels."""
        found: dict[str, tuple[int, ...]] = {}
        first_dense = next(name for name in self.table if name.startswith("fc"))
        for name, (kernels, maps, side) in self.table.items():
            rows = classes if kernels is None else round(kernels * width)
            columns = 3 if name == "conv1" else round(maps * width)
            if name.startswith("fc"):
                found[name] = (rows, columns * (pooled**2 if name == first_dense else 1))
            else:
                found[name] = (rows, columns, side, side)
        return found

    def count(self, name: str, classes: int) -> int:
        """Parameters of a layer: each kernel has its inputs and a bias."""
        kernels, maps, side = self.table[name]
        return (classes if kernels is None else kernels) * (maps * side**2 + 1)


def gradients(
    logits: Callable[[Parameters, Tensor, Masks], Tensor], p: Parameters, images: Tensor, labels: Tensor, masks: Masks
) -> tuple[Tensor, Parameters]:
    """Logits, and dL/dw for each parameter."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in p.items()}
    z = logits(leaves, images, masks)
    found = torch.autograd.grad(oracle.loss(z, labels), list(leaves.values()))
    return z.detach(), dict(zip(leaves, found, strict=True))


def merge(towers: Sequence[Parameters], linked: tuple[str, ...] | None) -> Parameters:
    """The whole network's parameters (or gradients) from those of its towers; see `oracle.merge`."""
    if linked is None:
        (whole,) = towers
        return dict(whole)
    first, second = towers
    whole = {}
    for layer in [name.removesuffix(".bias") for name in first if name.endswith(".bias")]:
        if layer in linked:
            own, other = f"{layer}.weight_own", f"{layer}.weight_other"
            rows = [torch.cat([first[own], first[other]], dim=1), torch.cat([second[other], second[own]], dim=1)]
        else:
            rows = [first[f"{layer}.weight"], second[f"{layer}.weight"]]
        whole[f"{layer}.weight"] = torch.cat(rows)
        whole[f"{layer}.bias"] = torch.cat([first[f"{layer}.bias"], second[f"{layer}.bias"]])
    assert sum(t.numel() for t in whole.values()) == sum(t.numel() for tower in towers for t in tower.values())
    return whole


_SIZES = ((55, 27), (27, 13), (13, 13), (13, 13), (13, 6))
_LINKED = ("conv3", "fc6", "fc7", "fc8")

_TWO_TOWERS: Table = {
    "conv1": (96, 3, 11),
    "conv2": (256, 48, 5),
    "conv3": (384, 256, 3),
    "conv4": (384, 192, 3),
    "conv5": (256, 192, 3),
    "fc6": (4096, 256, 6),
    "fc7": (4096, 4096, 1),
    "fc8": (None, 4096, 1),
}
_INITIAL_2012 = {
    "conv1": ("normal", 0.01, 0.0),
    "conv2": ("normal", 0.01, 1.0),
    "conv3": ("normal", 0.03, 0.0),
    "conv4": ("normal", 0.03, 1.0),
    "conv5": ("normal", 0.03, 1.0),
    "fc6": ("normal", 0.01, 1.0),
    "fc7": ("normal", 0.01, 1.0),
    "fc8": ("normal", 0.01, 0.0),
}
_INITIAL_CAFFE = {
    "conv1": ("normal", 0.01, 0.0),
    "conv2": ("normal", 0.01, 0.1),
    "conv3": ("normal", 0.01, 0.0),
    "conv4": ("normal", 0.01, 0.1),
    "conv5": ("normal", 0.01, 0.1),
    "fc6": ("normal", 0.005, 0.1),
    "fc7": ("normal", 0.005, 0.1),
    "fc8": ("normal", 0.01, 0.0),
}
_SIX_CONV: Table = {
    "conv1": (96, 3, 11),
    "conv2": (256, 48, 5),
    "conv3": (384, 256, 3),
    "conv4": (384, 192, 3),
    "conv5": (256, 192, 3),
    "conv6": (256, 256, 3),
    "fc6": (4096, 256, 6),
    "fc7": (4096, 4096, 1),
}
_CIFAR_INITIAL = {
    "conv1": ("normal", 0.0001, 0.0),
    "conv2": ("normal", 0.01, 0.0),
    "conv3": ("normal", 0.01, 0.0),
    "fc4": ("normal", 0.01, 0.0),
}

REFERENCES = {
    "one_tower": Reference(
        logits=one_tower,
        num_parameters=59_798_312,
        table={
            "conv1": (48, 3, 11),
            "conv2": (128, 48, 5),
            "conv3": (192, 128, 3),
            "conv4": (192, 192, 3),
            "conv5": (256, 192, 3),
            "fc6": (4096, 256, 6),
            "fc7": (4096, 4096, 1),
            "fc8": (None, 4096, 1),
        },
        sizes=_SIZES,
        initial=_INITIAL_2012,
    ),
    "half_tower": Reference(
        logits=half_tower,
        num_parameters=16_630_440,
        table={
            "conv1": (48, 3, 11),
            "conv2": (128, 48, 5),
            "conv3": (192, 128, 3),
            "conv4": (192, 192, 3),
            "conv5": (128, 192, 3),
            "fc6": (2048, 128, 6),
            "fc7": (2048, 2048, 1),
            "fc8": (None, 2048, 1),
        },
        sizes=_SIZES,
        initial=dict.fromkeys(("conv1", "conv2", "conv3", "conv4", "conv5"), ("kaiming", 0.0, 0.0))
        | dict.fromkeys(("fc6", "fc7", "fc8"), ("normal", 0.01, 0.0)),
    ),
    "caffe_alexnet": Reference(
        logits=caffe_alexnet,
        num_parameters=60_965_224,
        table=_TWO_TOWERS,  # its groups read as much as a tower does
        sizes=_SIZES,
        initial=_INITIAL_CAFFE,
        image_size=227,
    ),
    "caffenet": Reference(
        logits=caffenet,
        num_parameters=60_965_224,
        table=_TWO_TOWERS,
        sizes=_SIZES,
        initial={name: (kind, std, 1.0 if bias else 0.0) for name, (kind, std, bias) in _INITIAL_CAFFE.items()},
        image_size=227,
    ),
    "alexnet_v2": Reference(
        logits=alexnet_v2,
        num_parameters=50_303_912,
        table={
            "conv1": (64, 3, 11),
            "conv2": (192, 64, 5),
            "conv3": (384, 192, 3),
            "conv4": (384, 384, 3),
            "conv5": (256, 384, 3),
            "fc6": (4096, 256, 5),
            "fc7": (4096, 4096, 1),
            "fc8": (None, 4096, 1),
        },
        sizes=((54, 26), (26, 12), (12, 12), (12, 12), (12, 5)),
        initial=dict.fromkeys(("conv1", "conv2", "conv3", "conv4", "conv5"), ("xavier", 0.0, 0.1))
        | dict.fromkeys(("fc6", "fc7"), ("truncated", 0.005, 0.1))
        | {"fc8": ("truncated", 0.005, 0.0)},
    ),
    "torchvision_alexnet": Reference(
        logits=torchvision_alexnet,
        num_parameters=61_100_840,
        table={
            "conv1": (64, 3, 11),
            "conv2": (192, 64, 5),
            "conv3": (384, 192, 3),
            "conv4": (256, 384, 3),
            "conv5": (256, 256, 3),
            "fc6": (4096, 256, 6),
            "fc7": (4096, 4096, 1),
            "fc8": (None, 4096, 1),
        },
        sizes=_SIZES,
        initial=dict.fromkeys(_TWO_TOWERS, ("torch", 0.0, math.nan)),
    ),
    "alexnet_cifar": Reference(
        logits=alexnet_cifar,
        num_parameters=23_272_266,
        table={
            "conv1": (64, 3, 3),
            "conv2": (192, 64, 3),
            "conv3": (384, 192, 3),
            "conv4": (256, 384, 3),
            "conv5": (256, 256, 3),
            "fc6": (4096, 256, 2),
            "fc7": (4096, 4096, 1),
            "fc8": (None, 4096, 1),
        },
        sizes=((16, 8), (8, 4), (4, 4), (4, 4), (4, 2)),
        initial=dict.fromkeys(_TWO_TOWERS, ("torch", 0.0, math.nan)),
        classes=10,
        image_size=32,
    ),
    "six_conv": Reference(
        logits=six_conv,
        num_parameters=61_555_304,
        table=_SIX_CONV | {"fc8": (None, 4096, 1)},
        sizes=(*_SIZES, (6, 6)),
        initial=_INITIAL_2012 | {"conv6": ("normal", 0.03, 1.0)},
        linked=("conv3", "conv6", "fc6", "fc7", "fc8"),
    ),
    "six_conv_bottleneck": Reference(
        logits=six_conv_bottleneck,
        num_parameters=110_605_267,
        table=_SIX_CONV | {"fc7b": (2048, 4096, 1), "fc8": (None, 2048, 1)},
        sizes=(*_SIZES, (6, 6)),
        initial=_INITIAL_2012 | {"conv6": ("normal", 0.03, 1.0), "fc7b": ("normal", 0.01, 0.0)},
        linked=("conv3", "conv6", "fc6", "fc7", "fc7b", "fc8"),
        classes=21_843,
    ),
    "no_exchange": Reference(
        logits=no_exchange,
        num_parameters=60_714_408,
        table={
            "conv1": (96, 3, 11),
            "conv2": (320, 48, 5),
            "conv3": (384, 160, 3),
            "conv4": (384, 192, 3),
            "conv5": (256, 192, 3),
            "fc6": (8192, 128, 6),
            "fc7": (4096, 4096, 1),
            "fc8": (None, 4096, 1),
        },
        sizes=_SIZES,
        initial=_INITIAL_2012,
        linked=("fc8",),
    ),
    "exchange_conv4": Reference(
        logits=exchange_conv4,
        num_parameters=61_186_408,
        table=_TWO_TOWERS | {"conv3": (384, 128, 3), "conv4": (384, 384, 3)},
        sizes=_SIZES,
        initial=_INITIAL_2012,
        linked=("conv4", "fc6", "fc7", "fc8"),
    ),
    "norm_below_relu": Reference(
        logits=norm_below_relu,
        num_parameters=60_965_224,
        table=_TWO_TOWERS,
        sizes=_SIZES,
        initial=_INITIAL_2012,
        linked=_LINKED,
    ),
    "lrn1_only": Reference(
        logits=lrn1_only,
        num_parameters=60_965_224,
        table=_TWO_TOWERS,
        sizes=_SIZES,
        initial=_INITIAL_2012,
        linked=_LINKED,
    ),
    "cifar_four_layer": Reference(
        logits=cifar_four_layer,
        num_parameters=89_578,
        table={"conv1": (32, 3, 5), "conv2": (32, 32, 5), "conv3": (64, 32, 5), "fc4": (None, 64, 4)},
        sizes=((32, 16), (16, 8), (8, 4)),
        initial=_CIFAR_INITIAL,
        classes=10,
        image_size=32,
    ),
    "cifar_four_layer_2": Reference(  # with two towers
        logits=lambda p, images, masks, **more: cifar_four_layer(p, images, masks, towers=2, **more),
        num_parameters=76_778,
        table={"conv1": (32, 3, 5), "conv2": (32, 16, 5), "conv3": (64, 32, 5), "fc4": (None, 64, 4)},
        sizes=((32, 16), (16, 8), (8, 4)),
        initial=_CIFAR_INITIAL,
        linked=("conv3", "fc4"),
        classes=10,
        image_size=32,
    ),
}
