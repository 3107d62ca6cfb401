"""Random command lines for every command: each is accepted or refused in one sentence, and none ends in a traceback.

Keys, types and bounds are drawn from the schema, values within the bounds and far beyond, of other types, with odd
characters, with interpolations; so are keys that do not exist and yamls that are not there. Each line goes through
the whole command, from its arguments to where its work would begin. A training that is accepted must be able to
begin: its configuration is stored and read back, and where its network is small both towers take a step.

    python -m campaigns.overrides --count 2000 --seed 0      in the folder tests/
"""

import contextlib
import io
import os
import resource
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from campaigns import FAILURES, HITS, Say, run_alone
from helpers.command_checks import Reached, load_once, provide, script_of, stop, stop_where_it_works
from helpers.paths import ROOT
from twotower.command_line import command, start
from twotower.command_line.mistakes import list_keys_of
from twotower.command_line.start import COMPOSITION_ERRORS, list_groups_of
from twotower.config import SCHEMAS
from twotower.config.keys import Bounds
from twotower.config.presets import CONF
from twotower.config.stored_config import read_config
from twotower.data.dataset import DataSet, FileSplit
from twotower.data.synthetic import make_synthetic_dataset
from twotower.distributed.exchange import InProcessExchange
from twotower.model.layer_numbers import describe
from twotower.model.layer_table import count_parameters, plan
from twotower.model.tower import Tower, forward
from twotower.training import processes, ready_run
from twotower.training.optim import VelocitySGD
from twotower.training.ready_run import ReadyRun
from twotower.training.schedule import Schedule

SHORT, FULL = 60, 2000
SLOW_SECONDS = 5.0  # of this process's work, whatever else the machine does
LONGEST_SECONDS = 60  # of the same; then the attempt is given up
MOST_BYTES = 6 << 30  # of memory that an attempt may ask for, so that the machine survives it

ACCEPTED, SENTENCE, COMPOSED = "accepted", "refused in a sentence", "refused in a sentence from Hydra's text"
UNCLEAR, SLOW, TRACEBACK = "refused in several lines", "slower than 5 s", "traceback"
OUTCOMES = (ACCEPTED, SENTENCE, COMPOSED, UNCLEAR, SLOW, TRACEBACK)

NUM_CLASSES, NUM_IMAGES = 12, 480  # of the data set that an accepted training is given
MOST_PARAMETERS, MOST_PRODUCTS = 3_000_000, 300_000_000  # of a network that takes a step here

# What each command is given so that it gets beyond "give a run"; the drawn overrides stand behind it.
GIVEN = {
    "benchmark": ["network.width=0.0625"],
    "dashboard": [],
    "describe": ["network.width=0.0625"],
    "doctor": ["network.width=0.0625"],
    "evaluate": ["RUN"],
    "export": ["RUN"],
    "features": ["RUN", "DIR", "layers=[fc7]", "output=features"],
    "figure": ["figure3", "RUN"],
    "identify": ["RUN"],
    "labbook": ["RUN"],
    "memory": ["network.width=0.0625"],
    "predict": ["RUN", "cat.jpg"],
    "prepare_data": ["source=folder", "source.root=DIR", "output=set"],
    "report": ["RUN"],
    "timeline": ["network.width=0.0625"],
    "volume": ["network.width=0.0625"],
    "two_gpu": ["network.width=0.0625", "optim.batch_size=2", "machine.device=cpu"],
}
SHARE_OF_TRAINING = 0.5  # of all attempts, because most keys are those of the training

EXTREME = (
    *("0", "-0.0", "1", "-1", "2", "3", "0.5", "1e-3", "1e-320", "-1e-9", "1e9", "1e38", "1e39", "1e308", "-1e308"),
    *("1e999", "inf", "-inf", "nan", "2147483648", "-2147483649", "9223372036854775808", "1" + 40 * "0", "0x10"),
)
OTHER_TYPES = ("abc", "true", "null", "[]", "[1,2]", "[[]]", "{}", "{a:1}", "{a:{b:2}}", "''", "1.5", "1_000", "2012")
ODD_TEXTS = (
    *("ü", "a b", "../../x", "/", "a/b", ".", "..", "~", "a,b", "=", "a=b", "%s", "\\", "'", '"', "#", "*", "[", "{"),
    *("\t", "\n", "\x1b[31m", "\x7f", "\u202e", "\udcff", "😀", "e\u0301", " ", "$HOME", "-1", "null", "NaN", "???"),
    *("x" * 300, "é" * 130, "None", "auto", "none", "step-1", "0"),
)
INTERPOLATIONS = (
    *("${seed}", "${nothing}", "${", "$", "${}", "${oc.env:HOME}", "${oc.env:NO_SUCH_VARIABLE}", "${name}"),
    *(
        "${oc.decode:x}",
        "${oc.env:NO_SUCH_VARIABLE,0.1}",
        "${no_resolver:1}",
        "${hydra:job.num}",
        "${.}",
        "${..seed}",
    ),
    *("${..seed}", "${network.width}", "${optim}", "${oc.create:{a:1}}", "a${seed}b", "\\${seed}", "${now:%Y}"),
)
UNKNOWN = (
    "new",
    "optim.lr",
    "network.layers.conv9.kernels",
    "network.layers.conv1.sise",
    "seed.x",
    "input.std.0",
    "",
)


