"""Figures of the paper from one's own runs, and figures about a run.

python launch/figure.py figure3 RUN                                   # kernels of both towers
python launch/figure.py figure4 RUN ['images=[0,17]'] ['queries=[3]'] [seed=0]
python launch/figure.py activations RUN [layer=conv1] [image=0]
python launch/figure.py confusion RUN
python launch/figure.py figure1 A B ... [level=25]
python launch/figure.py curves A B ...

RUN, A and B are folders of runs, or patterns of such; with keys they are run=RUN and 'runs=[A,B]'. What is drawn of
one run goes to RUN/figures, and to W&B and TensorBoard where the run has them; of several to the current folder.
output=FILE.png (.svg, .pdf) says where else.
"""

import glob
from collections.abc import Callable
from pathlib import Path

from twotower.command_line.arguments import name_first, name_paths, quote_paths
from twotower.command_line.command import command
from twotower.config import EvaluateConfig, FigureConfig
from twotower.config.stored import read_config
from twotower.evaluation.evaluate import Subject, open_subject, predictions_of
from twotower.figures.activations import describe, make_activations, write_activations
from twotower.figures.confusion import confusion_of, write_confusion
from twotower.figures.curves import write_curves
from twotower.figures.figure1 import NAMES, curves_of, summarise, write_figure1
from twotower.figures.figure1 import describe as describe_curves
from twotower.figures.figure3 import read_kernels, write_figure3
from twotower.figures.figure3 import summarise as summarise_kernels
from twotower.figures.figure4 import Precision, make_figure4, write_figure4
from twotower.ground.words import counted
from twotower.runs.failure import has_note
from twotower.runs.history import read_history
from twotower.runs.mirrors.open_mirrors import log_figures, log_figures_of_several

SUFFIXES = (".png", ".svg", ".pdf")
FOLDER = "figures"  # folder within a run

Writer = Callable[[Path], list[Path]]  # writes the drawing and its data, and says what it wrote


def _figure1(settings: FigureConfig, runs: list[Path]) -> Writer:
    histories = [read_history(run) for run in runs]
    curves = curves_of(histories)
    found = summarise(curves, settings.level)
    for history in histories:
        if not history.finished:
            print(f"not finished, drawn as far as it is: {history.run_dir}")
    for line in describe_curves(curves, settings.level):
        print(line)
    for activation, ratio in found["ratios_to_relu"].items():
        span = f"{ratio['lowest']:.2f} to {ratio['highest']:.2f} over pairs of runs"
        paper = "; the paper: about 6" if activation == "tanh" else ""
        print(f"{NAMES[activation]} takes {ratio['mean']:.2f} times as many epochs as ReLU ({span}){paper}")
    return lambda path: write_figure1(curves, settings.level, path)


def _curves(settings: FigureConfig, runs: list[Path]) -> Writer:
    histories = [read_history(run) for run in runs]
    return lambda path: write_curves(histories, path)


def _figure3(settings: FigureConfig, run: Path) -> Writer:
    kernels = read_kernels(run)
    found = summarise_kernels(kernels)
    for tower, mean in enumerate(found["mean_selectivity"]):
        print(f"tower {tower}: mean colour selectivity {mean:.3f} (0 grey, 0.667 random, 1 colour alone)")
    if "more_colour" in found:
        more = found["more_colour"]
        print(f"a kernel of tower {more['tower']} sees more colour than one of the other with probability ", end="")
        print(f"{more['probability']:.2f} (0.50: the towers do not differ; p = {more['p_value']:.2f})")
    return lambda path: write_figure3(kernels, path)


def _subject(settings: FigureConfig, run: Path) -> Subject:
    return open_subject(str(run), EvaluateConfig(run=str(run), data_root=settings.data_root))


def _figure4(settings: FigureConfig, run: Path) -> Writer:
    figure = make_figure4(_subject(settings, run), settings.images, settings.queries, settings.seed)

    def say(whose: str, one: Precision) -> None:
        print(
            f"{whose}: {one.at_1:.1f} % of the nearest and {one.at_k:.1f} % of the {one.k} nearest training ", end=""
        )
        print(f"images have the query's class (by chance {one.by_chance:.1f} %)")

    print(f"nearest in {figure.layer}, {figure.dimensions} units")
    say(counted(figure.shown.num_queries, "query", "queries") + " shown", figure.shown)
    say(counted(figure.validation.num_queries, "validation image"), figure.validation)
    return lambda path: write_figure4(figure, path)


def _activations(settings: FigureConfig, run: Path) -> Writer:
    found = make_activations(_subject(settings, run), settings.layer, settings.image)
    print(f"{found.layer} for {found.image.name} ({found.class_name})")
    for line in describe(found):
        print(line)
    return lambda path: write_activations(found, path)


def _confusion(settings: FigureConfig, run: Path) -> Writer:
    subject = _subject(settings, run)
    centre = predictions_of(subject, EvaluateConfig(run=str(run)))["centre"]
    found = confusion_of(centre.log_probabilities, centre.labels, subject.dataset.classes)
    for one, other, count, share in found.worst_pairs()[:5]:
        print(f"{one} taken for {other}: {counted(count, 'image')}, {share:.0f} % of the class")
    title = f"{run.resolve().name}, {subject.checkpoint.name}, centre crop"
    return lambda path: write_confusion(found, title, path)


