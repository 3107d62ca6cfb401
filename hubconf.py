"""Entry points of torch.hub.

network = torch.hub.load(".", "load_network", "RUN", source="local")
network = torch.hub.load(".", "alexnet_2012", num_classes=10, source="local")
network = torch.hub.load(".", "build_network", "caffenet", source="local")
"""

import sys
from pathlib import Path
from typing import Any

dependencies = ["torch", "numpy", "omegaconf", "hydra", "safetensors", "PIL", "simplejpeg"]

try:
    import twotower
except ImportError:  # torch.hub has fetched the repository, and nothing was installed
    sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))
    import twotower

from twotower.evaluation.load_network import build_network, load_network  # noqa: E402

__all__ = ["alexnet", "alexnet_2012", "build_network", "load_network", "one_tower"]


def alexnet(num_classes: int = 1000, **options: Any) -> "twotower.TrainedNetwork":
    """Figure 2 of the paper, two towers, with random weights; options as of `build_network`."""
    return build_network("alexnet", num_classes, **options)


def alexnet_2012(num_classes: int = 1000, **options: Any) -> "twotower.TrainedNetwork":
    """The network as the 2012 code trained it, two towers, with random weights; options as of `build_network`."""
    return build_network("alexnet_2012", num_classes, **options)


def one_tower(num_classes: int = 1000, **options: Any) -> "twotower.TrainedNetwork":
    """The one-GPU network of section 3.2, one tower, with random weights; options as of `build_network`."""
    return build_network("one_tower", num_classes, **options)
