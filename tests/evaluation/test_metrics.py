"""Counts: exact, independent of the split into batches, ties as in 2012."""

import pytest
import torch

from twotower.evaluation.metrics import Counts, count, credits


def test_counts_do_not_depend_on_the_batches() -> None:
    torch.manual_seed(0)
    scores = torch.randn(37, 11).log_softmax(1)
    labels = torch.randint(11, (37,))
    whole = Counts(count(scores, labels))
    parts = Counts.zero()
    for begin, end in ((0, 16), (16, 32), (32, 37)):
        parts.add(Counts(count(scores[begin:end], labels[begin:end])))
    assert parts.num_images == 37
    assert parts.top1_error == whole.top1_error == pytest.approx(100 * (scores.argmax(1) != labels).float().mean())
    in_top5 = (scores.topk(5).indices == labels[:, None]).any(1)
    assert parts.top5_error == whole.top5_error == pytest.approx(100 * (~in_top5).float().mean())
    assert parts.loss == pytest.approx(torch.nn.functional.nll_loss(scores, labels).item(), rel=1e-6)


def test_ties_share_the_slots() -> None:
    """A network that says the same of all classes must have the error of guessing, not 0 %."""
    flat = torch.zeros(3, 10)
    labels = torch.tensor([0, 5, 9])
    assert credits(flat, labels, 1).tolist() == pytest.approx([0.1] * 3)
    assert credits(flat, labels, 5).tolist() == pytest.approx([0.5] * 3)
    scores = torch.tensor([[3.0, 2.0, 2.0, 2.0, 1.0, 0.0]])
    assert credits(scores, torch.tensor([1]), 1).item() == 0
    assert credits(scores, torch.tensor([1]), 2).item() == pytest.approx(1 / 3)
    assert credits(scores, torch.tensor([0]), 1).item() == 1


def test_top5_of_few_classes_and_nan() -> None:
    assert credits(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), 5).tolist() == [1, 1, 1, 1]
    assert credits(torch.full((2, 4), torch.nan), torch.tensor([0, 1]), 5).tolist() == [0, 0]
