"""Whether each layer learns: the sizes of its weights, updates and outputs, and the colour that its kernels see."""

import math
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from twotower.model.conv1_kernels import colour_selectivity
from twotower.model.layer_table import IMAGE_MAPS
from twotower.model.tower import Tower
from twotower.training.optim import VelocitySGD

WHAT = ("weight", "update", "output", "colour")


class OutputScales:
    """Within this context, the mean |output| of each layer of a tower, after its norms and pooling, is noted."""

    def __init__(self, tower: Tower) -> None:
        self._tower = tower
        self._handles: list[Any] = []
        self.of: dict[str, Tensor] = {}

    def __enter__(self) -> "OutputScales":
        for row, layer in zip(self._tower.rows, self._tower.table(), strict=True):
            self._handles.append(layer.register_forward_hook(self._hook(row.name)))
        return self

    def _hook(self, name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.of[name] = output.detach().abs().mean()

        return note

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()


@torch.no_grad()
def measure(tower: Tower, optimiser: VelocitySGD, outputs: OutputScales) -> Tensor:
    """float64 [layers, 4] on the CPU: mean |w|, mean |update| of the last step, mean |output| in it.

    The last column is the mean colour selectivity of the layer's kernels; NaN for layers that do not read the image.
    """
    rows = []
    for layer in optimiser.layers:
        weights = [p for name, p in optimiser.parameters.items() if name.startswith(f"{layer}.weight")]
        total = sum(float(w.abs().sum()) for w in weights)
        count = sum(w.numel() for w in weights)
        reads_image = weights[0].dim() == 4 and weights[0].shape[1] == IMAGE_MAPS and layer == optimiser.layers[0]
        colour = float(colour_selectivity(weights[0].detach()).mean()) if reads_image else math.nan
        rows.append([total / count, optimiser.mean_update(layer), float(outputs.of[layer]), colour])
    return torch.tensor(rows, dtype=torch.float64)


def as_values(scales: Sequence[Tensor], layers: Sequence[str]) -> dict[str, float]:
    """{"tower0/conv1/weight": ..., ...} of what `measure` gave for each tower."""
    return {
        f"tower{tower}/{layer}/{what}": float(table[row, column])
        for tower, table in enumerate(scales)
        for row, layer in enumerate(layers)
        for column, what in enumerate(WHAT)
        if not math.isnan(table[row, column]) or what != "colour"
    }