@dataclass(frozen=True)
class Key:
    """A key of a command, with what the schema says of its value."""

    name: str
    kind: Any
    bounds: Bounds


def list_schema_keys(group: type, prefix: str = "") -> Iterator[Key]:
    """Every key below a group of the schema; of a network's rows those of conv1, conv3 and fc8."""
    bounds = {entry.name: entry.metadata.get("bounds", Bounds()) for entry in fields(group)}
    for name, kind in list_keys_of(group).items():
        inner = get_args(kind)
        if is_dataclass(kind) and isinstance(kind, type):
            yield from list_schema_keys(kind, f"{prefix}{name}.")
            yield Key(prefix + name, str, Bounds())  # the whole group, as one value
        elif get_origin(kind) is dict and is_dataclass(inner[1]):
            for row in ("conv1", "conv3", "fc8"):
                yield from list_schema_keys(inner[1], f"{prefix}{name}.{row}.")
        else:
            yield Key(prefix + name, kind, bounds[name])


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


class Draw:
    """The draws of one attempt."""

    def __init__(self, seed: int, number: int) -> None:
        self.stream = np.random.default_rng([seed, number])

    def one(self, values: Any) -> Any:
        return values[int(self.stream.integers(len(values)))]

    def happens(self, probability: float) -> bool:
        return bool(self.stream.random() < probability)

    def number_within(self, bounds: Bounds, is_whole: bool) -> str:
        """A number that the bounds allow, often one at their edges."""
        low = next((limit for limit in (bounds.least, bounds.above) if limit is not None), -10)
        high = next((limit for limit in (bounds.most, bounds.below) if limit is not None), low + 100)
        near = min(high, low + self.one((1, 10, 300)))
        value = self.one((low, high, near, low + (near - low) * self.stream.random()))
        return str(int(value) | int(bounds.odd)) if is_whole else repr(float(value))

    def number_beyond(self, bounds: Bounds, is_whole: bool) -> str:
        """A number that the bounds refuse, if there are any."""
        low = next((limit for limit in (bounds.least, bounds.above) if limit is not None), None)
        high = next((limit for limit in (bounds.most, bounds.below) if limit is not None), None)
        beyond = [value for value in (low and low - 1, high and high + 1, low and low - 1e-9) if value is not None]
        value = self.one(beyond or [-1])
        return str(int(value)) if is_whole else repr(float(value))

    def fitting(self, key: Key) -> str:
        """A value of the key's own type, within or beyond its bounds."""
        kind, bounds = key.kind, key.bounds
        if get_origin(kind) is list:
            entries = [self.fitting(Key(key.name, get_args(kind)[0], bounds)) for _ in range(self.one((0, 1, 2, 3)))]
            return f"[{','.join(entries)}]"
        if get_origin(kind) is dict:
            return f"{{{self.one(('train', 'a', '1', 'null'))}:{self.fitting(Key(key.name, str, bounds))}}}"
        if bounds.choices:
            return str(self.one((*bounds.choices, "something_else")))
        if kind is bool:
            return str(self.one(("true", "false", "True", "1", "0", "yes", "off")))
        if kind in (int, float):
            draw = self.number_within if self.happens(0.6) else self.number_beyond
            return draw(bounds, kind is int)
        return str(self.one(("a", "some/where", "x.png", "x.json", "1", "RUN", "conv1", "fc7")))

    def value(self, key: Key) -> str:
        """What stands behind the equals sign."""
        way = self.one(("fitting", "fitting", "fitting", "extreme", "extreme", "other", "odd", "odd", "interpolated"))
        if way == "fitting":
            return self.fitting(key)
        if way == "extreme":
            text = str(self.one(EXTREME))
            return f"[{text},{text},{text}]" if get_origin(key.kind) is list and self.happens(0.7) else text
        if way == "other":
            return str(self.one(OTHER_TYPES))
        if way == "odd":
            text = str(self.one(ODD_TEXTS))
            text = _quoted(text) if self.happens(0.8) else text
            return f"[{text}]" if get_origin(key.kind) is list and self.happens(0.7) else text
        text = str(self.one(INTERPOLATIONS))
        return _quoted(text) if self.happens(0.3) else text

    def override(self, keys: list[Key], groups: list[str]) -> str:
        """One argument: mostly a key with a value, sometimes a yaml, or what is neither."""
        way = self.stream.random()
        key = self.one(keys)
        if way < 0.12 and groups:
            group = self.one(groups)
            options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
            return f"{group}={self.one((*options, *options, 'nothing', 'null', 'a/b', '[]', '??'))}"
        if way < 0.18:
            name = self.one(UNKNOWN) if self.happens(0.5) else key.name + self.one((".x", "s", ".", "[0]", "@x"))
            return f"{self.one(('', '+', '++', '~'))}{name}={self.value(key)}"
        if way < 0.22:
            return str(self.one((f"~{key.name}", f"+{key.name}", key.name, "=", "x", "a=b=c", "''", "~", "+=1")))
        return f"{self.one(('', '', '', '', '', '', '+', '++'))}{key.name}={self.value(key)}"

    def command_line(self, keys: dict[str, list[Key]]) -> list[str]:
        """The name of a launch script, and its arguments."""
        others = sorted(set(keys) - {"two_gpu"})
        script = "two_gpu" if self.happens(SHARE_OF_TRAINING) else self.one(others)
        groups = list_groups_of(_yaml_of(script))
        drawn = [self.override(keys[script], groups) for _ in range(self.one((1, 1, 1, 2, 3)))]
        return [script, *GIVEN[script], *drawn]


