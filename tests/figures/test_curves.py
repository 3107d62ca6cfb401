"""Curves: training by step, validation as points, from 0 on, so that the shortest run shows what it did."""

import csv
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from helpers.fake_runs import fake_config
from twotower.config import Config
from twotower.figures import colour_selectivity as colour
from twotower.figures import curves, figure3
from twotower.figures.colour_selectivity import Course, write_colour
from twotower.figures.curves import choose_rate_ticks, write_curves
from twotower.runs.history import Epoch, History, TrainWindow

STEPS_PER_EPOCH = 20


@pytest.fixture(scope="module")
def config() -> Config:
    return fake_config(Path("nowhere"))


def history(
    config: Config, steps: int, rate: Callable[[int], float] = lambda step: 0.01, level: float = 80
) -> History:
    """A run of so many steps, with a line every 5, and a validation after each epoch and at the end."""
    windows, epochs = [], []
    for step in range(5, steps + 1, 5):
        train = {"loss": 2.5 - step / 100, "top1_error": level - step / 10, "top5_error": level / 2}
        windows.append(TrainWindow(step, step / STEPS_PER_EPOCH, 5, train, rate(step)))
        if step % STEPS_PER_EPOCH == 0 or step == steps:
            validation = {key: value - 1 for key, value in train.items()}
            epochs.append(Epoch(step / STEPS_PER_EPOCH, train, validation, rate(step)))
    return History(Path(f"runs/{level:g}"), config, epochs, True, windows)


def drawn(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, histories: Sequence[History], groups: Sequence[str] | None = None
) -> Figure:
    """The figure as matplotlib lays it out."""
    figures: list[Figure] = []
    monkeypatch.setattr(curves, "save", lambda figure, path: figures.append(figure))
    write_curves(histories, tmp_path / "curves.png", groups)
    figures[0].canvas.draw()
    return figures[0]


def points_of(line: Any) -> list[tuple[float, float]]:
    return list(zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True))


@pytest.mark.parametrize("steps", [5, 20, 60])
def test_every_step_that_was_noted_is_drawn(
    steps: int, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs have a quarter of an epoch, one and three; every point lies within the axes and can be seen."""
    run = history(config, steps)
    figure = drawn(monkeypatch, tmp_path, [run])
    for axes, key in zip(figure.axes[:3], ("loss", "top1_error", "top5_error"), strict=True):
        train, validation = axes.lines
        assert points_of(train) == [(window.epoch, window.train[key]) for window in run.windows]
        assert points_of(validation) == [(epoch.epoch, epoch.validation[key]) for epoch in run.epochs]
        assert validation.get_marker() == "o"
        assert train.get_marker() == "o"
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        assert left == 0
        for line in (train, validation):
            assert all(left < x < right and bottom < y < top for x, y in points_of(line))
    rate = figure.axes[3]
    assert points_of(rate.lines[0]) == [(0.0, 0.01)] + [(window.epoch, 0.01) for window in run.windows]
    assert rate.get_ylim()[0] < 0.01 < rate.get_ylim()[1]
    assert [label.get_text() for label in rate.get_yticklabels()] == ["0.01"], "never empty"


@pytest.mark.parametrize(
    "rates",
    [
        [0.004, 0.003, 0.002],
        [0.01, 0.001, 0.0001, 0.00001],
        [0.005, 0.0005],
        [0.01, 0.0099],
        [0.01 * 0.9**i for i in range(40)],
        [0.01, 0.0],
        [0.0],
    ],
)
def test_the_marks_of_the_rates_do_not_collide(
    rates: list[float], config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = history(config, 5 * len(rates), lambda step: rates[step // 5 - 1])
    axes = drawn(monkeypatch, tmp_path, [run]).axes[3]
    labels = [label for label in axes.get_yticklabels(which="both") if label.get_text()]
    inside = [label for label in labels if axes.bbox.y0 - 1 <= label.get_window_extent().y0 + 5 <= axes.bbox.y1 + 10]
    assert len(inside) >= 1
    boxes = sorted((label.get_window_extent() for label in inside), key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 for lower, upper in pairwise(boxes))
    if min(rates) > 0 and max(rates) / min(rates) > 1.5:
        assert {f"{min(rates):.3g}", f"{max(rates):.3g}"} <= {label.get_text() for label in inside}


def test_marks_are_apart_and_hold_both_ends() -> None:
    for rates in ([0.002, 0.003, 0.004], [1e-5, 2e-5, 1e-2], [0.7**i for i in range(60)]):
        ticks = choose_rate_ticks(rates)
        assert (ticks[0], ticks[-1]) == (min(rates), max(rates))
        span = math.log(max(rates) / min(rates))
        assert all(math.log(upper / lower) >= span / 6 for lower, upper in pairwise(ticks))
        assert len(ticks) <= 7


def test_layers_with_rates_of_their_own_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = fake_config(Path("nowhere"), "network.layers.fc8.rate=10")
    assert drawn(monkeypatch, tmp_path, [history(own, 10)]).axes[3].get_ylabel() == "highest\nlearning rate"


def test_runs_of_one_name_are_one_line(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of both at the steps and after the epochs that both have; one of them was stopped within an epoch."""
    runs = [history(config, 60, level=80), history(config, 30, level=60)]
    axes = drawn(monkeypatch, tmp_path, runs, ["a", "a"]).axes[1]
    train, validation = axes.lines
    assert points_of(train) == [(step / 20, 70 - step / 10) for step in range(5, 31, 5)]
    assert points_of(validation) == [(1.0, 67.0)], "1.5 epochs of one run are no epoch of the other"


def test_a_long_run_is_thinned_to_means(config: Config) -> None:
    long = history(config, 20_000)
    (points,) = [curves._mean_windows([long])]
    assert len(points) <= curves.MAX_POINTS
    assert points[-1].epoch == long.windows[-1].epoch
    sums = [sum(window.num_steps * window.train["loss"] for window in part) for part in (points, long.windows)]
    assert sums[0] == pytest.approx(sums[1]), "no step is lost"


def test_the_tables_hold_epochs_and_steps(config: Config, tmp_path: Path) -> None:
    paths = write_curves([history(config, 30)], tmp_path / "curves.png")
    assert [path.name for path in paths] == ["curves.png", "curves.csv", "curves-steps.csv"]
    rows = list(csv.DictReader(paths[1].open()))
    assert [row["epoch"] for row in rows] == ["1", "1.5"]
    steps = list(csv.DictReader(paths[2].open()))
    assert [(row["step"], row["epoch"]) for row in steps][:2] == [("5", "0.25"), ("10", "0.5")]
    assert len(steps) == 6


def test_one_measurement_of_colour_can_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    figures: list[Figure] = []
    for module in (figure3, colour):
        monkeypatch.setattr(module, "save", lambda figure, path: figures.append(figure))
    kernels = [torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    measured = figure3.Kernels(Path("run"), 22, "conv1", kernels, [(22, [0.6, 0.7])])
    figure3.write_figure3(measured, tmp_path / "figure3.png")
    write_colour([Course("none", 0, measured)], tmp_path / "colour.png")
    for figure, place in ((figures[0], -1), (figures[1], 0)):
        axes = figure.axes[place]
        points = [line for line in axes.lines if list(line.get_xdata()) == [22]]
        assert [line.get_marker() for line in points] == ["o", "o"], "a line of one point is nothing"
        assert axes.get_xlim()[0] == 0
        assert axes.get_xlim()[1] > 22
