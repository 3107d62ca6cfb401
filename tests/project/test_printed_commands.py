"""Every command that the project prints can be typed: in sh, bash and zsh, and with what Hydra and the scripts take.

What a command is and where they are looked for: printed_commands.py, shell_lines.py. Each is composed, with and
without its optional parts, and its script is run up to where its work begins (command_checks.py); the shells get each
as it is printed. What must not pass is in test_wrong_commands.py, and what takes a second is run in
test_run_commands.py.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from helpers.command_checks import OTHERS, check_command, expanded, lines_of, provide, within_hydra
from helpers.paths import ROOT
from helpers.printed_commands import KINDS, Printed, collect, lists_in, texts
from helpers.shell_lines import expand_function, simple_commands
from helpers.shells import INSTALLED, SHELLS, run_lines
from twotower.config import Config
from twotower.training.configure import note_command

# What there is


def test_every_kind_of_place_has_commands() -> None:
    """So that none is lost by a change of how they are looked for."""
    counts = Counter(one.kind for one in collect())
    least = {
        "README and docs": 30,
        "conf": 80,
        "results": 12,
        "records": 12,
        "docstrings": 20,
        "messages": 12,
        "set up": 4,
    }
    print(f"{len(collect())} printed commands: {', '.join(f'{counts[kind]} in {kind}' for kind in KINDS)}")
    assert set(counts) <= set(KINDS) == {*least, "comments"}, "comments may print none"
    for kind, number in least.items():
        assert counts[kind] >= number, f"only {counts[kind]} commands were found in {kind}"
    scripts = {path.name for path in (ROOT / "launch").glob("*.py")}
    shown = {match for one in collect() for match in re.findall(r"launch/(\w+\.py)", one.text)}
    assert scripts <= shown, f"no command shows {', '.join(scripts - shown)}"


def test_lists_are_quoted() -> None:
    found = [one for text in texts() for one in lists_in(text)]
    assert not found, "zsh takes bare brackets for a pattern; quote the argument, 'key=[a,b]':\n" + "\n".join(found)


# Each is understood and composes


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands are given: empty but for what they name."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def composing() -> Iterator[None]:
    with within_hydra():
        yield


@cache
def _composed() -> set[tuple[str, ...]]:
    """What was composed, so that nothing is twice."""
    return set()


@pytest.mark.usefixtures("composing", "folder")
@pytest.mark.parametrize("kind", KINDS)
def test_each_composes(kind: str) -> None:
    wrong, commands, before = [], 0, len(_composed())
    for one in (one for one in collect() if one.kind == kind):
        commands += 1
        try:
            for line in lines_of(one):
                for words in simple_commands(expand_function(line, dict(one.functions))):
                    # Records of the same run with other seeds are alike here.
                    key = tuple(word for word in words if kind != "records" or not word.startswith("seed="))
                    if (*key, str(one.is_whole)) not in _composed():
                        with pytest.MonkeyPatch.context() as patch:
                            check_command(words, one.is_whole, patch)
                        _composed().add((*key, str(one.is_whole)))
        except (Exception, SystemExit) as error:
            cause = f" {error.__cause__}" if error.__cause__ else ""
            wrong.append(f"{one}\n    {type(error).__name__}: {error}{cause}")
    print(f"{kind}: {commands} commands, {len(_composed()) - before} different ones composed")
    assert commands or kind == "comments"
    assert not wrong, f"{len(wrong)} of {commands} printed commands cannot be run:\n" + "\n".join(wrong)


# The shells read each as it is meant


def shown_argv(command: str) -> list[list[str]]:
    return [expanded(words) for words in simple_commands(command)]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_reads_each_as_it_is_meant(shell: str) -> None:
    """Functions as they are defined, and what is called replaced by a program that notes its arguments."""
    lines: dict[str, Printed] = {}
    for one in collect():
        try:
            for line in lines_of(one):
                whole = "".join(f'{name}() {{ {body} "$@"; }}; ' for name, body in one.functions) + line
                if simple_commands(expand_function(line, dict(one.functions)))[0][0] not in OTHERS:
                    lines.setdefault(whole, one)
        except ValueError:
            continue  # which test_each_composes tells
    for whole, one in lines.items():
        for words in simple_commands(expand_function(whole.split("; ")[-1], dict(one.functions))):
            provide(words[1:])
    wrong = []
    for (whole, one), found in zip(lines.items(), run_lines(shell, list(lines)), strict=True):
        wanted = shown_argv(expand_function(whole.split("; ")[-1], dict(one.functions)))
        if found.calls != wanted or found.said:
            wrong.append(f"{one}\n    {shell} calls {found.calls}, not {wanted}; {found.said}")
    print(f"{shell}: {len(lines)} different lines read as they are meant")
    assert len(lines) > 120
    assert not wrong, f"{shell} reads {len(wrong)} printed commands in another way:\n" + "\n".join(wrong)


def test_recipes_are_functions(folder: Path) -> None:
    """Each recipe as it is printed, in one piece; what it must call is written out here."""
    train = ["python", "launch/two_gpu.py"]
    figure_1 = [*train, "-m", "experiment=figure1", "data.root=datasets/cifar10", "seed=0,1,2"]
    narrow = [*train, "-m", "experiment=imagenette_narrow"]
    ablations, seeds = "ablation=none,no_lrn,no_overlap", "seed=0,1,2"
    relu = ["network.activation=relu", "optim.learning_rate=0.003", "schedule.epochs=10"]
    tanh = ["network.activation=tanh", "optim.learning_rate=0.02"]
    sigmoid = ["network.activation=sigmoid", "optim.learning_rate=0.03", "schedule.epochs=2"]
    here = "data.root=datasets/imagenette"
    stop_early = [
        *["experiment=chain_146_1", "data.root=ILSVRC2012", "run_dir=runs/step1"],
        "schedule.max_steps=290261",
    ]
    recipes = {
        "conf/experiment/chain_146_1.yaml": [
            [*train, "data=folder", f"experiment=chain_146_{step}", f"data.root={root}", f"run_dir=runs/step{step}"]
            + ([f"initial_weights.path=runs/step{step - 1}"] if step > 1 else [])
            for step, root in enumerate(("ILSVRC2012", "FALL2009", "FALL2011", "ILSVRC2012"), 1)
        ]
        + [[*train, "data=folder", *stop_early]],
        "conf/experiment/figure1.yaml": [[*figure_1, *relu], [*figure_1, *tanh]],
        "conf/experiment/imagenette_narrow.yaml": [
            [*narrow, "data.root=DIR", ablations, seeds],
            [*narrow, "data.root=DIR", "network=no_exchange", seeds],
        ],
        "results/figure1_cifar10/README.md": [
            [*figure_1, *relu],
            [*figure_1, *tanh, "schedule.epochs=30"],
            [*figure_1, *sigmoid],
        ],
        "results/imagenette_narrow/README.md": [
            [*narrow, here, ablations, seeds, "sweep_dir=sweeps/ablations"],
            [*narrow, here, "network=no_exchange", seeds, "sweep_dir=sweeps/no_exchange"],
        ],
    }
    texts = []
    for name in recipes:
        lines = [line.removeprefix("#").strip() for line in (ROOT / name).read_text().splitlines()]
        texts.append("\n".join(line for line in lines if re.match(r"run(\(\) \{| [a-z.]+=)", line)))
    for shell in INSTALLED:
        for (name, wanted), outcome in zip(recipes.items(), run_lines(shell, texts), strict=True):
            assert (outcome.calls, outcome.said) == (wanted, ""), f"{name} in {shell}"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("shell", SHELLS)
def test_the_command_of_a_run_can_be_given_again(shell: str) -> None:
    """What config.yaml and the report have for it, of arguments that shells would read in their own ways."""
    overrides = ["schedule.drop_epochs=[2,3]", "logging.notes='a b'", "ablation=glob(no_*)", "name=it's", "seed=1#2"]
    overrides += [
        "data.root=~/a $HOME",
        "logging.tags=[a,'b c']",
        "+x={a:1}",
        "name=!a",
        "name==b",
        'name="q"',
        "a\\b",
    ]
    command = note_command(Config(), [*overrides, "run_dir=left/out"]).command
    (outcome,) = run_lines(shell, [command])
    assert (outcome.calls, outcome.said) == ([["python", "launch/two_gpu.py", *overrides]], "")
