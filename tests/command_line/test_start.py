"""How commands start: mistyped keys in one sentence with what was meant, +experiment=NAME, a --help that explains."""

import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf

from helpers.paths import ROOT
from twotower.command_line.manual import comments
from twotower.command_line.mistakes import explain_composition, suggest
from twotower.command_line.start import (
    COMPOSITION_ERRORS,
    check_command_line,
    find_schema,
    list_groups_of,
    without_plus,
)
from twotower.config import Config, check, resolve
from twotower.runs.journal import Journal
from twotower.training.identity import count_steps
from twotower.training.schedule import Rates

COMMANDS = {path.stem: path for path in (ROOT / "launch").glob("*.py")}
YAML = {"two_gpu": "config"}  # of the others it has the command's name


def told(name: str, *overrides: str) -> str:
    """What a person is told who gives these overrides; empty if they compose."""
    try:
        check_command_line(overrides, name)
        with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            OmegaConf.to_object(hydra.compose(name, list(overrides)))
    except ValueError as error:
        if not isinstance(error, COMPOSITION_ERRORS):
            return str(error)
        return explain_composition(error)
    except COMPOSITION_ERRORS as error:
        return explain_composition(error)
    return ""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT that a process can send itself")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_stop_while_it_imports_is_silent(name: str, tmp_path: Path) -> None:
    """In the place of torch, which takes seconds, a module that is interrupted."""
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    path = os.pathsep.join((str(tmp_path), *sys.path))
    done = subprocess.run(
        [sys.executable, str(COMMANDS[name])],
        env=os.environ | {"PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optim.lr=0.1", "optim.lr=0.1: optim has no key lr; did you mean optim.learning_rate?"),
        ("+optim.lr=0.1", "+optim.lr=0.1: optim has no key lr; did you mean optim.learning_rate?"),
        ("optim.momentun=0.8", "optim.momentun=0.8: optim has no key momentun; did you mean optim.momentum?"),
        ("netwrk=alexnet", "netwrk=alexnet: there is no key netwrk; did you mean network?"),
        ("width=0.5", "width=0.5: there is no key width; did you mean network.width?"),
        ("optim.epochs=3", "optim.epochs=3: optim has no key epochs; did you mean schedule.epochs?"),
        ("lr=1", "lr=1: there is no key lr; did you mean optim.learning_rate?"),
        ("=1", "=1: a name is missing before the =; give KEY=VALUE."),
        ("qqq=1", "qqq=1: there is no key qqq; --help lists all keys."),
        ("checkpoint.qqq=1", "checkpoint.qqq=1: checkpoint has no key qqq; it has every_steps, keep, rule."),
        ("source=cifar10", "source=cifar10: there is no key source; "),
        ("seed=abc", "seed=abc does not fit: it must be a whole number."),
        ("input.flip=yess", "input.flip=yess does not fit: it must be true or false."),
        ("optim.learning_rate=x", "optim.learning_rate=x does not fit: it must be a number."),
        ("seed=0,1", "seed=0,1 has several values; put -m first for a sweep over them, "),
        ("data.root=a=b", "data.root=a=b is no setting; one is key=value"),
        ("foo", "foo is no setting; one is key=value"),
        ("network=alexnt", "network=alexnt is not known; did you mean alexnet"),
        ("ablation=nolrn", "ablation=nolrn is not known; did you mean no_lrn"),
        ("optim=adam", "optim=adam is not known; optim is one of sgd."),
        ("network.layers.conv9.kernels=3", "network.layers has no conv9 here; python launch/describe.py"),
    ],
)
def test_a_mistyped_override_is_one_sentence(override: str, sentence: str) -> None:
    found = told("config", "data=folder", "data.root=nowhere", override)
    assert found.startswith(sentence)
    assert "\n" not in found
    assert "HYDRA_FULL_ERROR" not in found
    assert found.endswith((".", "?"))


