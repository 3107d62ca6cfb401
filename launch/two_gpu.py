"""Trains a network, one process for each of its towers.

python launch/two_gpu.py [overrides]                          starts the processes itself
torchrun --nproc-per-node=2 launch/two_gpu.py [overrides]     the same under torchrun; 4 processes: 2 replicas
python launch/two_gpu.py -m ablation=none,no_lrn seed=0,1     a sweep: one job after the other
"""

import os
import shlex
import sys
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from twotower.config import Config, register_schemas, resolve
from twotower.launch import catch_stops, explain, run, run_as_worker
from twotower.sweep import Sweep
from twotower.world import Place

register_schemas()
sweep = Sweep()


def check_ablation(config: Config, overrides: list[str]) -> None:
    """Raises: ValueError if the ablation changes nothing, as one without norms in a network that has none."""
    if config.ablation == "none":
        return
    without = [override for override in overrides if not override.startswith("ablation=")]
    plain = resolve(hydra.compose("config", [*without, "ablation=none"]))
    if all(getattr(plain, part) == getattr(config, part) for part in ("network", "input", "optim", "schedule")):
        raise ValueError(
            f"ablation={config.ablation} changes nothing in network={config.network.name} with these settings, so "
            "the run would stand under a wrong name; leave it out."
        )


def with_command(config: Config, overrides: list[str]) -> Config:
    """Notes in the configuration what starts the run again, without the folder that it went to."""
    places = ("run_dir=", "sweep_dir=", "resume=")
    kept = [override for override in overrides if not override.startswith(places)]
    config.command = shlex.join(["python", "launch/two_gpu.py", *kept])
    return config


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def compose_and_run(composed: Any) -> None:
    task = HydraConfig.get()
    overrides = list(task.overrides.task)

    def checked_run(config: Config) -> dict[str, Any]:
        check_ablation(config, overrides)
        return run(config)

    if task.mode == RunMode.MULTIRUN:
        given = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
        sweep.run_job(with_command(resolve(composed), overrides), overrides, given, checked_run)
        return
    try:
        checked_run(with_command(resolve(composed), overrides))
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}" if str(error) else 1) from error


def main() -> None:
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
            with hydra.initialize(version_base="1.3", config_path="../conf"):
                config = with_command(resolve(hydra.compose("config", sys.argv[1:])), sys.argv[1:])
                check_ablation(config, sys.argv[1:])
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            explain(ValueError(f"{error} {error.__cause__ or ''}"), place)
            sys.exit(1)
        sys.exit(run_as_worker(config, place))
    # A world of one: plain `python`, or `torchrun` without --nproc-per-node. Its variables are not for the towers.
    for name in [n for n in os.environ if n.startswith("TORCHELASTIC_")] + ["RANK", "WORLD_SIZE", "LOCAL_RANK"]:
        os.environ.pop(name, None)
    # Hydra reads its flags only where no override stands before them.
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
    catch_stops()
    try:
        compose_and_run()
    except KeyboardInterrupt:
        print("stopped; the same command with resume=auto goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    if sweep.outcomes:
        sweep.print_table()
        sys.exit(1 if sweep.num_failed else 0)


if __name__ == "__main__":
    main()
