"""Campaigns: many random attempts to break the project, in which a number of failures must be 0.

A module of this folder is a campaign if it has `run(count, seed, say)`, which makes `count` attempts that follow from
`seed`, says each failure by `say`, and returns how many attempts had which outcome. Its entry "failures" must be 0.
It may also have `SHORT` and `FULL`, the number of attempts with and without `--short`. From the folder tests/:

    python -m campaigns --short                              every campaign, one table
    python -m campaigns.overrides --count 2000 --seed 0      one of them
"""

import argparse
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

from rich.console import Console
from rich.table import Table

FAILURES = "failures"
SHORT, FULL = 20, 200  # attempts of a campaign that does not say how many it makes

Say = Callable[[str], None]


def list_campaigns() -> dict[str, ModuleType]:
    """The campaigns of this folder by their names, sorted."""
    names = sorted(entry.name for entry in pkgutil.iter_modules(__path__) if not entry.name.startswith("_"))
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "run")}


def print_outcomes(outcomes: Mapping[str, Mapping[str, int]]) -> None:
    """Prints a row for each outcome of each campaign."""
    table = Table("campaign", "outcome", "attempts")
    table.columns[-1].justify = "right"
    for name, counts in outcomes.items():
        for outcome, number in counts.items():
            table.add_row(name, outcome, str(number))
        table.add_section()
    Console().print(table)


def say_at_once(line: str) -> None:
    """Prints a line, also into a file, when it is known: the next attempt may be the one that never ends."""
    print(line, flush=True)


def run_alone(name: str, run: Callable[[int, int, Say], dict[str, int]], count: int) -> int:
    """The command of one campaign, started by itself. Returns its exit status.

    Args:
        count: attempts where none are asked for.
    """
    parser = argparse.ArgumentParser(prog=f"python -m campaigns.{name}")
    parser.add_argument("--count", type=int, default=count, help="attempts (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random draws (%(default)s)")
    given = parser.parse_args()
    counts = run(given.count, given.seed, say_at_once)
    print_outcomes({name: counts})
    return 1 if counts[FAILURES] else 0


def run_all(arguments: Sequence[str]) -> int:
    """The command of all campaigns. Returns its exit status: 1 if any attempt failed, or none was made."""
    parser = argparse.ArgumentParser(prog="python -m campaigns", description="Runs every campaign of this folder.")
    parser.add_argument("--short", action="store_true", help="few attempts of each, as in the tests")
    parser.add_argument("--seed", type=int, default=0, help="of the random draws (%(default)s)")
    given = parser.parse_args(arguments)
    outcomes: dict[str, Mapping[str, int]] = {}
    for name, module in list_campaigns().items():
        count = getattr(module, "SHORT", SHORT) if given.short else getattr(module, "FULL", FULL)
        print(f"{name}: {count} attempts, seed {given.seed}", flush=True)
        outcomes[name] = module.run(count, given.seed, say_at_once)
    print_outcomes(outcomes)
    return 1 if not outcomes or any(counts[FAILURES] for counts in outcomes.values()) else 0
