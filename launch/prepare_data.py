"""Makes a prepared data set: every image decoded once, brought to 256 x 256, with mean image and colour PCA.

python launch/prepare_data.py source=ilsvrc2012 source.root=DIR output=datasets/ilsvrc2012
python launch/prepare_data.py source=imagenette download=true output=datasets/imagenette
python launch/prepare_data.py output=datasets/ilsvrc2012 verify=true
"""

from dataclasses import replace
from pathlib import Path

from twotower.command_line.arguments import quote_paths
from twotower.command_line.command import command
from twotower.config import PrepareConfig
from twotower.data.preparing.build_set import build
from twotower.data.preparing.verify_set import verify
from twotower.data.sources.download import download


def to_overrides(arguments: list[str]) -> list[str]:
    """Paths may have commas in them."""
    return quote_paths(arguments, ("source.root", "output"))


@command(
    "prepare_data",
    to_overrides=to_overrides,
    needs={"output": "say what to make: python launch/prepare_data.py source=ilsvrc2012 source.root=DIR output=DIR"},
    stopped="stopped; the same command goes on from here",
)
def main(settings: PrepareConfig) -> None:
    if settings.verify:
        verify(Path(settings.output), settings.workers, print)
        return
    if settings.download:
        settings = replace(settings, source=download(settings.source, print))
    build(settings, print)


if __name__ == "__main__":
    main()
