"""Ensembles: the weighted mean, the coefficient search of 2012 step by step, and members that do not fit together."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from helpers.fake_runs import draw_images, fake_run
from helpers.paths import ROOT
from twotower.config import EvaluateConfig
from twotower.evaluation import ensemble
from twotower.evaluation.ensemble import check_members, count_mean, evaluate_ensemble, search_coefficients
from twotower.evaluation.evaluate import evaluate_run
from twotower.evaluation.subject import open_subject

pytestmark = pytest.mark.usefixtures("one_thread")


def random_members(seed: int, num_members: int = 3, num_images: int = 25, num_classes: int = 9) -> list[Tensor]:
    stream = torch.Generator().manual_seed(seed)
    draws = torch.randn(num_members, num_images, num_classes, generator=stream)
    return list((2 * draws).softmax(2))


def plain_top5_error(members: list[NDArray[np.float64]], coefficients: list[float], labels: list[int]) -> float:
    """Image by image, by sorting; without ties."""
    wrong = 0
    for image, label in enumerate(labels):
        scores = sum(c * member[image] for c, member in zip(coefficients, members, strict=True))
        wrong += label not in np.argsort(-scores)[:5]
    return wrong / len(labels)


def plain_search(members: list[NDArray[np.float64]], labels: list[int], stops: bool) -> tuple[list[float], list[int]]:
    """Value by value; returns the coefficients and which of them were visited. Without `stops`, five whole passes."""
    coefficients = [0.5 for _ in members]
    best, visited, last_improved_at = plain_top5_error(members, coefficients, labels), [], None
    for _ in range(5):
        improved_in_pass = False
        for m in range(len(members)):
            if stops and last_improved_at == m:
                return coefficients, visited
            visited.append(m)
            for k in range(21):
                trial = list(coefficients)
                trial[m] = 0.05 * k
                error = plain_top5_error(members, trial, labels)
                if error < best:
                    best, coefficients, last_improved_at, improved_in_pass = error, trial, m, True
        if stops and not improved_in_pass:
            break
    return coefficients, visited


def test_the_search_is_that_of_2012(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a search value by value: the same visits; and the result of one that does not stop."""
    visited: list[int] = []
    along = ensemble._top5_errors

    def watched(members: Any, coefficients: Any, which: int, labels: Any) -> list[float]:
        visited.append(which)
        return along(members, coefficients, which, labels)

    monkeypatch.setattr(ensemble, "_top5_errors", watched)
    lengths, moved = set(), 0
    for seed in range(12):
        members = random_members(seed)
        labels = torch.randint(9, (25,), generator=torch.Generator().manual_seed(seed))
        visited.clear()
        found = search_coefficients(members, labels)
        doubles = [member.double().numpy() for member in members]
        expected, order = plain_search(doubles, labels.tolist(), stops=True)
        assert found == pytest.approx(expected)
        assert visited[1:] == order, "the first call is for the error at the start"
        assert expected == plain_search(doubles, labels.tolist(), stops=False)[0]
        start = plain_top5_error(doubles, [0.5] * 3, labels.tolist())
        at_end = plain_top5_error(doubles, found, labels.tolist())
        assert at_end <= start
        moved += at_end < start
        lengths.add(len(order))
    assert moved >= 6, "otherwise this tests little"
    assert len(lengths) >= 3


def test_the_search_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """After five passes at most; one pass where nothing improves; equal errors are no improvement."""
    members, labels = random_members(0), torch.zeros(25, dtype=torch.int64)
    visited: list[int] = []

    def script(errors: list[float]) -> None:
        visited.clear()

        def scripted(members: Any, coefficients: Any, which: int, labels: Any) -> list[float]:
            visited.append(which)
            return [0.9, errors.pop(0) if errors else 0.9] + [0.9] * 19

        monkeypatch.setattr(ensemble, "_top5_errors", scripted)

    script([])
    assert search_coefficients(members, labels) == [0.5, 0.5, 0.5]
    assert visited == [0, 0, 1, 2]
    script([0.9, *(0.5 - 0.01 * i for i in range(100))])
    search_coefficients(members, labels)
    assert visited == [0] + [0, 1, 2] * 5
    script([0.9, 0.9, 0.4])
    assert search_coefficients(members, labels) == [0.5, 0.05, 0.5]
    assert visited == [0, 0, 1, 2, 0], "back at the second, the one that was changed last"


def test_a_mean_can_beat_each_of_its_members() -> None:
    """Each of three networks is wrong on a third of the images, a little; the others are right there, and sure."""
    labels = torch.arange(9) % 7
    members = []
    for wrong in range(3):
        member = torch.full((9, 7), 0.02)
        member[torch.arange(9), labels] = 0.88
        unsure = torch.arange(9) % 3 == wrong
        member[unsure] = 0.16
        member[unsure, labels[unsure]] = 0.04
        members.append(member)
    one = [count_mean([member], [1.0], labels) for member in members]
    whole = count_mean(members, [1 / 3] * 3, labels)
    assert [counts.top1_error for counts in one] == pytest.approx([100 / 3] * 3)
    assert [counts.top5_error for counts in one] == pytest.approx([100 / 3] * 3)
    assert (whole.top1_error, whole.top5_error) == (0, 0)
    assert whole.loss == pytest.approx(-np.log((0.88 + 0.88 + 0.04) / 3))
    assert count_mean(members, [1.0, 0.0, 0.0], labels).top1_error == pytest.approx(100 / 3)


