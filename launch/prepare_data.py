"""Makes a prepared data set: every image decoded once, brought to 256 x 256, with mean image and colour PCA.

python launch/prepare_data.py source=ilsvrc2012 source.root=DIR output=datasets/ilsvrc2012
python launch/prepare_data.py source=imagenette download=true output=datasets/imagenette
python launch/prepare_data.py output=datasets/ilsvrc2012 verify=true
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf

from twotower.command_line.arguments import quote_paths
from twotower.command_line.start import start
from twotower.config import PrepareConfig, register_schemas
from twotower.data.preparing.build_set import build
from twotower.data.preparing.verify_set import verify
from twotower.data.sources.download import download
from twotower.training.run import catch_stops

register_schemas()


@hydra.main(version_base="1.3", config_path="../conf", config_name="prepare_data")
def main(composed: Any) -> None:
    if OmegaConf.is_missing(composed, "output"):
        raise SystemExit(
            "error: say what to make: python launch/prepare_data.py source=ilsvrc2012 source.root=DIR output=DIR"
        )
    config = OmegaConf.to_object(composed)
    assert isinstance(config, PrepareConfig)
    catch_stops()
    try:
        if config.verify:
            verify(Path(config.output), config.workers, print)
            return
        if config.download:
            config = replace(config, source=download(config.source, print))
        build(config, print)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from here") from None


def to_overrides(arguments: list[str]) -> list[str]:
    """Paths may have commas in them."""
    return quote_paths(arguments, ("source.root", "output"))


if __name__ == "__main__":
    sys.argv[1:] = to_overrides(sys.argv[1:])
    start(main, "prepare_data")
