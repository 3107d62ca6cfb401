"""Figures of the paper from one's own runs, and figures about a run.

python launch/figure.py figure3 RUN                                   # kernels of both towers
python launch/figure.py figure4 RUN ['images=[0,17]'] ['queries=[3]'] [seed=0]
python launch/figure.py activations RUN [layer=conv1] [image=0]
python launch/figure.py confusion RUN
python launch/figure.py towers RUN                                    # what each class loses without one of them
python launch/figure.py figure1 A B ... [level=25]
python launch/figure.py colour A B ...                                # do the towers part? by folder of runs
python launch/figure.py curves A B ...

RUN, A and B are folders of runs, or patterns of such; with keys they are run=RUN and 'runs=[A,B]'. A figure of one
run goes to RUN/figures, and to W&B and TensorBoard where the run has them; a figure of several to the current folder.
output=FILE.png (.svg, .pdf) names another file.
"""

from twotower.command_line.arguments import name_first, name_paths, quote_paths
from twotower.command_line.command import command
from twotower.config import FigureConfig
from twotower.figures.draw_figure import FIGURES, draw_figure

PATHS = ("run", "runs", "output", "data_root", "image")


def to_overrides(arguments: list[str]) -> list[str]:
    """The first argument without a key is the figure's name, and folders after it are `run` or `runs`.

    Raises: ValueError.
    """
    named = name_paths(name_first(arguments, FigureConfig, "figure"), FigureConfig, single="run", several="runs")
    return quote_paths(named, PATHS)


@command(
    "figure",
    to_overrides=to_overrides,
    needs={"figure": f"give the figure to draw, one of {', '.join(FIGURES)}: python launch/figure.py figure3 RUN"},
)
def main(settings: FigureConfig) -> None:
    draw_figure(settings, print)


if __name__ == "__main__":
    main()
