"""The settings that set one experiment apart from another, and which of these the names of network and ablation
already tell.
"""

from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException

from twotower.config import Config, register_schemas, resolve
from twotower.config.key_roles import Role, select_settings
from twotower.config.paths import short_place
from twotower.config.presets import CONF
from twotower.ground.wording import counted

# Keys that yamls of networks and ablations may set.
_BROUGHT = ("network.", "input.", "optim.rule")
_SIZES = ("network.width", "network.image_size", "network.prepared_size")
_SHOWN = 3  # settings in a short label
_LONGEST = 40  # characters of a value in it


def select_for_comparison(config: Config) -> dict[str, Any]:
    """All settings that have a part in a run's numbers, apart from its seed, by their keys on the command line."""
    return select_settings(config, (Role.NUMBERS, Role.TRAINING))


@cache
def as_named(network: str, ablation: str) -> dict[str, Any]:
    """The settings that network=... ablation=... bring by themselves; empty if the yamls are not there any more."""
    overrides = [f"network={network}", f"ablation={ablation}", "data=folder", "data.root=."]
    register_schemas()
    try:
        if GlobalHydra.instance().is_initialized():
            return select_for_comparison(resolve(compose("config", overrides)))
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return select_for_comparison(resolve(compose("config", overrides)))
    except (HydraException, ValueError):
        return {}


def read_names(config: Config) -> tuple[str, str]:
    """Network and ablation."""
    return config.network.name, config.ablation


def count_given(config: Config) -> int:
    """The number of settings that neither the names of network and ablation nor the defaults bring."""
    named = as_named(*read_names(config))
    return sum(value != named.get(key) for key, value in select_for_comparison(config).items())


def list_changes(config: Config, base: Config) -> list[str]:
    """ "key=value" of settings that differ from those of `base`, unless network's and ablation's names tell them."""
    ours, theirs = select_for_comparison(config), select_for_comparison(base)
    our_names, their_names = as_named(*read_names(config)), as_named(*read_names(base))
    left_out = {f"network.layers.{name}" for each in (config, base) for name in each.network.leave_out}
    changes = []
    for key in ours | theirs:
        # A layer that is left out needs no other word than network.leave_out.
        if key in ("ablation", "network.name") or key.rpartition(".")[0] in left_out:
            continue
        is_brought = key.startswith(_BROUGHT) and key not in _SIZES
        ours_is_given = not is_brought or ours.get(key) != our_names.get(key)
        theirs_is_given = not is_brought or theirs.get(key) != their_names.get(key)
        is_alike = ours.get(key) == theirs.get(key)
        # The settings may be equal only because an override cancelled the ablation; that is still a change.
        if (ours_is_given and not theirs_is_given) if is_alike else (ours_is_given or theirs_is_given):
            is_place = key == "initial_weights.path" and ours.get(key) is not None
            changes.append(f"{key}={short_place(ours[key]) if is_place else ours.get(key)}")
    return changes


def _shorten(change: str) -> str:
    """ "key=value" as it is, or "another key" where the value is a table."""
    key, _, value = change.partition("=")
    return change if len(value) <= _LONGEST else f"another {key}"


def label_run(config: Config, base: Config, *, in_full: bool = False) -> str:
    """A name beside `base`: "no_lrn", "no_exchange", "none, optim.learning_rate=0.01"."""
    named = [] if config.network.name == base.network.name else [config.network.name]
    if config.ablation != base.ablation or not named:
        named.append(config.ablation)
    changes = list_changes(config, base)
    if not in_full:
        changes = [_shorten(change) for change in changes]
    left = len(changes) - _SHOWN
    if left > 0 and not in_full:
        changes = [*changes[:_SHOWN], counted(left, "more setting")]
    return ", ".join(named + changes)


def labels_of(configs: list[Config], base: Config) -> list[str]:
    """A name for each, all of them different: in full where short ones are alike."""
    short = [label_run(config, base) for config in configs]
    return [
        label_run(config, base, in_full=True) if short.count(label) > 1 else label
        for config, label in zip(configs, short, strict=True)
    ]
