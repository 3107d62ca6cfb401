"""Entry points of torch.hub.

network = torch.hub.load(".", "load_network", "RUN", source="local")
network = torch.hub.load(".", "build_network", "caffenet", source="local")
"""

import sys
from pathlib import Path

dependencies = ["torch", "numpy", "omegaconf", "hydra", "safetensors", "PIL", "simplejpeg"]

try:
    import twotower  # noqa: F401
except ImportError:  # torch.hub has fetched the repository, and nothing was installed
    sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from twotower.evaluation.load import build_network, load_network  # noqa: E402

__all__ = ["build_network", "load_network"]