def _yaml_of(script: str) -> str:
    return "config" if script == "two_gpu" else script


def _stand_in(data: Any, **_: Any) -> DataSet:
    """A data set as `prepare` returns it, of the size that is asked for, without any image."""
    if data.kind == "synthetic":
        return make_synthetic_dataset(data.num_train, data.num_val, data.num_classes)
    labels = np.arange(NUM_IMAGES, dtype=np.int64) % NUM_CLASSES
    split = FileSplit(Path(), [], labels)
    names = [f"class{index}" for index in range(NUM_CLASSES)]
    return DataSet(names, split, split, None, np.ones(3), np.eye(3), size=data.size)


def begin_training(ready: ReadyRun) -> None:
    """What a training does first: it stores its configuration, follows its schedule and takes a step in each tower.

    Raises: AssertionError if the stored configuration reads as another one; anything if the training cannot begin.
    """
    config = ready.config
    ready.run_dir.mkdir(parents=True, exist_ok=True)
    (ready.run_dir / "config.yaml").write_bytes(OmegaConf.to_yaml(OmegaConf.structured(config)).encode())
    assert read_config(ready.run_dir) == config, "the stored configuration reads as another one"
    schedule = Schedule(config.schedule, config.optim.learning_rate, config.network)
    for epoch in (0, 1, config.schedule.epochs):
        rates = schedule.rates(epoch)
        schedule.end_epoch(epoch, 50.0)
        assert rates.describe()
        assert all(np.isfinite([*rates.weights.values(), *rates.biases.values()])), "a rate is not finite"
    classes = config.data.num_classes if config.data.kind == "synthetic" else NUM_CLASSES
    rows, batch = plan(config.network, classes), 2
    products = sum(sum(layer.multiply_adds) for layer in describe(config.network, classes, batch))
    if count_parameters(rows) > MOST_PARAMETERS or products > MOST_PRODUCTS:
        return
    towers = [Tower(config.network, classes, tower, config.seed) for tower in range(config.network.towers)]
    for tower in towers:
        tower.train()
        tower.at_step(0, slice(0, batch), batch)
    images = torch.from_numpy(np.random.default_rng(0).normal(0, 50, (batch, 3, *2 * [config.network.image_size])))
    exchange = InProcessExchange(config.network.exchange_precision)
    loss = F.cross_entropy(forward(towers, images.float(), exchange), torch.zeros(batch, dtype=torch.int64))
    loss.backward()
    rates = schedule.rates(0)
    for tower in towers:
        optim, network = config.optim, config.network
        rule = VelocitySGD(
            tower.paper_named_parameters(),
            optim.momentum,
            optim.weight_decay,
            network.bias_rate,
            network.bias_decay,
            optim.rule,
        )
        rule.set_rates(rates.weights, rates.biases)
        rule.step()


class TooLongError(BaseException):
    """An attempt has worked for longer than `LONGEST_SECONDS`."""


class Accepted(BaseException):
    """A training would start its processes here."""

    def __init__(self, ready: ReadyRun) -> None:
        self.ready = ready


def _start(ready: ReadyRun) -> None:
    raise Accepted(ready)


