"""Configurations as the commands compose them."""

import hydra

from helpers.paths import ROOT
from twotower.config import Config, register_schemas, resolve


def compose(*overrides: str) -> Config:
    register_schemas()
    with hydra.initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        return resolve(hydra.compose("config", list(overrides)))
