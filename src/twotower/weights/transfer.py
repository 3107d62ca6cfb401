"""Initial weights from another training: which layers are taken over, and which stay as they were drawn.

The chain of 146-2012-2011 is made of it: config 145 on ILSVRC-2012, then with a sixth convolution on a larger set,
then on the largest, then back on ILSVRC-2012 (initw.py of the 2012 source; experiment/chain_146_*.yaml).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from twotower.config import UNSCALED, InitialWeightsConfig, NetworkConfig
from twotower.config.paths import from_here
from twotower.model.tower import Tower
from twotower.runs import checkpoint
from twotower.weights import read_weights as weights
from twotower.weights.merged import Imported, divide_image_weights, expected_shapes, split

IMAGENET_CLASSES = 1000  # classes of the weights that Caffe and torchvision hand out

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Inheritance:
    """The layers that are taken over, and those that stay new."""

    source: str
    taken: list[str]
    new: list[str]
    rescaled: list[str] = field(default_factory=list)  # layers whose source was fed pixels of another scale
    swapped: list[str] = field(default_factory=list)  # layers of which each tower takes what the other one had

    def describe(self) -> str:
        """One line."""
        new = f"; new: {', '.join(self.new)}" if self.new else ""
        rescaled = f"; brought to this input's scale: {', '.join(self.rescaled)}" if self.rescaled else ""
        swapped = f"; swapped between the towers: {', '.join(self.swapped)}" if self.swapped else ""
        return f"initial weights of {', '.join(self.taken)} from {self.source}{new}{rescaled}{swapped}"


def locate(path: str) -> str:
    """The checkpoint meant by a run's folder; any other path as it is. Raises: ValueError if there is nothing."""
    where = from_here(path)
    return str(checkpoint.find(where).absolute()) if where.is_dir() or not where.exists() else path


def read_source(path: str, network: NetworkConfig) -> Imported:
    """Reads what lies at `path`: a run, a checkpoint, or any file that launch/evaluate.py reads.

    Raises: ValueError if it is none of them, or damaged.
    """
    where = Path(path)
    if where.is_dir() or not where.exists():
        return weights.read_checkpoint(where)
    if where.suffix == ".safetensors":
        return weights.read_merged(where)
    return weights.read_weights(where, network, IMAGENET_CLASSES)


def _by_layer(shapes: Mapping[str, Shape]) -> dict[str, dict[str, Shape]]:
    found: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        found.setdefault(name.split(".")[0], {})[name] = shape
    return found


def choose_layers(
    theirs: Mapping[str, Shape], ours: Mapping[str, Shape], chosen: Sequence[str], source: str, same_classes: bool
) -> Inheritance:
    """Decides layer by layer, from shapes by name ("conv1.weight") in the merged form.

    Chosen layers must fit. If none are chosen, all are taken that the source has, except a last layer for other
    classes; anything else that does not fit is refused, as a network that silently keeps half of its random weights
    helps nobody.

    Raises: ValueError naming the layer and both shapes.
    """
    their_layers, our_layers = _by_layer(theirs), _by_layer(ours)
    for layers, where in ((our_layers, "this network"), (their_layers, source)):
        unknown = [name for name in chosen if name not in layers]
        if unknown:
            raise ValueError(
                f"initial_weights.layers names {unknown[0]}, which {where} does not have; it has {', '.join(layers)}."
            )
    last, taken = list(our_layers)[-1], []
    for layer in chosen or [name for name in our_layers if name in their_layers]:
        misfits = [name for name, shape in our_layers[layer].items() if their_layers[layer].get(name) != shape]
        if not misfits and (chosen or layer != last or same_classes):
            taken.append(layer)
        elif chosen or layer != last:
            name = misfits[0]
            raise ValueError(
                f"initial_weights.path={source} does not fit: {name} is {ours[name]} here and "
                f"{theirs.get(name, 'not')} there; leave the layer out with 'initial_weights.layers=[...]', or "
                "choose the same network and width."
            )
    if not taken:
        raise ValueError(f"initial_weights.path={source} has no layer that fits this network; choose another source.")
    return Inheritance(source, taken, [name for name in our_layers if name not in taken])


def _check_swapped(swapped: Sequence[str], network: NetworkConfig, taken: Sequence[str]) -> None:
    """Raises: ValueError if there are no two towers, or if a layer is not taken over."""
    if swapped and network.towers != 2:
        raise ValueError(
            f"initial_weights.swapped={list(swapped)} needs two towers, and {network.name} has one; leave it out."
        )
    missing = [name for name in swapped if name not in taken]
    if missing:
        raise ValueError(
            f"initial_weights.swapped names {missing[0]}, which is not taken over; taken over are {', '.join(taken)}."
        )
    last = list(network.layers)[-1]
    if last in swapped:
        raise ValueError(f"initial_weights.swapped names {last}, whose halves are classes; leave it out.")


def plan_inheritance(
    settings: InitialWeightsConfig, network: NetworkConfig, classes: Sequence[str], std: Sequence[float] = UNSCALED
) -> tuple[Inheritance, dict[str, Tensor]] | None:
    """Decides what is taken over, and reads the tensors; None if initial weights are drawn.

    Weights that read the image are brought from the source's scale of the input to this one's, so that they say of
    a pixel what they said there.

    Args:
        classes: names, by which a last layer of equally many other classes is told.
        std: input.std of the training that begins.

    Raises: ValueError if the source cannot be read or does not fit.
    """
    if settings.path is None:
        return None
    source = read_source(settings.path, network)
    shapes = {name: tuple(tensor.shape) for name, tensor in source.tensors.items()}
    same_classes = source.classes is None or source.classes == list(classes)
    wanted = expected_shapes(network, len(classes))
    chosen = choose_layers(shapes, wanted, settings.layers, str(from_here(settings.path)), same_classes)
    _check_swapped(settings.swapped, network, chosen.taken)
    chosen = replace(chosen, swapped=[name for name in chosen.taken if name in settings.swapped])
    if tuple(source.std) == tuple(std):
        return chosen, source.tensors
    taken = {name: tensor for name, tensor in source.tensors.items() if name.split(".")[0] in chosen.taken}
    change = [theirs / ours for theirs, ours in zip(source.std, std, strict=True)]
    rescaled = [name for name in chosen.taken if network.layers[name].reads == "image"]
    return replace(chosen, rescaled=rescaled), divide_image_weights(taken, network, change)


def inherit(
    settings: InitialWeightsConfig,
    network: NetworkConfig,
    classes: Sequence[str],
    tower: Tower,
    std: Sequence[float] = UNSCALED,
) -> Inheritance | None:
    """Copies another training's weights into `tower`; None if none are asked for. Errors as of `plan_inheritance`."""
    planned = plan_inheritance(settings, network, classes, std)
    if planned is None:
        return None
    chosen, theirs = planned
    merged = {
        name: theirs[name] if name.split(".")[0] in chosen.taken else torch.empty(shape, device="meta")
        for name, shape in expected_shapes(network, len(classes)).items()
    }
    own = split(merged, network, len(classes), tower.tower)
    others = split(merged, network, len(classes), 1 - tower.tower) if chosen.swapped else own
    for name, parameter in tower.paper_named_parameters().items():
        layer = name.split(".")[0]
        if layer in chosen.taken:
            parameter.data.copy_((others if layer in chosen.swapped else own)[name])
    return chosen
