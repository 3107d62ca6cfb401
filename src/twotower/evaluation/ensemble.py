"""Several networks together: the weighted mean of their probabilities, and the search for the weights of 2012.

Table 2 of the paper averages five and seven networks. The tool that did so in 2012 (avg-valid.py) could also search
the coefficients, one at a time on a grid; `search_coefficients` does the same.
"""

from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from twotower.config import EvaluateConfig
from twotower.evaluation.evaluate import make_predictions, summarise_predictions
from twotower.evaluation.metrics import Counts, count, credits
from twotower.evaluation.subject import Subject, check_settings, open_subject
from twotower.ground.wording import counted

START = 0.5  # first value of every coefficient (avg-valid.py: find_coeffs)
GRID = [step / 20 for step in range(21)]  # 0, 0.05, ... 1
MAX_PASSES = 5  # rounds over all coefficients
_CHUNK = 2048  # images at a time, in float64


def _mixed(members: Sequence[Tensor], coefficients: Sequence[float], part: slice) -> Tensor:
    """The sum of c_m P_m, float64 [images of the part, classes]."""
    mixture = torch.zeros(members[0][part].shape, dtype=torch.float64)
    for member, coefficient in zip(members, coefficients, strict=True):
        mixture.add_(member[part].double(), alpha=coefficient)
    return mixture


def _parts(num_images: int) -> list[slice]:
    return [slice(begin, begin + _CHUNK) for begin in range(0, num_images, _CHUNK)]


def count_mean(members: Sequence[Tensor], coefficients: Sequence[float], labels: Tensor) -> Counts:
    """Errors and loss of the weighted mean.

    Args:
        members: probabilities [N, classes] of each network.
        coefficients: one for each member, not negative; only their ratios count.
        labels: int64 [N].

    Raises: ValueError if the coefficients do not fit the members, or are all 0.
    """
    given = ", ".join(f"{coefficient:g}" for coefficient in coefficients)
    if len(coefficients) != len(members):
        raise ValueError(f"'coefficients=[{given}]' do not fit {counted(len(members), 'run')}; give one for each.")
    if not all(0 <= c < float("inf") for c in coefficients) or not sum(coefficients) > 0:
        raise ValueError(f"'coefficients=[{given}]' must not be negative, and not all 0.")
    counts, total = Counts.zero(), sum(coefficients)
    shares = [coefficient / total for coefficient in coefficients]
    for part in _parts(len(labels)):
        counts.add(Counts(count(_mixed(members, shares, part).log(), labels[part])))
    return counts


def _top5_errors(members: Sequence[Tensor], coefficients: list[float], which: int, labels: Tensor) -> list[float]:
    """The top-5 error, as a part of all images, with each value of the grid in place of one coefficient."""
    others = [0.0 if m == which else coefficient for m, coefficient in enumerate(coefficients)]
    right = [0.0] * len(GRID)
    for part in _parts(len(labels)):
        rest, own = _mixed(members, others, part), members[which][part].double()
        for i, value in enumerate(GRID):
            right[i] += float(credits(rest + value * own, labels[part], 5).sum())
    return [1 - found / len(labels) for found in right]


def search_coefficients(members: Sequence[Tensor], labels: Tensor) -> list[float]:
    """The coefficients with the lowest top-5 error that avg-valid.py's find_coeffs comes to.

    All start at 0.5. One after the other is set to the value of 0, 0.05, ... 1 with the lowest error, if that is
    strictly lower than the lowest so far (the first of several). At most five passes over all; it ends earlier when
    it comes back to the coefficient that was changed last and nothing has improved since.

    Args:
        members: probabilities [N, classes] of each network.
        labels: int64 [N].
    """
    coefficients = [START] * len(members)
    lowest = _top5_errors(members, coefficients, 0, labels)[GRID.index(START)]
    changed_last = None
    for _ in range(MAX_PASSES):
        for which in range(len(members)):
            if which == changed_last:
                return coefficients
            errors = _top5_errors(members, coefficients, which, labels)
            if min(errors) < lowest:
                lowest, changed_last = min(errors), which
                coefficients[which] = GRID[errors.index(lowest)]
        if changed_last is None:
            break
    return coefficients