OF_ONE_RUN: dict[str, Callable[[FigureConfig, Path], Writer]] = {
    "figure3": _figure3,
    "figure4": _figure4,
    "activations": _activations,
    "confusion": _confusion,
}
OF_RUNS: dict[str, Callable[[FigureConfig, list[Path]], Writer]] = {"figure1": _figure1, "curves": _curves}
FIGURES = (*OF_RUNS, *OF_ONE_RUN)
OPTIONS = {  # options that not every figure has
    "level": ("figure1",),
    "images": ("figure4",),
    "queries": ("figure4",),
    "seed": ("figure4",),
    "layer": ("activations",),
    "image": ("activations",),
    "data_root": ("figure4", "activations", "confusion"),
}
PATHS = ("run", "runs", "output", "data_root", "image")


def _matching(key: str, pattern: str) -> list[Path]:
    """The folder itself, or the runs that the pattern matches. Raises: ValueError if there are none."""
    if Path(pattern).is_dir():
        return [Path(pattern)]
    # Jobs of a sweep that never began have folders as well, with a note and no config.yaml.
    matching = [Path(name) for name in sorted(glob.glob(pattern)) if (Path(name) / "config.yaml").exists()]
    if not matching:
        raise ValueError(f"{key}={pattern} matches no run; give the folder of a run, or a pattern of such.")
    return matching


def _folders(settings: FigureConfig) -> list[Path]:
    """The runs that are given by run= or runs=. Raises: ValueError for both or none, or a pattern without a match."""
    if settings.run is not None and settings.runs:
        raise ValueError("give run=RUN or 'runs=[A,B,...]', not both.")
    if settings.run is not None:
        return _matching("run", settings.run)
    if not settings.runs:
        usual = "RUN" if settings.figure in OF_ONE_RUN else "A B ..."
        raise ValueError(f"give the runs to draw: python launch/figure.py {settings.figure} {usual}")
    folders = [folder for pattern in settings.runs for folder in _matching("runs", pattern)]
    # A pattern that the shell has expanded brings along the jobs that never began.
    return [one for one in folders if (one / "config.yaml").exists() or not has_note(one)] or folders


def _check(settings: FigureConfig) -> None:
    """Raises: ValueError for a figure, an option or a file that is not possible."""
    if settings.figure not in FIGURES:
        raise ValueError(f"{settings.figure} is not known; choose one of {', '.join(FIGURES)}.")
    for option, figures in OPTIONS.items():
        if settings.figure not in figures and getattr(settings, option) != getattr(FigureConfig(), option):
            raise ValueError(f"{option}= is for {', '.join(figures)}; {settings.figure} has no such option.")
    if settings.output is not None:
        output = Path(settings.output)
        if output.suffix not in SUFFIXES or not output.absolute().parent.is_dir():
            raise ValueError(f"output={output} must end in one of {', '.join(SUFFIXES)}, in a folder that exists.")


def _name(settings: FigureConfig) -> str:
    """The stem of a figure's file; maps of several layers and images do not overwrite each other."""
    chosen = [Path(text).stem for text in (settings.layer, settings.image) if text is not None]
    return "-".join([settings.figure, *chosen])


def _place_in(run: Path, figure: str) -> Path:
    """RUN/figures/NAME.png. Raises: ValueError if the folder cannot be made."""
    folder = run / FOLDER
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be made ({error.strerror}); give output=FILE.png in another folder."
        ) from error
    return folder / f"{figure}.png"


def _draw(settings: FigureConfig) -> None:
    _check(settings)
    folders = _folders(settings)
    if settings.figure in OF_RUNS:
        write, place = OF_RUNS[settings.figure](settings, folders), Path(f"{settings.figure}.png")
    elif len(folders) == 1:
        if not (folders[0] / "config.yaml").exists() and any(folders[0].glob("*/config.yaml")):
            raise ValueError(f"{folders[0]} is a sweep, and {settings.figure} draws one run; give one of its runs.")
        # The folder is made when there is something to put into it.
        write = OF_ONE_RUN[settings.figure](settings, folders[0])
        place = _place_in(folders[0], _name(settings)) if settings.output is None else Path()
    else:
        raise ValueError(
            f"{settings.figure} draws one run, and {len(folders)} were given, the first two {folders[0]} and "
            f"{folders[1]}; give one."
        )
    written = write(Path(settings.output) if settings.output is not None else place)
    print(f"written: {', '.join(str(path) for path in written)}")
    if (folders[0] / "config.yaml").exists():  # figure3 also draws bare checkpoints
        run, drawn = folders[0].resolve(), {settings.figure: written[0]}
        if settings.figure in OF_RUNS:
            log_figures_of_several(run, read_config(run), run, drawn)  # the first one stands for all
        else:
            log_figures(run, read_config(run), drawn)


def to_overrides(arguments: list[str]) -> list[str]:
    """The first argument without a key is the figure's name, and folders after it are `run` or `runs`.

    Raises: ValueError.
    """
    named = name_paths(name_first(arguments, FigureConfig, "figure"), FigureConfig, one="run", several="runs")
    return quote_paths(named, PATHS)


@command(
    "figure",
    to_overrides=to_overrides,
    needs={"figure": f"give the figure to draw, one of {', '.join(FIGURES)}: python launch/figure.py figure3 RUN"},
)
def main(settings: FigureConfig) -> None:
    _draw(settings)


if __name__ == "__main__":
    main()
