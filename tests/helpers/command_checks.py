"""Whether a printed command can be run: composed by Hydra, and its script run up to where its work begins."""

import copy
import glob
import importlib.util
import itertools
import re
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from torch.distributed.run import parse_args as parse_torchrun

from helpers.printed_commands import ROOT, Printed
from helpers.shell_lines import NotUnderstoodError, variants
from twotower.config import check, register_schemas
from twotower.data.sources.source import find_source
from twotower.distributed.place import check_even
from twotower.model.layer_table import plan
from twotower.runs.failure import NotApplicableError
from twotower.training.schedule import Schedule
from twotower.training.sweep import Sweep, read_overrides

# What the placeholders of f-strings stand for, by the expression; several: one after the other.
STANDS_FOR = {
    "run": ["RUN"],
    "shlex.quote(run)": ["RUN"],
    "quoted": ["RUN"],  # a path, by shlex.quote
    "chosen": ["", " checkpoint=step-00000120"],
    "crops": ["centre", "ten"],
    "flags[0]": ["-m"],
    "settings.figure": ["figure4", "figure1"],
    "usual": ["RUN", "A B ..."],
    "build": ["nvidia-dali-cuda130", "nvidia-dali-cuda120"],
    "number": ["2.4.0"],
}
# Placeholders in capitals that are no path, and for which any word would not do.
VALUES = {"network=NAME": "network=alexnet", "source=NAME": "source=cifar10", "KEY=VALUE": "seed=1"}

# Where the work of each launch script begins: functions of its own module, or of others by their full names. The test
# stops there. A script without an entry fails.
OWN_SCRIPTS = (
    "docs/tables.py",
    "results/tables.py",
    "tests/helpers/record_numbers.py",
    "course/exchange.py",
    "course/catch.py",
)  # run by those who change the project, or who take its course
WORK = {
    "benchmark": ["twotower.benchmarks.benchmark.cores"],
    "dashboard": ["build"],
    "describe": ["describe"],
    "doctor": ["examine_machine"],
    "evaluate": [
        "twotower.evaluation.evaluate.open_subject",
        "twotower.evaluation.ensemble.open_subject",
        "twotower.evaluation.evaluate.prepare",
    ],
    "export": ["twotower.evaluation.measured.read_config", "locate"],
    "features": ["open_trained"],
    "figure": [f"twotower.figures.draw_figure.{name}" for name in ("read_history", "read_kernels", "open_subject")],
    "identify": ["identify"],
    "labbook": ["twotower.reports.own_results.read_config", "render"],
    "memory": ["list_memory"],
    "predict": ["open_trained"],
    "prepare_data": ["pooch.retrieve", "verify", "twotower.data.preparing.build_set.find_source"],
    "report": ["twotower.reports.collect.read_run"],
    "timeline": ["record_timeline"],
    "volume": ["estimate_rows"],
    "two_gpu": [],  # composed and checked as by its main()
}
# Programs that are not ours: their arguments are only read, and quoted rightly.
OTHERS = {
    "cd",
    "curl",
    "docker",
    "export",
    "find",
    "git",
    "kubectl",
    "mkdir",
    "sbatch",
    "sed",
    "sha256sum",
    "sky",
    "sort",
}
OTHERS |= {"tar", "."}


class Reached(BaseException):
    """The work of a script would begin here."""


def lines_of(one: Printed) -> list[str]:
    """What can be typed for a printed command, shell functions as such. Raises: ValueError."""
    if one.problem:
        raise NotUnderstoodError(one.problem)
    texts, names = [one.text], re.findall(r"\{([^{}]+)\}", one.text) if one.kind == "messages" else []
    for name in names:
        if name not in STANDS_FOR:
            raise ValueError(
                f"what {{{name}}} stands for is not known; add it to STANDS_FOR in {Path(__file__).name}"
            )
    if names:
        count = max(len(STANDS_FOR[name]) for name in names)
        texts = [
            re.sub(r"\{([^{}]+)\}", lambda m, k=k: STANDS_FOR[m[1]][min(k, len(STANDS_FOR[m[1]]) - 1)], one.text)  # type: ignore[misc]
            for k in range(count)
        ]
    lines = [line for text in texts for line in variants(text)]
    for name, value in VALUES.items():
        lines = [re.sub(rf"(?<=\s){re.escape(name)}(?=\s|$)", value, line) for line in lines]
    return lines