def test_the_mean_is_of_probabilities() -> None:
    """The product would choose class 1 here, the mean chooses class 0."""
    members = [torch.tensor([[0.98, 0.02, 0.0]]), torch.tensor([[0.001, 0.5, 0.499]])]
    assert count_mean(members, [0.5, 0.5], torch.tensor([0])).top1_error == 0
    assert count_mean(members, [0.5, 0.5], torch.tensor([1])).top1_error == 100
    assert (members[0] * members[1]).argmax(1).item() == 1


def test_ties_are_those_of_single_networks() -> None:
    flat = torch.full((4, 10), 0.1)
    counts = count_mean([flat, flat], [0.5, 0.5], torch.tensor([0, 3, 5, 9]))
    assert (counts.top1_error, counts.top5_error) == (pytest.approx(90), pytest.approx(50))


@pytest.mark.parametrize("coefficients", [[1.0], [0.0, 0.0], [1.0, -0.5], [1.0, float("nan")]])
def test_coefficients_that_cannot_be_are_refused(coefficients: list[float]) -> None:
    with pytest.raises(ValueError, match="coefficients="):
        count_mean(random_members(0, 2), coefficients, torch.zeros(25, dtype=torch.int64))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs a and b of two networks, and its images."""
    root = tmp_path_factory.mktemp("runs")
    draw_images(root / "images")
    fake_run(root / "a", root / "images", seed=1)
    fake_run(root / "b", root / "images", "network=alexnet", seed=2)
    return root


def ensemble_settings(runs: Path, **changes: Any) -> EvaluateConfig:
    return EvaluateConfig(runs=[str(runs / "a"), str(runs / "b")], crops="ten", device="cpu", **changes)


def test_networks_of_two_kinds_go_together(runs: Path) -> None:
    result = evaluate_ensemble(ensemble_settings(runs))
    for member in result["members"]:
        alone = evaluate_run(EvaluateConfig(run=member["run"], crops="ten", device="cpu"))
        assert alone["ten"]["stored"]
        assert (member["top1_error"], member["loss"]) == (alone["top1_error"], alone["loss"])
    assert [member["network"] for member in result["members"]] == ["alexnet_2012", "alexnet"]
    assert result["weighted"]["searched_on_these_images"]
    assert result["weighted"]["top5_error"] <= result["equal"]["top5_error"]
    given = evaluate_ensemble(ensemble_settings(runs, coefficients=[1.0, 0.0]))
    assert given["weighted"]["top1_error"] == result["members"][0]["top1_error"]
    assert given["equal"] == result["equal"]
    assert not given["weighted"]["searched_on_these_images"]


def test_members_must_see_the_same_images(runs: Path) -> None:
    settings = ensemble_settings(runs)
    first, second = (open_subject(run, settings) for run in settings.runs)
    check_members([first, second], "val")
    others = replace(second.dataset, classes=[f"d{label}" for label in range(7)])
    with pytest.raises(ValueError, match=r"/b has other classes than those of .*/a;"):
        check_members([first, replace(second, dataset=others)], "val")
    fewer = replace(second.dataset, classes=second.dataset.classes[:6])
    with pytest.raises(ValueError, match=r"/b has 6 classes, not the 7 of .*/a;"):
        check_members([first, replace(second, dataset=fewer)], "val")
    reordered = replace(second.dataset.val, labels=second.dataset.val.labels[::-1].copy())  # type: ignore[type-var]
    with pytest.raises(ValueError, match=r"/b has other labels in val than .*/a"):
        check_members([first, replace(second, dataset=replace(second.dataset, val=reordered))], "val")


def test_the_command_prints_a_table_like_the_papers(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(runs)

    def launch(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", "crops=ten", "device=cpu", *arguments])
        runpy.run_path(str(ROOT / "launch" / "evaluate.py"), run_name="__main__")
        return capsys.readouterr().out

    printed = launch("runs=[a,b]", "output=both.json")
    assert "mean of 2" in printed
    assert "searched on the same images, so their error is optimistic" in printed
    stored = json.loads((runs / "both.json").read_text())
    assert f"{stored['equal']['top1_error']:.2f}" in printed
    assert len(stored["members"]) == 2
    assert "optimistic" not in launch("runs=[a,b]", "coefficients=[0.5,1]")
    # In a pipe of 80 columns: what tells the members apart stands whole, what they share stands once.
    monkeypatch.setenv("COLUMNS", "80")
    folder = runs / "folder-ablation-optim.learning_rate-seed-8b6b12"
    folder.mkdir()
    names = [f"ablation=no_overlap_plain,optim.learning_rate=0.005,seed={seed}" for seed in (0, 1)]
    for name, run in zip(names, ("a", "b"), strict=True):
        (folder / name).symlink_to(runs / run, target_is_directory=True)
    lines = launch(f"runs=[{','.join(f'{folder.name}/{name}' for name in names)}]").splitlines()
    assert all(sum(name in line for line in lines) == 1 for name in names)
    assert sum(folder.name in line for line in lines) == 1
    with pytest.raises(SystemExit, match=r"output=both\.txt must be a file named"):
        launch("runs=[a,b]", "output=both.txt")
    with pytest.raises(SystemExit, match="give at least two"):
        launch("runs=[a]")
    with pytest.raises(SystemExit, match="checkpoint= goes with run="):
        launch("runs=[a,b]", "checkpoint=a")
    with pytest.raises(SystemExit, match=r"coefficients=\[0.5\]' do not fit 2 runs"):
        launch("runs=[a,b]", "coefficients=[0.5]")
