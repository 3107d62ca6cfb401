"""AlexNet as it was drawn in 2012: one tower per process, activations crossing only at conv3 and fc6-fc8.

From Python:

    network = twotower.load_network("runs/NAME")      # a run, or a file of weights; see `TrainedNetwork`
    network = twotower.build_network("alexnet_2012")  # random weights
    twotower.extract_features(network, "DIR", ["conv2", "fc7"], output="features")
    twotower.forward([tower0, tower1], images, twotower.InProcessExchange())

What a name needs is imported when it is first used, because torch takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twotower.distributed.exchange import InProcessExchange, WireExchange
    from twotower.distributed.world import open_world
    from twotower.evaluation.extract_features import extract_features, iterate_features
    from twotower.evaluation.load_network import build_network, load_network
    from twotower.evaluation.timm_style import TimmStyle
    from twotower.evaluation.trained import TrainedNetwork
    from twotower.model.tower import Tower, forward

__version__ = "0.1.0"

_HOMES = {
    "InProcessExchange": "distributed.exchange",
    "TimmStyle": "evaluation.timm_style",
    "Tower": "model.tower",
    "TrainedNetwork": "evaluation.trained",
    "WireExchange": "distributed.exchange",
    "build_network": "evaluation.load_network",
    "extract_features": "evaluation.extract_features",
    "forward": "model.tower",
    "iterate_features": "evaluation.extract_features",
    "load_network": "evaluation.load_network",
    "open_world": "distributed.world",
}
__all__ = [
    "InProcessExchange",
    "TimmStyle",
    "Tower",
    "TrainedNetwork",
    "WireExchange",
    "__version__",
    "build_network",
    "extract_features",
    "forward",
    "iterate_features",
    "load_network",
    "open_world",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"twotower has no {name}; it has {', '.join(__all__)}")
    return getattr(import_module(f"twotower.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