def provide(words: list[str]) -> None:
    """Makes what arguments without a key name: photographs, and folders of runs or photographs; each * is x."""
    for word in words:
        if "=" not in word.split("/")[-1] and not word.startswith("-"):
            path = Path(word.replace("*", "x"))
            if path.suffix in (".jpg", ".jpeg", ".png"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            elif not path.exists():
                path.mkdir(parents=True)
                (path / "config.yaml").touch()
                (path / "photograph.jpg").touch()


def expanded(words: list[str]) -> list[str]:
    """As the shell expands patterns."""
    return [
        name for word in words for name in (sorted(glob.glob(word)) if "*" in word and "=" not in word else [word])
    ]


@cache
def script_of(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"launch_{name}", ROOT / "launch" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def task_of(module: ModuleType) -> Any:
    """The function that hydra.main was put around."""
    own = [one for one in vars(module).values() if getattr(one, "__module__", None) == module.__name__]
    return next(one for one in own if getattr(one, "__wrapped__", one) is not one)


def stop(*args: Any, **kwargs: Any) -> None:
    raise Reached


def stop_where_it_works(name: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name in WORK, f"launch/{name}.py is new: name in WORK, in {Path(__file__).name}, where its work begins"
    for function in WORK[name]:
        if "." in function:
            monkeypatch.setattr(function, stop)
        else:
            monkeypatch.setattr(module, function, stop)
    if name == "prepare_data":

        def find(config: Any) -> None:
            if config.root is None:
                find_source(config)
            raise Reached

        monkeypatch.setattr("twotower.data.preparing.build_set.find_source", find)


def compose_training(arguments: list[str], is_whole: bool, size: int | None) -> None:
    """As main() of launch/two_gpu.py does, up to the data. Raises: ValueError and Hydra's errors."""
    module = script_of("two_gpu")
    if not is_whole:
        overrides = [one for one in arguments if one not in module.MULTIRUN]
        Sweep.plan(overrides) if overrides != arguments else hydra.compose("config", overrides)
        return

    def try_one(overrides: list[str]) -> None:
        config = module.configure(hydra.compose("config", overrides), overrides)
        check(config)
        plan(config.network, 10)
        Schedule(config.schedule, config.optim.learning_rate, config.network)
        if size is not None:
            check_even(size, config.network.towers)

    flags = [argument for argument in arguments if argument in module.MULTIRUN]
    overrides = [argument for argument in arguments if argument not in flags]
    if not flags:
        try_one(overrides)
        return
    assert size is None, "-m is for python, not for torchrun"
    jobs = Sweep.plan(overrides).jobs
    values = BasicSweeper.split_arguments(read_overrides(overrides)[0], None)[0]
    assert len(values) == len(jobs)
    seen: set[str] = set()
    applicable = 0
    spelled = " ".join(arguments)
    for job in values:  # each value that is spelled out once, not all that they can be combined to
        is_spelled = all(one.partition("=")[2] in spelled for one in job)
        if not job or (not set(job) <= seen and (is_spelled or not seen)):
            seen |= set(job)
            try:
                try_one([one for one in job if not one.startswith("hydra/")])
                applicable += 1
            except NotApplicableError:
                continue
    assert applicable, "no job of the sweep is applicable"


def run_to_its_work(name: str, arguments: list[str], is_whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Composes what a script is given and runs it up to where its work begins. Raises: SystemExit and others."""
    module = script_of(name)
    arguments = expanded(arguments)
    to_overrides: Callable[[list[str]], list[str]] = getattr(module, "to_overrides", list)
    composed = hydra.compose(name, to_overrides(arguments))
    if not is_whole:
        return
    stop_where_it_works(name, module, monkeypatch)
    try:
        task_of(module).__wrapped__(composed)
    except Reached:
        return
    raise AssertionError("it ended without having done anything")


def check_python(words: list[str], is_whole: bool, monkeypatch: pytest.MonkeyPatch, size: int | None = None) -> None:
    script = ROOT / words[0]
    if words[0] == "-m":
        assert importlib.util.find_spec(words[1]) is not None, f"there is no module {words[1]}"
        return
    assert script.is_file(), f"{words[0]} does not exist"
    if words[0] == "course/grade.py":
        assert [(script.parent / word).is_file() for word in words[1:]] == [True], "it takes one file of the course"
        return
    if not words[0].startswith("launch/"):
        assert words[0] in OWN_SCRIPTS, f"{words[0]} is no script of launch/"
        assert not words[1:], f"{words[0]} takes no arguments"
        return
    provide([word for word in words[1:] if word not in ("figure1", "figure3", "figure4")])
    if script.stem == "two_gpu":
        compose_training(words[1:], is_whole, size)
    else:
        assert size is None, "torchrun is for launch/two_gpu.py"
        run_to_its_work(script.stem, words[1:], is_whole, monkeypatch)


def check_wandb(words: list[str]) -> None:
    assert words[0] in ("sync", "sweep", "agent", "login"), f"wandb {words[0]} is not known here"
    if words[0] == "sweep":
        assert (ROOT / words[-1]).is_file(), f"{words[-1]} does not exist"
        sweep: Any = OmegaConf.to_container(OmegaConf.load(ROOT / words[-1]))
        common = [one for one in sweep["command"] if not one.startswith("${")]
        for key, parameter in sweep["parameters"].items():
            for value in parameter["values"]:
                check_python([sweep["program"], *common, f"{key}={value}"], True, pytest.MonkeyPatch())


def check_pip(words: list[str]) -> None:
    assert words[0] == "install", f"pip {words[0]} is not known here"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    match = re.fullmatch(r"(?:--extra-index-url \S+ )?(?:-e|--editable) \.\[([\w,]+)\]", " ".join(words[1:]))
    if match is not None:
        extras = set(match[1].split(","))
        assert extras <= set(project["optional-dependencies"]), f"pyproject.toml has no such extra: {match[1]}"
    elif words[1:3] == ["--force-reinstall", "--no-deps"]:
        optional = [one for extra in project["optional-dependencies"].values() for one in extra]
        name, _, number = words[3].partition("==")
        assert number
        assert name in {re.split(r"[^\w-]", one)[0] for one in optional}, f"{name} is in no extra"
    elif words[1:] == ["--no-deps", "thingsvision"]:
        return  # for a test, beside newer libraries than it asks for
    elif words[-2:] == ["-e", "."] and (len(words) == 3 or words[1] == "--extra-index-url"):
        return  # the project itself
    else:
        packages = {re.split(r"[^\w-]", one)[0] for one in project["dependencies"]}
        assert words[1:], "pip install what?"
        assert set(words[1:]) <= packages, f"{' '.join(words[1:])} is neither -e '.[EXTRA]' nor packages we depend on"


# Of several nodes; torchrun itself reads them.
NODE_FLAGS = (
    "--nnodes",
    "--max-restarts",
    "--rdzv-backend",
    "--rdzv-id",
    "--rdzv-endpoint",
    "--rdzv-conf",
    "--local-addr",
)


def check_torchrun(words: list[str], is_whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun's own parser takes the flags, and the training composes."""
    flags = list(itertools.takewhile(lambda word: word.startswith("--"), words))
    given = dict(flag.split("=", 1) for flag in flags)
    assert set(given) <= {"--nproc-per-node", *NODE_FLAGS}, f"{' '.join(flags)} has a flag that is not known here"
    assert "--nproc-per-node" in given, f"{' '.join(flags)} lacks --nproc-per-node=N"
    parsed = parse_torchrun(words)
    if "--nnodes" in given:
        assert parsed.rdzv_backend == "c10d", "several nodes meet by c10d"
        assert parsed.rdzv_endpoint, "all nodes must be told where they meet"
        assert parsed.rdzv_id, "all nodes must be told under which name they meet"
    size = int(given["--nproc-per-node"]) * int(given.get("--nnodes", "1").split(":")[-1])
    check_python(words[len(flags) :], is_whole, monkeypatch, size=size)


def check_command(words: list[str], is_whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises: anything but nothing, if the command cannot be run as it is."""
    program, rest = words[0], words[1:]
    if program == "python":
        check_python(rest, is_whole, monkeypatch)
    elif program == "torchrun":
        check_torchrun(rest, is_whole, monkeypatch)
    elif program == "make":
        assert re.search(rf"(?m)^{rest[0]}:", (ROOT / "Makefile").read_text()), f"make has no target {rest[0]}"
    elif program == "pip":
        check_pip(rest)
    elif program == "conda":
        file = OmegaConf.load(ROOT / "environment.yml")
        assert rest in (["env", "create", "-f", "environment.yml"], ["activate", file.name])
    elif program == "wandb":
        check_wandb(rest)
    else:
        assert program in OTHERS, f"{program} is not a program that this test knows"


COMPOSE, LOAD = hydra.compose, ConfigRepository.load_config
_CHOSEN: dict[tuple[str, ...], Any] = {}
_LOADED: dict[str, Any] = {}


def load_once(self: ConfigRepository, config_path: str) -> Any:
    """Reads a yaml only once; with `compose_quickly`, a minute becomes ten seconds."""
    if config_path not in _LOADED:
        _LOADED[config_path] = LOAD(self, config_path)
    return copy.deepcopy(_LOADED[config_path])


@contextmanager
def within_hydra() -> Iterator[None]:
    """The project's configuration, and quick composing."""
    register_schemas()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(hydra, "compose", compose_quickly)
        patch.setattr(ConfigRepository, "load_config", load_once)
        yield


def compose_quickly(config_name: str, overrides: list[str], return_hydra_config: bool = False) -> Any:
    """hydra.compose, but a choice of yamls is composed only once; values are then set by Hydra's own function."""
    loader = GlobalHydra.instance().config_loader()
    parsed = OverridesParser.create(loader).parse_overrides(overrides)
    if return_hydra_config or any(one.is_sweep_override() for one in parsed):
        return COMPOSE(config_name, overrides, return_hydra_config)
    choices = [str(one.input_line) for one in parsed if loader.repository.group_exists(one.key_or_group)]
    if (config_name, *choices) not in _CHOSEN:
        _CHOSEN[config_name, *choices] = COMPOSE(config_name, choices)
    composed = copy.deepcopy(_CHOSEN[config_name, *choices])
    ConfigLoaderImpl._apply_overrides_to_config([one for one in parsed if one.input_line not in choices], composed)
    return composed
