"""The work of launch/figure.py: finds the runs, draws and writes the figure, and hands it to the mirrors."""

import glob
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from twotower.config import Config, EvaluateConfig, FigureConfig
from twotower.config.stored_config import read_config
from twotower.evaluation.evaluate import make_predictions
from twotower.evaluation.subject import Subject, open_subject
from twotower.evaluation.without_tower import check_separable, predict_without
from twotower.figures.colour_selectivity import Course
from twotower.figures.confusion import count_confusion
from twotower.figures.figure3 import read_kernels
from twotower.figures.photographs import read_class_names
from twotower.figures.prepare_figure import (
    PreparedFigure,
    prepare_activations,
    prepare_colour,
    prepare_confusion,
    prepare_curves,
    prepare_figure1,
    prepare_figure3,
    prepare_figure4,
    prepare_towers,
)
from twotower.figures.tower_costs import TowerCosts
from twotower.runs.failure import has_note
from twotower.runs.history import History, read_history
from twotower.runs.mirrors.open_mirrors import log_figures, log_figures_of_several
from twotower.runs.variants import labels_of, select_for_comparison

SUFFIXES = (".png", ".svg", ".pdf")
FOLDER = "figures"  # folder within a run


def _open(settings: FigureConfig, run: Path) -> Subject:
    return open_subject(str(run), EvaluateConfig(run=str(run), data_root=settings.data_root))


def _read_histories(runs: list[Path]) -> list[History]:
    return [read_history(run) for run in runs]


def _prepare_confusion(settings: FigureConfig, run: Path) -> PreparedFigure:
    subject = _open(settings, run)
    centre = make_predictions(subject, EvaluateConfig(run=str(run)))["centre"]
    title = f"{run.resolve().name}, {subject.checkpoint.name}, centre crop"
    return prepare_confusion(title, centre.log_probabilities, centre.labels, read_class_names(subject))


def _prepare_towers(settings: FigureConfig, run: Path) -> PreparedFigure:
    subject, evaluation = _open(settings, run), EvaluateConfig(run=str(run))
    check_separable(subject.config.network)
    both = make_predictions(subject, evaluation)["centre"]
    each = (both, *(predict_without(subject, evaluation, tower) for tower in range(2)))
    names = read_class_names(subject)
    counts = [count_confusion(one.log_probabilities, one.labels, names) for one in each]
    title = f"{run.resolve().name}, {subject.checkpoint.name}, centre crop"
    return prepare_towers(title, TowerCosts(counts[0], (counts[1], counts[2])))


def _prepare_colour(runs: list[Path]) -> PreparedFigure:
    """Runs of one folder are a group, as far as they have the same settings.

    Raises: ValueError for a run of one tower, or without a checkpoint.
    """
    folders: dict[Path, dict[Path, Config]] = {}
    kernels = {run: read_kernels(run) for run in runs}
    for run in runs:
        config = read_config(run)
        if config.network.towers != 2:
            raise ValueError(f"{run} has one tower, and colour compares two; leave it out.")
        # Of the runs that began with other runs' weights, each seed has its own.
        weights = replace(config.initial_weights, path=None)
        folders.setdefault(run.resolve().parent, {})[run] = replace(config, initial_weights=weights)
    courses = []
    for folder, configs in folders.items():
        unlike = {str(select_for_comparison(config)): config for config in configs.values()}
        base = next(iter(unlike.values()))
        labels = dict(zip(unlike, labels_of(list(unlike.values()), base), strict=True))
        for run, config in configs.items():
            label = labels[str(select_for_comparison(config))]
            group = folder.name if len(unlike) == 1 else f"{folder.name}, {label}"
            courses.append(Course(group, config.seed, kernels[run]))
    return prepare_colour(courses)


OF_ONE_RUN: dict[str, Callable[[FigureConfig, Path], PreparedFigure]] = {
    "figure3": lambda settings, run: prepare_figure3(read_kernels(run)),
    "figure4": lambda settings, run: prepare_figure4(
        _open(settings, run), settings.images, settings.queries, settings.seed
    ),
    "activations": lambda settings, run: prepare_activations(_open(settings, run), settings.layer, settings.image),
    "confusion": _prepare_confusion,
    "towers": _prepare_towers,
}
OF_RUNS: dict[str, Callable[[FigureConfig, list[Path]], PreparedFigure]] = {
    "figure1": lambda settings, runs: prepare_figure1(_read_histories(runs), settings.level),
    "colour": lambda settings, runs: _prepare_colour(runs),
    "curves": lambda settings, runs: prepare_curves(_read_histories(runs)),
}
FIGURES = (*OF_RUNS, *OF_ONE_RUN)
OPTIONS = {  # option -> figures that have it, where not every figure has
    "level": ("figure1",),
    "images": ("figure4",),
    "queries": ("figure4",),
    "seed": ("figure4",),
    "layer": ("activations",),
    "image": ("activations",),
    "data_root": ("figure4", "activations", "confusion", "towers"),
}


