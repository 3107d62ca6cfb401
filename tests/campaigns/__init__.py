"""Campaigns: many random attempts to break the project, in which a number of failures must be 0.

A module of this folder is a campaign if it has `run(count, seed, say)`, which makes `count` attempts that follow from
`seed`, says each failure by `say`, and returns how many attempts had which outcome. Its entry "failures" must be 0;
"attempts" is their number where it is not `count`, and "hits" that of the attempts that met what they were to break.
It may also have `SHORT` and `FULL`, the number of attempts with and without `--short`. From the folder tests/:

    python -m campaigns --short                              every campaign, one table
    python -m campaigns.overrides --count 2000 --seed 0      one of them
"""

import argparse
import importlib
import pkgutil
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

from rich.console import Console
from rich.table import Table

FAILURES, ATTEMPTS, HITS = "failures", "attempts", "hits"
SHORT, FULL = 20, 200  # attempts of a campaign that does not say how many it makes

Say = Callable[[str], None]


def list_campaigns() -> dict[str, ModuleType]:
    """The campaigns of this folder by their names, sorted."""
    names = sorted(entry.name for entry in pkgutil.iter_modules(__path__) if not entry.name.startswith("_"))
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "run")}


@dataclass(frozen=True)
class Campaign:
    """What became of a campaign: its outcomes, or why it did not come to an end."""

    name: str
    count: int
    seed: int
    counts: Mapping[str, int]
    problem: str = ""

    @property
    def has_failed(self) -> bool:
        return bool(self.problem or self.counts[FAILURES])

    def describe(self) -> tuple[str, str, str]:
        """Its attempts, hits and failures."""
        if self.problem:
            return "", "", f"did not end: {self.problem}"
        hits = str(self.counts[HITS]) if HITS in self.counts else ""
        return str(self.counts.get(ATTEMPTS, self.count)), hits, str(self.counts[FAILURES])


def print_table(campaigns: Sequence[Campaign]) -> None:
    """Prints a row for each outcome of each campaign, and then one for each campaign."""
    outcomes = Table("campaign", "outcome", "number")
    summary = Table("campaign", "seed", ATTEMPTS, HITS, FAILURES)
    for column in (outcomes.columns[-1], *summary.columns[1:]):
        column.justify = "right"
    for one in campaigns:
        for outcome, number in one.counts.items():
            if outcome not in (FAILURES, ATTEMPTS, HITS):
                outcomes.add_row(one.name, outcome, str(number))
        outcomes.add_section()
        summary.add_row(one.name, str(one.seed), *one.describe())
    Console().print(outcomes)
    Console().print(summary)


def say_at_once(line: str) -> None:
    """Prints a line, also into a file, when it is known: the next attempt may be the one that never ends."""
    print(line, flush=True)


def run_one(name: str, count: int, seed: int, run: Callable[..., Mapping[str, int]], **options: str) -> Campaign:
    """Runs a campaign to its end, or to an error, which is said."""
    print(f"{name}: {count} attempts, seed {seed}", flush=True)
    try:
        return Campaign(name, count, seed, run(count, seed, say_at_once, **options))
    except Exception as error:  # any kind: the others go on, and the table says so
        traceback.print_exc()
        reason = next(iter(str(error).splitlines()), "")
        return Campaign(name, count, seed, {}, f"{type(error).__name__}: {reason}")


def run_alone(name: str, run: Callable[..., Mapping[str, int]], count: int, **choices: Sequence[str]) -> int:
    """The command of one campaign, started by itself. Returns its exit status.

    Args:
        count: attempts where none are asked for.
        choices: further options of the command, and what each may be; the first is taken where none is asked for.
    """
    parser = argparse.ArgumentParser(prog=f"python -m campaigns.{name}")
    parser.add_argument("--count", type=int, default=count, help="attempts (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random draws (%(default)s)")
    for option, values in choices.items():
        parser.add_argument(f"--{option}", choices=values, default=values[0], help="(%(default)s)")
    given = vars(parser.parse_args())
    done = run_one(name, given.pop("count"), given.pop("seed"), run, **given)
    print_table([done])
    return int(done.has_failed)


def run_all(arguments: Sequence[str]) -> int:
    """The command of all campaigns. Returns its exit status: 1 if any attempt failed, or none was made."""
    parser = argparse.ArgumentParser(prog="python -m campaigns", description="Runs every campaign of this folder.")
    parser.add_argument("--short", action="store_true", help="few attempts of each")
    parser.add_argument("--seed", type=int, default=0, help="of the random draws (%(default)s)")
    given = parser.parse_args(arguments)
    done = []
    for name, module in list_campaigns().items():
        count = getattr(module, "SHORT", SHORT) if given.short else getattr(module, "FULL", FULL)
        done.append(run_one(name, count, given.seed, module.run))
    print_table(done)
    return int(not done or any(one.has_failed for one in done))
