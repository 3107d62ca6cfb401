"""The W&B dashboard of one's runs: sweep, training, towers, exchange, pictures, and the differences of 2012.

python launch/dashboard.py [project=NAME] [entity=NAME] [group=SWEEP] [network=NAME] [push=true]
"""

from dataclasses import replace
from typing import Any

import hydra
from omegaconf import OmegaConf

from twotower.command_line.start import start
from twotower.config import DashboardConfig, leave_out_layers, register_schemas
from twotower.reports.dashboard import build, describe, push, validate

register_schemas()


@hydra.main(version_base="1.3", config_path="../conf", config_name="dashboard")
def main(composed: Any) -> None:
    settings = OmegaConf.to_object(composed)
    assert isinstance(settings, DashboardConfig)
    try:
        settings = replace(settings, network=leave_out_layers(settings.network))
        workspace = build(settings)
        validate(workspace)
        print("\n".join(describe(workspace)))
        if settings.push:
            print(f"saved: {push(workspace)}")
        else:
            print("valid, not saved; push=true sends it to W&B")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    start(main, "dashboard")
