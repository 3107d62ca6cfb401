"""Initial weights from another training: which layers are taken over, and which stay as they were drawn.

The chain of 146-2012-2011 is made of it: config 145 on ILSVRC-2012, then with a sixth convolution on a larger set,
then on the largest, then back on ILSVRC-2012 (initw.py of the 2012 source; experiment/chain_146_*.yaml).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from twotower import checkpoint
from twotower.config import InitialWeightsConfig
from twotower.network import Tower


@dataclass(frozen=True)
class Inheritance:
    """What became of each layer."""

    source: Path
    taken: list[str]
    new: list[str]

    def describe(self) -> str:
        """One line."""
        new = f"; new: {', '.join(self.new)}" if self.new else ""
        return f"initial weights of {', '.join(self.taken)} from {self.source}{new}"


def _by_layer(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found.setdefault(name.split(".")[0], {})[name] = tensor
    return found


def _misfit(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> str:
    """The first tensor of a layer that does not fit, in words; empty if all fit."""
    for name, tensor in ours.items():
        if name not in theirs:
            return f"{name} is {tuple(tensor.shape)} here, and there is {', '.join(theirs)} there"
        if theirs[name].shape != tensor.shape:
            return f"{name} is {tuple(tensor.shape)} here and {tuple(theirs[name].shape)} there"
    return ""


def choose_layers(
    theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], chosen: Sequence[str], source: Path
) -> Inheritance:
    """Decides layer by layer, from tensors by name ("conv1.weight").

    Chosen layers must fit. If none are chosen, all are taken that the source has, except a last layer for other
    classes; anything else that does not fit is refused, as a network that silently keeps half of its random weights
    helps nobody.

    Raises: ValueError naming the layer and both shapes.
    """
    their_layers, our_layers = _by_layer(theirs), _by_layer(ours)
    unknown = [name for name in chosen if name not in our_layers or name not in their_layers]
    if unknown:
        where = "this network" if unknown[0] not in our_layers else str(source)
        have = our_layers if unknown[0] not in our_layers else their_layers
        raise ValueError(
            f"initial_weights.layers names {unknown[0]}, which {where} does not have; it has {', '.join(have)}."
        )
    last, taken = list(our_layers)[-1], []
    for name in chosen or [name for name in our_layers if name in their_layers]:
        misfit = _misfit(their_layers[name], our_layers[name])
        if not misfit:
            taken.append(name)
        elif chosen or name != last:
            raise ValueError(
                f"initial_weights.path={source} does not fit: {misfit}; leave the layer out with "
                "initial_weights.layers=[...], or choose the same network and width."
            )
    if not taken:
        raise ValueError(f"initial_weights.path={source} has no layer in common with this network; choose another.")
    return Inheritance(source, taken, [name for name in our_layers if name not in taken])


def inherit(settings: InitialWeightsConfig, tower: Tower) -> Inheritance | None:
    """Copies another training's weights into `tower`; None if none are asked for.

    Raises: ValueError if the source is no run, checkpoint or file of weights, is damaged, or does not fit.
    """
    if settings.path is None:
        return None
    path = Path(settings.path)
    ours = {name: p.data for name, p in tower.paper_named_parameters().items()}
    source = checkpoint.find(path)
    manifest = checkpoint.read_manifest(source)
    if manifest.network["towers"] != tower.num_towers:
        raise ValueError(
            f"initial_weights.path={path} has {manifest.network['towers']} towers and this network "
            f"{tower.num_towers}; export it first (launch/export.py) and give the file."
        )
    theirs = {
        name: tensor
        for name, tensor in load_file(source / checkpoint.tower_file(tower.tower)).items()
        if not name.startswith(checkpoint.VELOCITY)
    }
    chosen = choose_layers(theirs, ours, settings.layers, path)
    for name in ours:
        if name.split(".")[0] in chosen.taken:
            ours[name].copy_(theirs[name])
    return chosen
