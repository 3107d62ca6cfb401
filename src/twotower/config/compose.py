"""From what Hydra composed to a plain `Config`: the schemas by name, layers left out, absolute paths."""

from dataclasses import replace
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from twotower.config.frozen import freeze
from twotower.config.lazy_help import allow_lazy_help
from twotower.config.places import make_absolute
from twotower.config.schema import (
    BenchmarkConfig,
    Config,
    DashboardConfig,
    DescribeConfig,
    EvaluateConfig,
    ExportConfig,
    FigureConfig,
    LabbookConfig,
    NetworkConfig,
    PredictConfig,
    PrepareConfig,
    ReportConfig,
)


def register_schemas() -> None:
    """Makes the schemas known to Hydra, named as the yamls of conf/: `config_schema`, `figure_schema` ..."""
    allow_lazy_help()
    ConfigStore.instance().store("benchmark_schema", node=BenchmarkConfig)
    ConfigStore.instance().store("config_schema", node=Config)
    ConfigStore.instance().store("dashboard_schema", node=DashboardConfig)
    ConfigStore.instance().store("describe_schema", node=DescribeConfig)
    ConfigStore.instance().store("figure_schema", node=FigureConfig)
    ConfigStore.instance().store("evaluate_schema", node=EvaluateConfig)
    ConfigStore.instance().store("export_schema", node=ExportConfig)
    ConfigStore.instance().store("labbook_schema", node=LabbookConfig)
    ConfigStore.instance().store("predict_schema", node=PredictConfig)
    ConfigStore.instance().store("prepare_schema", node=PrepareConfig)
    ConfigStore.instance().store("report_schema", node=ReportConfig)


def leave_out_layers(network: NetworkConfig) -> NetworkConfig:
    """The network without the rows that `network.leave_out` names; the key stays as a record of it.

    The next layer reads what the removed one read: both towers where that was the exchange, and across the groups
    that it saw together. Whatever followed the removed layer (pooling, norm, dropout) goes with it.

    Raises: ValueError for a layer that the table does not have, and for the last one, which holds the classes.
    """
    layers = dict(network.layers)
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

    Raises: ValueError if a required key was not given, or a layer cannot be left out.
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
    return freeze(make_absolute(replace(config, network=leave_out_layers(config.network))))
