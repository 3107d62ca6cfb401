"""The checks of printed commands find what cannot be typed or run, and read what is printed as it is meant."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_repository import ConfigRepository
from hydra.errors import HydraException

from helpers.command_checks import COMPOSE, LOAD, check_command, compose_quickly, within_hydra
from helpers.paths import ROOT
from helpers.printed_commands import Text, commands_in, lists_in
from helpers.shell_lines import NotUnderstoodError, simple_commands, variants, without_remark


@pytest.fixture(scope="module")
def composing() -> Iterator[None]:
    with within_hydra():
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("composing")
@pytest.mark.parametrize(
    "overrides",
    [
        ["network=alexnet", "data=folder", "data.root=DIR", "+logging.tags=[a,b]", "seed=3"],
        ["experiment=figure1", "ablation=tanh", "network.layers.conv1.rate=0", "schedule.drop_epochs=[1]"],
        ["seed=nothing"],
        ["network.no_such_key=3", "network=caffenet"],
        ["network=nothing"],
    ],
)
def test_composing_quickly_is_composing(overrides: list[str]) -> None:
    def outcome(compose: Callable[..., Any]) -> str:
        try:
            return str(compose("config", overrides))
        except HydraException as error:
            return f"{type(error).__name__} {error}"

    quick = [outcome(compose_quickly) for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", LOAD)
        assert quick == 2 * [outcome(COMPOSE)]


WRONG = {
    "python launch/evaluate.py runs=[A,B,C] crops=ten": "zsh takes it for a pattern; quote the whole argument",
    "python launch/evaluate.py run=sweeps/*": "zsh takes it for a pattern; quote the whole argument",
    "python launch/two_gpu.py -m ablation=glob(*)": "zsh takes it for a pattern; quote the whole argument",
    "$RUN seed=0": "a variable is not split into words by zsh",
    'python launch/two_gpu.py name="$NAME"': "within double quotes",
    "python launch/two_gpu.py name=it's": "is not closed",
    "python launch/two_gpu.py [seed=0": "a bracket is not closed",
    "python launch/no_such.py": "launch/no_such.py does not exist",
    "python launch/two_gpu.py optim.lr=0.1": "optim.lr",
    "python launch/two_gpu.py network=alexnet13": "alexnet13",
    "python launch/two_gpu.py data=folder": "data=folder needs data.root=DIR",
    "python launch/two_gpu.py schedule=run_146_2011": "which network=alexnet_2012 does not have",
    "python launch/two_gpu.py seed=0,1": "Ambiguous value",
    "python launch/two_gpu.py -m seed=0,1 ablation=none,no_such": "no_such",
    "torchrun --nproc-per-node=3 launch/two_gpu.py": "3 processes were started",
    "python launch/evaluate.py": "give a run, several runs or weights=FILE",
    "python launch/evaluate.py A B run=C": "give all of them in one way",
    "python launch/evaluate.py weights=FILE data_root=DIR": "FILE does not exist; give a run's",
    "python launch/evaluate.py weights=FILE network=caffenet": "give data_root=DIR",
    "python launch/export.py A B": "2 paths were given",
    "python launch/figure.py figure4 A B": "draws one run",
    "python launch/figure.py figure9 A": "figure9 is not known",
    "python launch/figure.py curves": "give the runs to draw",
    "python launch/report.py": "give the folders of sweeps and runs",
    "python launch/prepare_data.py source=cifar10 output=DIR": r"needs source\.root=DIR",
    "python launch/prepare_data.py source=ilsvrc2012 download=true output=DIR": "cannot be downloaded",
    "python launch/prepare_data.py source=folder source.root=DIR": "say what to make",
    "make nothing": "make has no target",
    "pip install -e '.[nothing]'": "no such extra",
    "wandb sweep conf/nothing.yaml": "does not exist",
    "rm -r runs": "is not a program that this test knows",
}


@pytest.mark.usefixtures("composing", "folder")
@pytest.mark.parametrize("command", WRONG)
def test_a_wrong_one_is_found(command: str) -> None:
    with pytest.raises((Exception, SystemExit)) as caught, pytest.MonkeyPatch.context() as patch:  # noqa: PT012
        for line in variants(command):
            for words in simple_commands(line):
                check_command(words, True, patch)
    assert re.search(WRONG[command], f"{caught.value} {caught.value.__cause__}"), caught.value


WRITTEN = """Type `python launch/report.py
A B`, or make a folder, and see `launch/evaluate.py split=test` and `curves A B ...`.
```sh
make train
python launch/labbook.py [RUN ...]    # the lab book
run() { python launch/two_gpu.py -m "$@"; }
run network=alexnet \\
  seed=0,1
rm everything
```
If {run} is finished: python launch/export.py {run} to=onnx writes it, with 'runs=[a]', not runs=[a,b].
"""


def test_what_is_printed_is_found() -> None:
    """In each form, with its place; remarks are told, sentences and English left out."""
    found = commands_in(Text("x", ROOT / "x.md", 1, WRITTEN, "markdown"))
    assert [(one.line, one.text, bool(one.problem), one.is_whole) for one in found] == [
        (4, "make train", False, True),
        (5, "python launch/labbook.py [RUN ...]", True, True),
        (6, "python launch/two_gpu.py -m", False, False),
        (7, "run network=alexnet seed=0,1", False, True),
        (9, "rm everything", False, True),
        (1, "python launch/report.py A B", False, True),
        (2, "python launch/evaluate.py split=test", False, False),
        (2, "python launch/figure.py curves A B ...", False, True),
        (11, "python launch/export.py {run} to=onnx", False, True),
    ]
    assert lists_in(Text("x", ROOT / "x.md", 1, WRITTEN)) == ["x.md:11: runs=[a,b]"]


def test_what_a_line_stands_for() -> None:
    assert variants("a crops=one|two ['x=[1,2]'] [DIR ...] [k=v: it explains] z") == [
        "a crops=one z",
        "a crops=two z",
        "a crops=one 'x=[1,2]' DIR k=v z",
        "a crops=two 'x=[1,2]' DIR k=v z",
    ]
    assert simple_commands("find a | LC_ALL=C sort > b && c 'd e'") == [["find", "a"], ["sort"], ["c", "d e"]]
    with pytest.raises(NotUnderstoodError, match=r"two spaces stand before seed=1"):
        without_remark("python launch/two_gpu.py  seed=1")
