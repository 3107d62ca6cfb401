"""The networks of conf/network by name, read without Hydra."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from twotower.config import InputConfig, NetworkConfig, arrange_layers, check_bounds, register_schemas
from twotower.config.stored_config import refuse_interpolations
from twotower.ground.wording import on_one_line

# A wheel has its conf/ inside the package, a checkout beside src/.
_INSTALLED = Path(__file__).resolve().parents[1] / "conf"
CONF = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).resolve().parents[3] / "conf"
PRESETS = CONF / "network"


def network_of(table: Any, where: str | Path) -> NetworkConfig:
    """A NetworkConfig from what JSON has of it. Raises: ValueError if it is none."""
    if isinstance(table, dict):  # from a file; the yamls of conf/ are our own
        refuse_interpolations(table, where)
    try:
        network = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(NetworkConfig), table))
        assert isinstance(network, NetworkConfig)
        asdict(network)
        check_bounds(network, "network.")
    except (OmegaConfBaseException, ValueError, TypeError, AttributeError, KeyError, AssertionError) as error:
        reason = on_one_line(str(error).split("\n")[0].rstrip("."), 300)
        raise ValueError(f"{where} has a table of layers that this version cannot read: {reason}.") from error
    return network


def preset(name: str, changes: Mapping[str, Any] | None = None) -> NetworkConfig:
    """The network of conf/network/NAME.yaml, with `changes` to it. Raises: ValueError if it cannot be read."""

    def chain(name: str) -> list[Any]:
        yaml: Any = OmegaConf.load(PRESETS / f"{name}.yaml")
        parents = [name for name in yaml.pop("defaults", []) if isinstance(name, str) and name != "_self_"]
        return [part for parent in parents for part in chain(parent)] + [yaml]

    try:
        network = network_of(OmegaConf.merge(*chain(name), dict(changes or {})), PRESETS / f"{name}.yaml")
    except OSError as error:
        raise ValueError(f"network={name} is not among the yamls of {PRESETS}.") from error
    return arrange_layers(network)


def presets() -> Iterator[NetworkConfig]:
    """The networks of conf/network, as far as that folder is there."""
    for file in sorted(PRESETS.glob("*.yaml")):
        yield preset(file.stem)


def preset_input(name: str) -> InputConfig:
    """How images are brought to the network of conf/network/NAME.yaml: the input that it was trained with.

    Raises: ValueError if there is no such network.
    """
    register_schemas()
    overrides = [f"network={name}", "data=synthetic"]
    try:
        if GlobalHydra.instance().is_initialized():
            composed = compose("config", overrides)
        else:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                composed = compose("config", overrides)
    except HydraException as error:
        raise ValueError(f"network={name} is not among the yamls of {PRESETS}.") from error
    given = OmegaConf.to_object(composed.input)
    assert isinstance(given, InputConfig)
    return given