def draw_figure(settings: FigureConfig, say: Callable[[str], None]) -> None:
    """Draws the figure; says its numbers and the files that it wrote.

    Raises: ValueError for settings that fit no figure, or runs that cannot be drawn; OSError for a file that cannot
    be written.
    """
    _check(settings)
    folders = _find_folders(settings)
    if settings.figure in OF_RUNS:
        figure, path = OF_RUNS[settings.figure](settings, folders), Path(f"{settings.figure}.png")
    else:
        _check_one_run(settings, folders)
        figure = OF_ONE_RUN[settings.figure](settings, folders[0])
        path = Path()
    for line in figure.lines:
        say(line)
    if settings.output is not None:
        path = Path(settings.output)
    elif settings.figure in OF_ONE_RUN:
        # The folder is made when there is something to put into it.
        path = _make_place(folders[0], _name_file(settings))
    written = figure.write(path)
    say(f"written: {', '.join(str(path) for path in written)}")
    if (folders[0] / "config.yaml").exists():  # figure3 also draws bare checkpoints
        run, drawn = folders[0].resolve(), {settings.figure: written[0]}
        if settings.figure in OF_RUNS:
            log_figures_of_several(run, read_config(run), run, drawn)  # the first run stands for all
        else:
            log_figures(run, read_config(run), drawn)


def _check(settings: FigureConfig) -> None:
    """Checks the settings. Raises: ValueError for a figure, an option or a file that is not possible."""
    if settings.figure not in FIGURES:
        raise ValueError(f"{settings.figure} is not known; choose one of {', '.join(FIGURES)}.")
    for option, figures in OPTIONS.items():
        if settings.figure not in figures and getattr(settings, option) != getattr(FigureConfig(), option):
            raise ValueError(f"{option}= is for {', '.join(figures)}; {settings.figure} has no such option.")
    if settings.output is not None:
        output = Path(settings.output)
        if output.suffix not in SUFFIXES or not output.absolute().parent.is_dir():
            raise ValueError(f"output={output} must end in one of {', '.join(SUFFIXES)}, in a folder that exists.")


def _check_one_run(settings: FigureConfig, folders: list[Path]) -> None:
    """Checks that there is one run. Raises: ValueError for several runs, or a sweep."""
    if len(folders) > 1:
        raise ValueError(
            f"{settings.figure} draws one run, and {len(folders)} were given, the first two {folders[0]} and "
            f"{folders[1]}; give one."
        )
    if not (folders[0] / "config.yaml").exists() and any(folders[0].glob("*/config.yaml")):
        raise ValueError(f"{folders[0]} is a sweep, and {settings.figure} draws one run; give one of its runs.")


def _match(key: str, pattern: str) -> list[Path]:
    """The folder itself, or the runs that the pattern matches. Raises: ValueError if there are none."""
    if Path(pattern).is_dir():
        return [Path(pattern)]
    # Jobs of a sweep that never began have folders as well, with a note and no config.yaml.
    matches = [Path(name) for name in sorted(glob.glob(pattern)) if (Path(name) / "config.yaml").exists()]
    if not matches:
        raise ValueError(f"{key}={pattern} matches no run; give the folder of a run, or a pattern of such.")
    return matches


def _find_folders(settings: FigureConfig) -> list[Path]:
    """The runs that are given by run= or runs=. Raises: ValueError for both or none, or a pattern without a match."""
    if settings.run is not None and settings.runs:
        raise ValueError("give run=RUN or 'runs=[A,B,...]', not both.")
    if settings.run is not None:
        return _match("run", settings.run)
    if not settings.runs:
        usual = "RUN" if settings.figure in OF_ONE_RUN else "A B ..."
        raise ValueError(f"give the runs to draw: python launch/figure.py {settings.figure} {usual}")
    folders = [folder for pattern in settings.runs for folder in _match("runs", pattern)]
    # A pattern that the shell has expanded brings along the jobs that never began.
    return [folder for folder in folders if (folder / "config.yaml").exists() or not has_note(folder)] or folders


def _name_file(settings: FigureConfig) -> str:
    """The stem of a figure's file; maps of several layers and images do not overwrite each other."""
    chosen = [Path(text).stem for text in (settings.layer, settings.image) if text is not None]
    return "-".join([settings.figure, *chosen])


def _make_place(run: Path, name: str) -> Path:
    """RUN/figures/NAME.png, in a folder that exists. Raises: ValueError if the folder cannot be made."""
    folder = run / FOLDER
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be made ({error.strerror}); give output=FILE.png in another folder."
        ) from error
    return folder / f"{name}.png"