def _give_up(*_: Any) -> None:
    raise TooLongError


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Bounds the memory of this process and the time of its work: what takes too much of either is an error."""
    _, hard = usual = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGVTALRM, _give_up)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MOST_BYTES, hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, usual)


@contextlib.contextmanager
def _prepared() -> Iterator[pytest.MonkeyPatch]:
    """The commands with their work taken out, and quick reading of yamls."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="campaign-overrides-") as scratch:
        for variable in [name for name in os.environ if name.startswith(("WANDB", "TORCHELASTIC"))]:
            patch.delenv(variable)
        patch.setenv("COLUMNS", "200")
        patch.setattr(ConfigRepository, "load_config", load_once)
        # Hydra composes everything once more only to learn this.
        patch.setattr(Hydra, "get_mode", lambda *_, **__: RunMode.RUN)
        patch.setattr(start, "_defaults_of", cache(start._defaults_of))
        patch.setattr(command, "catch_stops", lambda: None)
        patch.setattr(processes, "start_towers", _start)
        patch.setattr(ready_run, "prepare", _stand_in)
        for name in GIVEN:
            module = script_of(name)
            if name == "two_gpu":
                patch.setattr(module, "catch_stops", lambda: None)
                # Hydra looks for conf/ from the file of a script, and from elsewhere for a module.
                patch.setattr(module.compose_and_run.__wrapped__, "__module__", "__main__")
            elif name == "describe":  # so cheap that all of it is run, but for the drawing
                patch.setattr(module, "draw_figure2", stop)
            else:
                stop_where_it_works(name, module, patch)
        # Paths that lead upwards stay within the scratch folder.
        here = Path(scratch) / "a" / "b" / "c" / "d"
        here.mkdir(parents=True)
        patch.chdir(here)
        with _limits():
            yield patch


def _call(module: ModuleType, arguments: list[str]) -> None:
    """Runs a command as the shell would, up to where its work begins. Raises: SystemExit and whatever goes wrong."""
    usual = sys.argv
    sys.argv = [str(ROOT / "launch" / f"{module.__name__}.py"), *arguments]
    try:
        module.main()
    except Accepted as accepted:
        begin_training(accepted.ready)
    except Reached:
        return
    finally:
        sys.argv = usual
        if hasattr(module, "sweep"):
            module.sweep = None


def _judge(module: ModuleType, arguments: list[str]) -> tuple[str, str]:
    """The outcome of one command line, and what was said."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            _call(module, arguments)
    except SystemExit as end:
        text = str(end.code)
        if not text.startswith("error: "):
            return UNCLEAR, f"exit status {text}, and it printed {said.getvalue()!r}"
        if "\n" in text.strip():
            return UNCLEAR, text
        return (COMPOSED if isinstance(end.__cause__, COMPOSITION_ERRORS) else SENTENCE), text
    except TooLongError:
        return SLOW, f"was given up after {LONGEST_SECONDS} s of work"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        return TRACEBACK, f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {error}"
    return ACCEPTED, ""


def try_one(arguments: list[str]) -> tuple[str, str]:
    """The outcome of a launch script with its arguments in an empty folder, and what was said."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory(dir=here) as folder:
        os.chdir(folder)
        try:
            provide(["RUN", "DIR", "cat.jpg"])
            began = time.process_time()
            signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST_SECONDS)
            outcome, said = _judge(script_of(arguments[0]), arguments[1:])
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            seconds = time.process_time() - began
        finally:
            os.chdir(here)
    if outcome != TRACEBACK and seconds > SLOW_SECONDS:
        return SLOW, f"{seconds:.1f} s of work, {outcome}: {said}"
    return outcome, said


def run(count: int, seed: int, say: Say, show: tuple[str, ...] = ()) -> dict[str, int]:
    """Tries `count` command lines that follow from `seed`. Returns how many had which outcome; one refused is a hit.

    Args:
        say: told of each failure, with the command line that shows it again.
        show: further outcomes to tell of.
    """
    schemas = {script: SCHEMAS[_yaml_of(script)] for script in GIVEN}
    assert {_yaml_of(script) for script in GIVEN} == set(SCHEMAS), "a command is missing in GIVEN"
    keys = {script: list(list_schema_keys(schema)) for script, schema in schemas.items()}
    counts: Counter[str] = Counter()
    with _prepared():
        for script, given in GIVEN.items():
            assert try_one([script, *given]) == (ACCEPTED, ""), f"launch/{script}.py takes nothing here"
        for number in range(count):
            arguments = Draw(seed, number).command_line(keys)
            outcome, said = try_one(arguments)
            counts[outcome] += 1
            if outcome in (UNCLEAR, SLOW, TRACEBACK, *show):
                line = shlex.join(["python", f"launch/{arguments[0]}.py", *arguments[1:]])
                say(f"{outcome}: {line.encode('utf-8', 'backslashreplace').decode()}\n    {said}")
    failures = counts[UNCLEAR] + counts[SLOW] + counts[TRACEBACK]
    return {outcome: counts[outcome] for outcome in OUTCOMES} | {HITS: count - counts[ACCEPTED], FAILURES: failures}


if __name__ == "__main__":
    sys.exit(run_alone("overrides", run, FULL))
