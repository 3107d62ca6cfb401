"""Predicts the classes of photographs: the five likeliest of each, printed and drawn.

python launch/predict.py RUN cat.jpg [DIR ...] [crops=ten] [output=predict.png]
python launch/predict.py weights=FILE [network=caffenet] cat.jpg
"""

from pathlib import Path

from twotower.command_line.arguments import name_first, name_paths, quote_paths, split_paths
from twotower.command_line.command import command
from twotower.config import PredictConfig
from twotower.data.photographs import list_photographs
from twotower.evaluation.load_network import open_trained
from twotower.evaluation.predict import Prediction, predict_photographs
from twotower.figures.predicted import MOST_DRAWN, write_predictions
from twotower.ground.screen import show
from twotower.ground.wording import on_lines


def _print(predictions: list[Prediction], names: list[str]) -> None:
    widest = max((len(names[index]) for prediction in predictions for index in prediction.classes), default=0)
    for prediction in predictions:
        show(prediction.file)
        for index, probability in zip(prediction.classes, prediction.probabilities, strict=True):
            show(f"  {names[index]:<{widest}}  {100 * probability:5.1f} %")


def to_overrides(arguments: list[str]) -> list[str]:
    """Paths without a key are photographs, but for a run's folder that comes first."""
    paths, others = split_paths(arguments, PredictConfig)
    is_given = any(other.startswith(("run=", "weights=")) for other in others)
    if paths and not is_given and (Path(paths[0]) / "config.yaml").exists():
        arguments = name_first(arguments, PredictConfig, "run")
    arguments = name_paths(arguments, PredictConfig, several="photographs")
    return quote_paths(arguments, ("photographs", "run", "weights", "mean", "checkpoint", "output"))


@command("predict", to_overrides=to_overrides)
def main(settings: PredictConfig) -> None:
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
        show(f"drawn: {drawing}{drawn}, and beside it {table.name}")
    if problems:
        raise SystemExit("\n".join(f"error: {on_lines(str(problem))}" for problem in problems))


if __name__ == "__main__":
    main()
