"""Predicts the classes of photographs: the five likeliest of each, printed and drawn.

python launch/predict.py RUN cat.jpg [DIR ...] [crops=ten] [output=predict.png]
python launch/predict.py weights=FILE [network=caffenet] cat.jpg
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf

from twotower.command_line.arguments import name_first, name_paths, quote_paths, read_arguments, split_paths
from twotower.command_line.start import start
from twotower.config import PredictConfig, leave_out_layers, register_schemas
from twotower.data.photographs import list_photographs
from twotower.evaluation.predict import (
    Prediction,
    open_trained,
    predict_photographs,
)
from twotower.figures.predicted import MOST_DRAWN, write_predictions

register_schemas()


def _print(predictions: list[Prediction], names: list[str]) -> None:
    widest = max((len(names[place]) for one in predictions for place in one.classes), default=0)
    for one in predictions:
        print(one.file)
        for place, probability in zip(one.classes, one.probabilities, strict=True):
            print(f"  {names[place]:<{widest}}  {100 * probability:5.1f} %")


@hydra.main(version_base="1.3", config_path="../conf", config_name="predict")
def main(composed: Any) -> None:
    if composed.network is None:
        composed.input = None  # the input follows from a network
    settings = OmegaConf.to_object(composed)
    assert isinstance(settings, PredictConfig)
    try:
        if settings.network is not None:
            settings = replace(settings, network=leave_out_layers(settings.network))
        default = "predict.png" if settings.run is None else str(Path(settings.run) / "figures" / "predict.png")
        output = Path(settings.output or default)
        if output.suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"output={output} must end in .png, .svg or .pdf.")
        paths = list_photographs(settings.photographs)
        network = open_trained(settings)
        predictions, problems = predict_photographs(paths, network, settings.crops)
        _print(predictions, network.names)
        if predictions:
            drawing, table = write_predictions(predictions, network, output)
            drawn = f" (of the first {MOST_DRAWN})" if len(predictions) > MOST_DRAWN else ""
            print(f"drawn: {drawing}{drawn}, and beside it {table.name}")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit("stopped") from None
    if problems:
        raise SystemExit("\n".join(f"error: {problem}" for problem in problems))


def to_overrides(arguments: list[str]) -> list[str]:
    """Paths without a key are photographs, but for a run's folder that comes first."""
    paths, others = split_paths(arguments, PredictConfig)
    is_given = any(other.startswith(("run=", "weights=")) for other in others)
    if paths and not is_given and (Path(paths[0]) / "config.yaml").exists():
        arguments = name_first(arguments, PredictConfig, "run")
    arguments = name_paths(arguments, PredictConfig, several="photographs")
    return quote_paths(arguments, ("photographs", "run", "weights", "mean", "checkpoint", "output"))


if __name__ == "__main__":
    sys.argv[1:] = read_arguments(to_overrides, sys.argv[1:])
    start(main, "predict")
