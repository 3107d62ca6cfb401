"""Figures of the paper from one's own runs.

python launch/figure.py figure1 runs=[RUN_A,RUN_B,...] [output=figure1.png] [level=25]
python launch/figure.py figure3 runs=[RUN] [output=figure3.png]
python launch/figure.py curves runs=[RUN_A,RUN_B,...] [output=curves.png]
python launch/figure.py confusion runs=[RUN] [output=confusion.png]
"""

import glob
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf

from twotower.config import EvaluateConfig, FigureConfig, register_schemas
from twotower.confusion import confusion_of, write_confusion
from twotower.curves import write_curves
from twotower.evaluate import open_subject, predictions_of
from twotower.figure1 import NAMES, curves_of, summarise, write_figure1
from twotower.figure3 import read_kernels, write_figure3
from twotower.figure3 import summarise as summarise_kernels
from twotower.history import read_history

register_schemas()
SUFFIXES = (".png", ".svg", ".pdf")


def _folders(patterns: list[str]) -> list[Path]:
    """What the patterns match. Raises: ValueError for one that matches nothing."""
    found: list[Path] = []
    for pattern in patterns:
        matching = [Path(name) for name in sorted(glob.glob(pattern)) if Path(name).is_dir()]
        if not matching:
            raise ValueError(f"runs=[{pattern}] matches no folder; give folders of runs.")
        found += matching
    if not found:
        raise ValueError("give the runs to draw: runs=[RUN_A,RUN_B,...].")
    return found


def _figure1(settings: FigureConfig, output: Path) -> None:
    histories = [read_history(folder) for folder in _folders(settings.runs)]
    curves = curves_of(histories)
    found = summarise(curves, settings.level)
    for history in histories:
        if not history.finished:
            print(f"not finished, drawn as far as it is: {history.run_dir}")
    for activation, one in found["activations"].items():
        epochs = ", ".join("never" if epoch is None else f"{epoch:.2f}" for epoch in one["epochs"])
        print(f"{NAMES[activation]}, rate {one['learning_rate']:g}: {settings.level:g} % after {epochs} epochs")
    for activation, ratio in found["ratios_to_relu"].items():
        span = f"{ratio['lowest']:.2f} to {ratio['highest']:.2f} over pairs of runs"
        paper = "; the paper: about 6" if activation == "tanh" else ""
        print(f"{NAMES[activation]} takes {ratio['mean']:.2f} times as many epochs as ReLU ({span}){paper}")
    written = write_figure1(curves, settings.level, output)
    print(f"written: {', '.join(str(path) for path in written)}")


def _figure3(settings: FigureConfig, output: Path) -> None:
    folders = _folders(settings.runs)
    if len(folders) > 1:
        raise ValueError(f"figure3 draws one run, and runs= has {len(folders)}; give one.")
    kernels = read_kernels(folders[0])
    found = summarise_kernels(kernels)
    for tower, mean in enumerate(found["mean_selectivity"]):
        print(f"tower {tower}: mean colour selectivity {mean:.3f} (0 grey, 0.667 random, 1 colour alone)")
    if "more_colour" in found:
        more = found["more_colour"]
        print(f"a kernel of tower {more['tower']} sees more colour than one of the other with probability ", end="")
        print(f"{more['probability']:.2f} (0.50: the towers do not differ)")
    print(f"written: {', '.join(str(path) for path in write_figure3(kernels, output))}")


def _curves(settings: FigureConfig, output: Path) -> None:
    histories = [read_history(folder) for folder in _folders(settings.runs)]
    print(f"written: {', '.join(str(path) for path in write_curves(histories, output))}")


def _confusion(settings: FigureConfig, output: Path) -> None:
    folders = _folders(settings.runs)
    if len(folders) > 1:
        raise ValueError(f"confusion draws one run, and runs= has {len(folders)}; give one.")
    wanted = EvaluateConfig(run=str(folders[0]))
    subject = open_subject(str(folders[0]), wanted)
    centre = predictions_of(subject, wanted)["centre"]
    found = confusion_of(centre.log_probabilities, centre.labels, subject.dataset.classes)
    for one, other, count, share in found.worst_pairs()[:5]:
        print(f"{one} taken for {other}: {count} images, {share:.0f} % of the class")
    written = write_confusion(found, f"{folders[0].name}, {subject.checkpoint.name}, centre crop", output)
    print(f"written: {', '.join(str(path) for path in written)}")


FIGURES = {"figure1": _figure1, "figure3": _figure3, "curves": _curves, "confusion": _confusion}


@hydra.main(version_base="1.3", config_path="../conf", config_name="figure")
def main(composed: Any) -> None:
    if OmegaConf.is_missing(composed, "figure"):
        raise SystemExit(
            f"error: give the figure to draw, one of {', '.join(FIGURES)}: python launch/figure.py figure1"
        )
    settings = OmegaConf.to_object(composed)
    assert isinstance(settings, FigureConfig)
    try:
        if settings.figure not in FIGURES:
            raise ValueError(f"{settings.figure} is not known; choose one of {', '.join(FIGURES)}.")
        output = Path(settings.output or f"{settings.figure}.png")
        if output.suffix not in SUFFIXES or not output.absolute().parent.is_dir():
            raise ValueError(f"output={output} must end in one of {', '.join(SUFFIXES)}, in a folder that exists.")
        FIGURES[settings.figure](settings, output)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    # The figure's name comes first, without a key.
    if len(sys.argv) > 1 and "=" not in sys.argv[1] and not sys.argv[1].startswith("-"):
        sys.argv[1] = f"figure={sys.argv[1]}"
    main()