@pytest.mark.parametrize(
    ("name", "override", "meant"),
    [
        ("evaluate", "crop=ten", "did you mean crops?"),
        ("evaluate", "weight=a", "did you mean weights?"),
        ("figure", "levl=3", "did you mean level?"),
        ("report", "evalute=true", "did you mean evaluate?"),
        ("prepare_data", "source.rot=DIR", "did you mean source.root?"),
        ("prepare_data", "source=cifar", "did you mean cifar10"),
        ("describe", "network=caffent", "did you mean caffenet"),
        ("benchmark", "round=3", "did you mean rounds?"),
        ("export", "too=onnx", "did you mean to?"),
        ("labbook", "run=a", "did you mean runs?"),
        ("dashboard", "projct=a", "did you mean project?"),
    ],
)
def test_every_command_knows_what_was_meant(name: str, override: str, meant: str) -> None:
    assert meant in told(name, override)


def test_what_composes_is_left_alone() -> None:
    for overrides in (
        ("seed=3", "+experiment=none", "network.layers.fc8.rate=10", "hydra/launcher=basic"),
        ("network.pool={size:2,stride:2}", "logging.tags=[a,b]", "~seed", "++optim.momentum=0.8"),
        ("ablation=glob(no_*)", "seed=range(0,3)", "network=alexnet,caffenet"),
    ):
        check_command_line(overrides, "config")
    assert told("config", "schedule.drop_epochs=[1,2]", "schedule=fixed", "network.lrn=null") == ""


def test_suggestions() -> None:
    assert suggest("bs", ["batch_size", "learning_rate"]) == ["batch_size"]
    assert suggest("rate", ["momentum", "learning_rate"]) == ["learning_rate"]
    assert suggest("x", ["y", "xy"]) == []
    assert suggest("colour", ["seed"]) == []


def test_hydras_plus_before_an_experiment() -> None:
    given = ["+experiment=imagenette", "++network=alexnet", "+optim.x=1", "seed=0", "-m"]
    groups = list_groups_of("config")
    assert without_plus(given, groups) == ["experiment=imagenette", "network=alexnet", *given[2:]]
    assert {"experiment", "ablation", "network", "data"} <= set(groups)
    assert "source" not in groups


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    runpy.run_path(str(COMMANDS[name]), run_name="__main__")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_refuses_in_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    before = os.environ.get("HYDRA_FULL_ERROR")
    arguments = ["sweeps"] if name == "report" else []
    with pytest.raises(SystemExit, match=r"^error: .*there is no key qqq; --help lists all keys\.$"):
        run(monkeypatch, name, *arguments, "qqq=1")
    assert os.environ.get("HYDRA_FULL_ERROR") == before
    assert list(tmp_path.iterdir()) == [], "nothing was begun"


