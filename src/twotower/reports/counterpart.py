"""The runs of 2012/13 that a run of ours counts for, by its network and its ablation."""

from dataclasses import asdict
from typing import Any

from omegaconf import OmegaConf

from twotower.config import Config
from twotower.config.presets import CONF, preset

BASELINE, PRETRAINED = "alexnet_2012", "six_conv"
COUNTERPARTS = {  # network or ablation of ours -> runs of 2012/13, or names of results that only the paper has
    BASELINE: ("145", "145-2010"),
    "no_lrn": ("148",),
    "no_overlap": ("147",),
    "one_tower": ("145-half",),
    "no_exchange": ("150",),
    "norm_below_relu": ("166",),
    "lrn1_only": ("167",),
    "half_exchange": ("170-quant",),
    "no_colour_noise": ("no-colour-noise",),
    "no_conv3": ("no-conv3",),
    "no_conv4": ("no-conv4",),
    "no_conv5": ("no-conv5",),
    PRETRAINED: ("146-2012-2011",),  # experiment/chain_146_4.yaml
}
SIZE_KEYS = ("width", "image_size", "prepared_size")  # keys of a network's size; the heading says the width
ABLATIONS = CONF / "ablation"


def find_counterpart(config: Config) -> str | None:
    """The key of `COUNTERPARTS` that a run has: its network or its ablation, whichever differs from the paper's run.

    None if the run changes two things, or one that the lab book does not have. A run that began with the weights of
    another one counts only for the six convolutions, and these only so: from scratch they overfitted in 2012.
    """
    changed = [name for name in (config.network.name, config.ablation) if name not in (BASELINE, "none")]
    name = changed[0] if changed else BASELINE
    weights = config.initial_weights
    pretrained = weights.path is not None and (not weights.layers or "fc7" in weights.layers)
    fits = pretrained if name == PRETRAINED else weights.path is None
    return name if len(changed) < 2 and name in COUNTERPARTS and fits else None


def list_overridden(config: Config) -> list[str]:
    """Keys of the network and of the update in which a run differs from its yamls, apart from its size.

    Raises: ValueError if there is no such network or ablation in conf/ any more.
    """
    path = ABLATIONS / f"{config.ablation}.yaml"
    if not path.exists():
        raise ValueError(f"ablation={config.ablation} is not among the yamls of {ABLATIONS}.")
    ablation: Any = OmegaConf.to_container(OmegaConf.load(path))
    described, actual = asdict(preset(config.network.name, ablation.get("network"))), asdict(config.network)
    keys = [f"network.{key}" for key in actual if key not in SIZE_KEYS and actual[key] != described[key]]
    rule = ablation.get("optim", {}).get("rule", "paper")
    return keys + (["optim.rule"] if config.optim.rule != rule else [])
