"""Trains a network, one process for each of its towers.

python launch/two_gpu.py [KEY=VALUE ...]                          starts the processes itself
torchrun --nproc-per-node=2 launch/two_gpu.py [KEY=VALUE ...]     the same under torchrun; 4 processes: 2 replicas
python launch/two_gpu.py -m 'ablation=glob(*)' seed=0,1           a sweep: one job after the other
python launch/two_gpu.py -m hydra/launcher=slurm ...              or each as a job of a cluster
"""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig

from twotower.command_line.arguments import quoted
from twotower.command_line.mistakes import explain_composition
from twotower.command_line.start import (
    COMPOSITION_ERRORS,
    check_command_line,
    explained,
    list_groups_of,
    start,
    without_plus,
)
from twotower.config import register_schemas
from twotower.distributed.place import Place
from twotower.ground.processes import catch_stops
from twotower.ground.wording import on_one_line, word_error
from twotower.training.configure import check_single, configure
from twotower.training.explain import AlreadyExplainedError, explain
from twotower.training.launcher import check_launcher
from twotower.training.processes import run, run_as_worker
from twotower.training.sweep import Sweep

register_schemas()
HELP = ("-h", "--help")
MULTIRUN = ("-m", "--multirun", "hydra.mode=MULTIRUN")
sweep: Sweep | None = None  # planned for -m; launchers send it along with `compose_and_run`


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def compose_and_run(composed: Any) -> None:
    task = HydraConfig.get()
    overrides = list(task.overrides.task)
    if sweep is not None:
        sweep.run_job(task.job.num, lambda: configure(composed, overrides), run)
        return
    try:
        check_single(task.sweeper.get("params"), overrides)
        run(configure(composed, overrides))
    except AlreadyExplainedError:
        raise SystemExit(1) from None
    except COMPOSITION_ERRORS as error:  # some of which are ValueErrors in several lines
        raise SystemExit(f"error: {explain_composition(error)}") from error
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {on_one_line(word_error(error))}") from error


def plan_sweep(arguments: list[str]) -> Sweep:
    """Raises: SystemExit with a sentence for what cannot be composed or submitted."""
    overrides = [argument for argument in arguments if argument not in MULTIRUN and not argument.startswith("-")]
    try:
        check_launcher(overrides)
        check_command_line(overrides, "config")
        with hydra.initialize(version_base="1.3", config_path="../conf"), explained(overrides, "config"):
            return Sweep.plan(overrides)
    except COMPOSITION_ERRORS as error:
        raise SystemExit(f"error: {explain_composition(error)}") from error
    except ValueError as error:
        raise SystemExit(f"error: {on_one_line(str(error))}") from error


def main() -> None:
    global sweep
    sys.argv[1:] = without_plus(sys.argv[1:], list_groups_of("config"))
    place = Place.from_torchrun()
    flags = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    if place is not None and flags:
        explain(
            ValueError(f"{' '.join(flags)} is for python, not for torchrun: python launch/two_gpu.py {flags[0]}"),
            place,
        )
        sys.exit(1)
    if place is not None and place.size > 1:
        try:
            check_command_line(sys.argv[1:], "config")
            with hydra.initialize(version_base="1.3", config_path="../conf"), explained(sys.argv[1:], "config"):
                config = configure(hydra.compose("config", sys.argv[1:]), sys.argv[1:])
        except COMPOSITION_ERRORS as error:
            explain(ValueError(explain_composition(error)), place)
            sys.exit(1)
        except ValueError as error:
            explain(error, place)
            sys.exit(1)
        sys.exit(run_as_worker(config, place))
    # This is a world of one: plain `python`, or `torchrun` without --nproc-per-node, whose variables are not for the
    # towers.
    for name in [n for n in os.environ if n.startswith("TORCHELASTIC_")] + ["RANK", "WORLD_SIZE", "LOCAL_RANK"]:
        os.environ.pop(name, None)
    # Hydra reads its flags only where no override stands before them.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
    catch_stops()
    given = set(sys.argv[1:])
    if given.intersection(MULTIRUN) and not given.intersection(HELP):
        sweep = plan_sweep(sys.argv[1:])
        # Hydra's record of the command, which would be overwritten in sweeps/ by that of the next sweep.
        sys.argv.append(f"hydra.sweep.dir={quoted(str(sweep.folder))}")
    with hold_sweep():
        run_jobs()


@contextmanager
def hold_sweep() -> Iterator[None]:
    """The sweep's folder, if there is a sweep. Raises: SystemExit with a sentence if another process has it."""
    with ExitStack() as stack:
        try:
            if sweep is not None:
                stack.enter_context(sweep.alone())
        except (ValueError, OSError) as error:
            raise SystemExit(f"error: {on_one_line(word_error(error))}") from error
        yield


def run_jobs() -> None:
    """A single run, or all of a sweep's. Raises: SystemExit with the status of the command."""
    try:
        start(compose_and_run, "config")
    except KeyboardInterrupt:
        if sweep is None:
            how = "the same command with resume=auto goes on from the last checkpoint"
        elif sweep.elsewhere:
            how = "submitted jobs run on; once they have ended (scancel ends them), the same command does the rest"
        else:
            how = "the same command goes on from the last checkpoint"
        print(f"stopped; {how}", file=sys.stderr)
        if sweep is not None:
            sweep.print_table()
        sys.exit(130)
    except SystemExit as end:
        # A value does not compose, or the cluster has ended a submitted job.
        if sweep is not None and end.code and sweep.has_begun():
            sweep.print_table()
        raise
    if sweep is not None:
        sweep.print_table()
        sys.exit(sweep.exit_status())


if __name__ == "__main__":
    main()