def test_under_torchrun_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for key, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    for override, sentence in (
        ("optim.lr=1", "error: optim.lr=1: optim has no key lr; did you mean optim.learning_rate?\n"),
        ("seed=abc", "error: seed=abc does not fit: it must be a whole number.\n"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, "two_gpu", override)
        assert stopped.value.code == 1
        assert capsys.readouterr().err == sentence


def test_a_value_that_hydra_itself_refuses_is_one_line_as_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^error: num_classes=many does not fit: it must be a whole number\.$"):
        run(monkeypatch, "describe", "num_classes=many")
    assert capsys.readouterr() == ("", ""), "Hydra itself says nothing"


def test_an_error_of_the_system_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for output, sentence in {
        "no/x": r"no/x cannot be used \(No such file or directory\); check the path, or give one in a folder that is",
        "folder": r"folder cannot be used \(Is a directory\); a folder has the place of a file, so move it away or",
    }.items():
        with pytest.raises(SystemExit, match=f"^error: {sentence}"):
            run(monkeypatch, "labbook", f"output={output}")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_tells_every_key_and_what_it_means(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    run(monkeypatch, name, "--help")
    printed = capsys.readouterr().out
    yaml = YAML.get(name, name)
    schema = find_schema(yaml)
    texts = comments()[schema.__name__]
    assert texts
    for key, meaning in texts.items():
        shown = any(f"{key}{end}" in printed for end in ("=", "\n", ".NAME.KEY"))
        assert shown != meaning.startswith("not used")
    assert max(len(line) for line in printed.splitlines()) <= 118
    assert len(printed.splitlines()) < 210


def test_the_help_of_the_training(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its present values, those of the rows of a network once, and no group that is another command's."""
    monkeypatch.setenv("COLUMNS", "120")
    run(monkeypatch, "two_gpu", "network=alexnet", "schedule=fixed", "schedule.drop_epochs=[2,5]", "-h")
    printed = capsys.readouterr().out
    assert "network.name=alexnet\n" in printed
    assert "schedule.drop_epochs=[2,5]" in printed
    assert "`fixed`: Epochs after which the rate is divided" in printed
    assert "network.layers.NAME.KEY, with NAME one of conv1, conv2," in printed
    assert printed.count("Learning rate in multiples of the schedule's") == 1
    assert "source=" not in printed
    assert "torchrun --nproc-per-node=2" in printed


# What a training prints


def test_the_rates_of_a_line() -> None:
    layers = ["conv1", "conv2", "fc7", "fc8"]
    alike = dict.fromkeys(layers, 0.01)
    assert Rates(alike, alike).describe_weights() == "0.01"
    own = alike | {"fc8": 0.1}
    assert Rates(own, own).describe_weights() == "0.01, fc8 0.1"
    frozen = own | {"conv1": 0.0, "conv2": 0.0, "fc7": 0.0}
    assert Rates(frozen, frozen).describe_weights() == "0.1", "frozen layers are named apart"
    nothing = dict.fromkeys(layers, 0.0)
    assert Rates(nothing, nothing).describe_weights() == "0"


def test_the_time_left_is_not_that_of_warming_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten steps that took 20 s with everything that had to be filled, then two steps a second."""
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve(hydra.compose("config", ["logging=no_wandb", "data=folder", "data.root=nowhere"]))
    now = iter([0.0, 20.0, 35.0, 75.0])
    monkeypatch.setattr("twotower.ground.progress.time.monotonic", lambda: next(now))
    journal = Journal(config, tmp_path, 0, 120)
    values = {"loss": 2.0, "top1_error": 50.0, "top5_error": 9.0, "images_per_second": 16.0}
    for step in (10, 40, 120):
        journal.show_training(step, values)
    journal.close(0)
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.endswith("16 images/s"), "nothing is known yet"
    assert second.endswith("16 images/s, 40 s left")
    assert last.endswith("16 images/s"), "nothing is left"


def test_debug_takes_every_part_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two towers, an epoch and a rate after the first, a checkpoint within an epoch, W&B without a network."""
    assert told("config", "experiment=debug") == ""
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = resolve(hydra.compose("config", ["experiment=debug"]))
    assert isinstance(config, Config)
    check(config)
    steps = config.data.num_train // config.optim.batch_size
    assert count_steps(config, steps) == 2 * steps == 12
    assert config.network.towers == 2
    assert config.schedule.drop_epochs == [1]
    assert config.checkpoint.every_steps is not None
    assert config.checkpoint.every_steps < steps
    assert config.logging.scales_every_steps < steps
    assert config.logging.wandb is None
    assert config.data.root != "datasets/shapes", "the default set has another size"


def test_multirun_yaml_lies_with_its_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra's record of a sweep's command; in sweeps/ the next sweep would overwrite it."""
    monkeypatch.chdir(tmp_path)
    module: dict[str, Any] = {}
    seen: list[list[str]] = []

    def stop(main: Any, name: str) -> None:
        seen.append(sys.argv[1:])
        raise SystemExit(0)

    spec = ModuleType("two_gpu")
    exec(compile(COMMANDS["two_gpu"].read_text(), str(COMMANDS["two_gpu"]), "exec"), spec.__dict__)
    module = spec.__dict__
    monkeypatch.setitem(module, "start", stop)
    monkeypatch.setitem(module, "catch_stops", lambda: None)
    monkeypatch.setattr(sys, "argv", ["two_gpu.py", "-m", "data=folder", "data.root=nowhere", "seed=0,1"])
    with pytest.raises(SystemExit):
        module["main"]()
    assert seen[0][-1] == f"hydra.sweep.dir='{module['sweep'].folder}'"
    assert str(module["sweep"].folder).startswith("sweeps/folder-seed-")
