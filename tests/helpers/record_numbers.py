"""Records what a few training steps compute, for `test_same_numbers.py`; only for a change that means new numbers.

python tests/helpers/record_numbers.py
"""

import hashlib
import json
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as pytest does

from helpers.composing import compose
from helpers.paths import ROOT
from twotower.config import Config
from twotower.data.batch import Share
from twotower.data.feed import open_train
from twotower.data.preparing.first_use import prepare
from twotower.distributed.exchange import InProcessExchange
from twotower.model.tower import Tower, forward
from twotower.training.optim import VelocitySGD

RECORDED = ROOT / "tests" / "training" / "recorded_numbers.json"
NETWORKS = ("alexnet", "alexnet_2012", "one_tower")
STEPS, BATCH = 8, 16
SMALL = ("network.width=0.125", "data=shapes", "data.num_train=48", "data.num_val=12", "input.loader=torch")


def configure(network: str, root: Path, *overrides: str) -> Config:
    return compose(f"network={network}", f"data.root={root}", *SMALL, *overrides)


def train(config: Config) -> dict[str, Any]:
    """Some steps of both towers in this process: the loss of each step, and one checksum over all weights."""
    dataset = prepare(config.data, progress=False, loader="torch")
    towers = [
        Tower(config.network, len(dataset.classes), tower, config.seed) for tower in range(config.network.towers)
    ]
    optim, network = config.optim, config.network
    rules = [
        VelocitySGD(
            tower.paper_named_parameters(), optim.momentum, optim.weight_decay, network.bias_rate, network.bias_decay
        )
        for tower in towers
    ]
    losses = []
    share = Share(BATCH, 0, 1, torch.device("cpu"), 1)
    with closing(open_train(dataset, config.input, share, seed=config.seed, first_step=0)) as feed:
        for step, batch in zip(range(STEPS), feed, strict=False):
            for tower, rule in zip(towers, rules, strict=True):
                tower.at_step(step, slice(0, BATCH), BATCH)
                rule.set_rate(optim.learning_rate)
            loss = F.cross_entropy(forward(towers, batch.images, InProcessExchange()), batch.labels)
            loss.backward()
            losses.append(loss.item())
            for rule in rules:
                rule.step()
    digest = hashlib.sha256()
    for tower in towers:
        for name, parameter in sorted(tower.paper_named_parameters().items()):
            digest.update(name.encode() + parameter.detach().contiguous().numpy().tobytes())
    return {"losses": losses, "sha256": digest.hexdigest()}


def fingerprint() -> dict[str, str]:
    """Where the same bits are to be expected. Another processor or release of torch takes sums in another order."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    about = sorted({line for line in lines if line.startswith(("model name", "flags", "cache size"))})
    return {
        "torch": torch.__version__.split("+")[0],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "processor": hashlib.sha256("\n".join(about).encode()).hexdigest()[:16] if about else "unknown",
    }


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        numbers = {network: train(configure(network, Path(folder) / "shapes")) for network in NETWORKS}
    RECORDED.write_text(json.dumps({"recorded": fingerprint(), "networks": numbers}, indent=1) + "\n")
    print(f"written: {RECORDED.name}")


if __name__ == "__main__":
    main()
