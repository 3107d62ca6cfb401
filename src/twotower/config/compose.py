"""From what Hydra composed to a plain `Config`: the schemas by name, layers left out, absolute paths."""

from dataclasses import replace
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from twotower.config.commands import (
    BenchmarkConfig,
    DashboardConfig,
    DescribeConfig,
    DoctorConfig,
    EvaluateConfig,
    ExportConfig,
    FeaturesConfig,
    FigureConfig,
    IdentifyConfig,
    LabbookConfig,
    MemoryConfig,
    PredictConfig,
    PrepareConfig,
    ReportConfig,
    TimelineConfig,
    VolumeConfig,
)
from twotower.config.frozen_config import freeze
from twotower.config.lazy_help import allow_lazy_help
from twotower.config.paths import make_absolute
from twotower.config.schema import Config, LayerConfig, NetworkConfig
from twotower.config.value_bounds import check_kinds

SCHEMAS = {
    "benchmark": BenchmarkConfig,
    "config": Config,
    "dashboard": DashboardConfig,
    "describe": DescribeConfig,
    "doctor": DoctorConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "features": FeaturesConfig,
    "figure": FigureConfig,
    "identify": IdentifyConfig,
    "labbook": LabbookConfig,
    "memory": MemoryConfig,
    "predict": PredictConfig,
    "prepare_data": PrepareConfig,
    "report": ReportConfig,
    "timeline": TimelineConfig,
    "volume": VolumeConfig,
}


def register_schemas() -> None:
    """Makes the schemas known to Hydra, named as the yamls of conf/: `config_schema`, `figure_schema` ..."""
    allow_lazy_help()
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(f"{name}_schema", node=schema)


def _place_rows(network: NetworkConfig) -> dict[str, LayerConfig]:
    """The rows with each that has an `after` behind the row it names, since yamls can only append to a table.

    Raises: ValueError for a row that is not there.
    """
    names = [name for name, layer in network.layers.items() if layer.after is None]
    waiting = {name: layer.after for name, layer in network.layers.items() if layer.after is not None}
    while waiting:
        placed = [name for name, after in waiting.items() if after in names]
        if not placed:
            name, after = next(iter(waiting.items()))
            raise ValueError(
                f"network.layers.{name}.after={after} names no row before it; the other rows of "
                f"network={network.name} are {', '.join(names)}."
            )
        for name in placed:
            names.insert(names.index(waiting.pop(name) or "") + 1, name)
    return {name: replace(network.layers[name], after=None) for name in names}


def arrange_layers(network: NetworkConfig) -> NetworkConfig:
    """The network with its rows in their order, and without those that `leave_out` names.

    The key `leave_out` stays as a record. The layer behind a removed one reads what that read: both towers where it
    was the exchange, and across the groups that it saw together. Whatever followed the removed layer (pooling, norm,
    dropout) goes with it.

    Raises: ValueError for a layer that the table does not have, and for the last one, which holds the classes.
    """
    layers = _place_rows(network)
    for name in network.leave_out:
        names = list(layers)
        if name not in names:
            raise ValueError(
                f"network.leave_out names {name}, which network={network.name} does not have; its layers are "
                f"{', '.join(names)}."
            )
        if name == names[-1]:
            raise ValueError(f"network.leave_out names {name}, which holds the classes; leave out one before it.")
        next_name = names[names.index(name) + 1]
        removed, following = layers.pop(name), layers[next_name]
        reads = next(word for word in ("image", "both", "own") if word in (removed.reads, following.reads))
        layers[next_name] = replace(following, reads=reads, groups=min(removed.groups, following.groups))
    return replace(network, layers=layers)


def resolve(composed: Any) -> Config:
    """Turns what Hydra composed into a plain, frozen `Config`: nothing to interpolate or leave out, absolute paths.

    Raises: ValueError if a required key was not given, a value and a group are mixed up, or a layer cannot be left
        out.
    """
    missing = OmegaConf.missing_keys(composed)
    strangers = sorted({key.split(".")[2] for key in missing if key.startswith("network.layers.")})
    if strangers:
        raise ValueError(
            f"network.layers.{strangers[0]} is changed, but network={composed.network.name} has no such layer (its "
            f"layers are {', '.join(name for name in composed.network.layers if name not in strangers)}); "
            f"ablation={composed.ablation} and overrides must fit the network."
        )
    if missing:
        raise ValueError(f"{', '.join(sorted(missing))} must be given on the command line or in a yaml of conf/.")
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    check_kinds(config)
    return freeze(make_absolute(replace(config, network=arrange_layers(config.network))))
