"""Features: what layers of a network make of all images of a folder, as .npy or .safetensors.

python launch/features.py RUN DIR 'layers=[conv2,fc7]' output=features
python launch/features.py RUN DIR 'layers=[conv1.sum,conv1.lrn]' tower=1 output=features format=safetensors
"""

import re
from pathlib import Path

from twotower.command_line.arguments import name_first, quote_paths
from twotower.command_line.command import command
from twotower.config import FeaturesConfig
from twotower.evaluation.extract_features import extract_features
from twotower.evaluation.image_lists import open_images
from twotower.evaluation.load_network import open_trained
from twotower.ground.screen import show
from twotower.ground.wording import counted


def _bracket(argument: str) -> str:
    """One layer as the list that Hydra is to read."""
    key, _, value = argument.partition("=")
    return f"{key}=[{value}]" if key == "layers" and value != "null" and re.fullmatch(r"[\w.]+", value) else argument


def to_overrides(arguments: list[str]) -> list[str]:
    """Of paths without a key the first is the run, unless weights are given, and the next the folder of images.

    One layer may stand without brackets.
    """
    arguments = [_bracket(argument) for argument in arguments]
    if not any(argument.startswith("weights=") for argument in arguments):
        arguments = name_first(arguments, FeaturesConfig, "run")
    arguments = name_first(arguments, FeaturesConfig, "data_root")
    return quote_paths(arguments, ("run", "weights", "mean", "checkpoint", "data_root", "output"))


@command("features", to_overrides=to_overrides)
def main(settings: FeaturesConfig) -> None:
    if settings.data_root is None or settings.output is None:
        key = "data_root=DIR" if settings.data_root is None else "output=FOLDER"
        raise ValueError(f"give {key}: python launch/features.py RUN DIR 'layers=[conv2,fc7]' output=features")
    network = open_trained(settings)
    extracted = extract_features(
        network,
        open_images(Path(settings.data_root), settings.split),
        settings.layers,
        settings.output,
        format=settings.format,
        tower=None if settings.tower == "both" else int(settings.tower),
        batch_size=settings.batch_size,
        on_error=settings.on_error,
        progress=True,
    )
    for name, shape in extracted.shapes.items():
        show(f"{name}: float32 {list(shape)}")
    show(f"written: {', '.join(str(path) for path in extracted.files)}, and beside them images.csv, features.json")
    for problem in extracted.problems:
        show(f"left out: {problem}")
    if extracted.problems:
        show(f"warning: {counted(len(extracted.problems), 'image')} could not be used and have no row")


if __name__ == "__main__":
    main()
