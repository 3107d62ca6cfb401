"""course/exchange.py: short, needs torch alone, trains in two processes what one process trains, and would notice."""

import ast
import re
import subprocess
import sys

import pytest
import torch

from helpers.commands import environment
from helpers.course import import_course
from helpers.paths import ROOT

FILE = ROOT / "course" / "exchange.py"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What it prints, from a folder where nothing else is. Its own time-out is a minute a swap."""
    variables = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    folder = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run(
        [sys.executable, str(FILE)],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())
    return done.stdout


def test_it_is_one_short_file() -> None:
    source = FILE.read_text()
    assert len(source.splitlines()) <= 150
    names = {
        name.partition(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    assert names - set(sys.stdlib_module_names) == {"torch"}


def test_two_processes_are_one(output: str) -> None:
    """Losses, gradients and weights to rounding in float64; both towers see one loss, and it falls."""
    off = re.findall(r"(.+): two processes differ from one by up to (\S+)", output)
    assert [what for what, _ in off] == ["losses", "first gradients", "weights in the end"]
    assert all(float(value) < 1e-12 for _, value in off)
    losses = re.findall(r"loss (\S+)  \(tower 1: (\S+)\)", output)
    assert len(losses) == 5
    assert all(one == two for one, two in losses)
    assert [float(one) for one, _ in losses] == sorted((float(one) for one, _ in losses), reverse=True)
    assert float(losses[-1][0]) < 0.5 * float(losses[0][0])


def test_the_page_shows_what_it_prints(output: str) -> None:
    """But for the last digits of rounding."""
    (shown,) = re.findall(r"```text\n(.*?)```", (ROOT / "course" / "README.md").read_text(), re.DOTALL)
    assert re.sub(r"\S+e-\d+", "", shown) == re.sub(r"\S+e-\d+", "", output)


@pytest.mark.usefixtures("one_thread")
def test_wrong_gradients_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same comparison with a gradient that does not go back: the loss falls, and the proof fails."""
    import_course(monkeypatch)
    import exchange
    from grading.threads import run_both

    class NotSent(exchange.Finish):
        @staticmethod
        def backward(ctx, grad_peer):
            return None, None, None

    monkeypatch.setattr(exchange, "STEPS", 30)
    whole = exchange.train_whole()

    def train(way: type) -> list[dict]:
        monkeypatch.setattr(exchange, "Finish", way)
        towers = [exchange.Tower(tower).double() for tower in (0, 1)]

        def train_tower(link):
            tower = towers[link.tower]
            return exchange.train(list(tower.parameters()), lambda points: tower(points, link))

        return run_both(train_tower)

    def measure(results: list[dict]) -> float:
        found = results[0]["first gradients"] + results[1]["first gradients"]
        return max(float((a - b).abs().max()) for a, b in zip(found, whole["first gradients"], strict=True))

    right, wrong = train(exchange.Finish), train(NotSent)
    assert measure(right) < 1e-12
    assert measure(wrong) > 1e-3
    assert wrong[0]["losses"][-1] < 0.9 * wrong[0]["losses"][0]
    assert torch.equal(wrong[0]["losses"][0], right[0]["losses"][0])
