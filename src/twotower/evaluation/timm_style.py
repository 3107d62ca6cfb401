"""A network as timm's models present themselves, for code that was written for these.

    model = twotower.TimmStyle(network)
    model.forward_features(images)                  # [B, 256, 6, 6]: conv5 with its pooling
    model.forward_head(maps, pre_logits=True)       # [B, 4096]: fc7
    model.reset_classifier(10)                      # another fc8

timm itself is not needed. `timm.data.resolve_model_data_config(model)` reads the input from `pretrained_cfg`: images
come as RGB in 0..255, and the network subtracts its own mean image, which is none of a colour each.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from twotower.evaluation.trained import TrainedNetwork
from twotower.model.tower import Tower


class TimmStyle(nn.Module):
    """A copy of a network in one piece, by the names of timm: `forward_features`, `forward_head` and the rest.

    Takes float32 [B, 3, S, S], RGB, 0..255: the centre crop of an image, from which nothing is subtracted yet. It
    trains like any module; its dropout is in `forward_head`.

    Attributes:
        num_classes: outputs of the classifier; 0 without one.
        num_features: maps of `forward_features`.
        head_hidden_size: units that the classifier reads.
        feature_info: of each layer with maps, its number of maps, `reduction` (the product of strides) and module.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: TrainedNetwork) -> None:
        super().__init__()
        whole = network.in_one_piece()
        layers = network.layers
        tower = cast(Tower, network.towers[0])
        table, rows = tower.network, {row.name: row for row in tower.rows}
        linear = [name for name in layers if rows[name].config.kind == "linear"]
        self.features, self.head = nn.Sequential(), nn.Sequential()
        last: dict[str, str] = {}  # layer -> its last module
        for name, module in whole.named_children():
            layer = max((layer for layer in layers if f"{name}_".startswith(f"{layer}_")), key=len)
            (self.head if layer in linear else self.features).add_module(name, module)
            last[layer] = name
        self._classifier = layers[-1]
        mean = whole.get_buffer("mean_image")
        self.register_buffer("mean", mean, persistent=False)
        std = torch.tensor(network.input.std, device=network.device).view(3, 1, 1)
        self.register_buffer("std", std, persistent=False)
        maps = [name for name in layers if name not in linear]
        self.num_classes = len(network.classes)
        self.num_features = sum(rows[maps[-1]].kernels)
        self.head_hidden_size = sum(rows[linear[-1]].maps_in)
        side = network.input.crop_size
        self.feature_info: list[dict[str, Any]] = []
        stride = 1
        for name in maps:
            row = rows[name].config
            stride *= row.stride * (table.pool.stride if "pool" in row.then else 1)
            maps_out = sum(rows[name].kernels)
            self.feature_info.append({"num_chs": maps_out, "reduction": stride, "module": f"features.{last[name]}"})
        self.pretrained_cfg: dict[str, Any] = {
            "input_size": (3, side, side),
            "crop_pct": side / network.size,
            "interpolation": "bilinear",
            "mean": (0.0, 0.0, 0.0),
            "std": (1 / 255,) * 3,  # pixels of 0..1 over this are those of 0..255
            "num_classes": self.num_classes,
            "first_conv": f"features.{maps[0]}",
            "classifier": f"head.{self._classifier}",
        }
        self.default_cfg = self.pretrained_cfg

    def forward_features(self, images: Tensor) -> Tensor:
        """The maps of the last convolution, pooled, [B, C, h, w]."""
        x = (images - self.mean) / self.std
        for module in self.features.children():
            x = module(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The logits [B, classes] of maps; with `pre_logits` what the classifier reads, [B, head_hidden_size]."""
        for name, module in self.head.named_children():
            if not (pre_logits and name == self._classifier):
                x = module(x)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """The logits [B, classes]."""
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head.get_submodule(self._classifier)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a new last layer in, with torch's initial weights; with 0 classes none, so that the units come out.

        Raises: ValueError for another pooling than the network's own, because its fc6 reads single pixels.
        """
        if global_pool not in (None, "", "max"):
            raise ValueError(f"global_pool={global_pool} is not possible: fc6 reads the pixels of the last maps.")
        device = self.mean.device
        layer = nn.Linear(self.head_hidden_size, num_classes, device=device) if num_classes else nn.Identity()
        setattr(self.head, self._classifier, layer)
        self.num_classes = num_classes