def check_members(subjects: Sequence[Subject], split: str) -> None:
    """Raises: ValueError naming the first run whose classes or images are not those of the first one."""
    first = subjects[0]
    if first.dataset.is_synthetic:
        raise ValueError(f"{first.run_dir} was trained on data=synthetic; an ensemble needs images.")
    labels = torch.from_numpy(first.dataset.split(split).labels)
    for other in subjects[1:]:
        if other.dataset.classes != first.dataset.classes:
            differs = (
                f"{counted(len(other.dataset.classes), 'class', 'classes')}, not the {len(first.dataset.classes)}"
            )
            if len(other.dataset.classes) == len(first.dataset.classes):
                differs = "other classes than those"
            raise ValueError(f"{other.run_dir} has {differs} of {first.run_dir}; an ensemble needs the same data.")
        theirs = torch.from_numpy(other.dataset.split(split).labels)
        if not torch.equal(theirs, labels):
            raise ValueError(
                f"{other.run_dir} has other labels in {split} than {first.run_dir} ({counted(len(theirs), 'image')}, "
                f"there {len(labels)}); an ensemble needs the same images in the same order: give data_root=DIR."
            )


def evaluate_ensemble(settings: EvaluateConfig) -> dict[str, Any]:
    """Each member of `settings.runs`, their plain mean, and their mean with coefficients, given or searched.

    Predictions are read where they are stored, so a second search computes nothing with a network.

    Raises: ValueError for settings that do not go together, or members that do not see the same images.
    """
    check_settings(settings)
    twice = [run for run in settings.runs if settings.runs.count(run) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is given twice; give it once, and its weight by 'coefficients=[...]'.")
    if len(settings.runs) < 2:
        raise ValueError(f"{settings.runs[0]} is one run; give at least two, or evaluate it with run=.")
    if settings.checkpoint is not None:
        raise ValueError("checkpoint= goes with run=; an ensemble takes the last checkpoint of each run.")
    subjects = [open_subject(run, settings) for run in settings.runs]
    check_members(subjects, settings.split)
    labels = torch.from_numpy(subjects[0].dataset.split(settings.split).labels)
    if settings.coefficients:  # checked before hours of work
        count_mean([torch.ones(1, 2)] * len(subjects), settings.coefficients, torch.zeros(1, dtype=torch.int64))
    members, results = [], []
    for subject in subjects:
        predictions = make_predictions(subject, settings)[settings.crops]
        assert torch.equal(predictions.labels, labels), (
            "the identity of stored predictions has the data set's fingerprint"
        )
        about = {"run": str(subject.run_dir), "network": subject.config.network.name}
        about |= {"ablation": subject.config.ablation, "checkpoint": subject.checkpoint.name}
        results.append(about | summarise_predictions(predictions))
        members.append(predictions.probabilities())
    equal = [1 / len(members)] * len(members)
    searched = not settings.coefficients
    with Console().status("searching coefficients" if searched else "averaging"):
        weights = search_coefficients(members, labels) if searched else list(settings.coefficients)
    return {
        "crops": settings.crops,
        "split": settings.split,
        "num_images": len(labels),
        "members": results,
        "equal": _result(members, equal, labels),
        "weighted": _result(members, weights, labels) | {"searched_on_these_images": searched},
    }


def _result(members: Sequence[Tensor], coefficients: list[float], labels: Tensor) -> dict[str, Any]:
    counts = count_mean(members, coefficients, labels)
    rates = {"top1_error": counts.top1_error, "top5_error": counts.top5_error, "loss": counts.loss}
    return {"coefficients": coefficients} | rates
