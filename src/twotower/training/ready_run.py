"""A run that is ready to start: everything that can be refused has been, and its folder is held.

Rank 0 gets it ready for all processes. Each other node gets the images ready on its own disk, and says what it has.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from twotower.config import Config, check
from twotower.config.frozen_config import freeze
from twotower.config.paths import from_here
from twotower.data.choose_loader import check_loader
from twotower.data.crops import check_crops
from twotower.data.decoded_squares import check_cache, decode_squares
from twotower.data.order import steps_per_epoch
from twotower.data.preparing.first_use import prepare
from twotower.distributed.world import World
from twotower.ground.files import remove_abandoned
from twotower.ground.wording import word_error
from twotower.model.layer_table import plan
from twotower.runs import checkpoint
from twotower.runs.changed_settings import check_changes
from twotower.runs.elsewhere import check_kept_here, forget_elsewhere
from twotower.runs.failure import forget_failure
from twotower.runs.mirrors.open_mirrors import check_mirrors
from twotower.runs.mirrors.wandb_settings import settle
from twotower.runs.rundir import Home, check_resumable, hold_home, keep_mean
from twotower.training.energy_use import ENERGY
from twotower.training.identity import count_steps, identify
from twotower.training.node import check_nodes
from twotower.training.schedule import Schedule
from twotower.weights.transfer import locate, plan_inheritance


@dataclass(frozen=True)
class ReadyRun:
    """A run that is ready to start."""

    config: Config
    run_dir: Path
    resume_from: Path | None
    finished: bool = False


@contextmanager
def get_ready(config: Config, num_replicas: int) -> Iterator[ReadyRun]:
    """Checks the configuration, prepares the data, makes the run's folder, and holds it while the block lasts.

    Raises: ValueError in one sentence for anything that cannot be run, HeldError if the run is being trained.
    """
    check(config)
    check_loader(config.input.loader, config.machine, config.input.cache)
    check_cache(config.input.cache, config.data)
    num_classes_later = 2  # widths and sizes can be checked before the data is known
    plan(config.network, num_classes_later)
    Schedule(config.schedule, config.optim.learning_rate, config.network)
    if config.initial_weights.path is not None:
        # The last checkpoint is chosen once for all processes, because that run may still be training.
        path = locate(config.initial_weights.path)
        config = freeze(replace(config, initial_weights=replace(config.initial_weights, path=path)))
    with hold_home(config) as home:
        if home.resume_from is None:
            check_kept_here(home.run_dir)
        yield _make_ready(config, home, num_replicas)


def _make_ready(config: Config, home: Home, num_replicas: int) -> ReadyRun:
    """In a folder that is held. Raises: ValueError."""
    config = freeze(replace(config, logging=settle(config.logging, home.run_dir)))
    check_mirrors(config.logging)
    dataset = prepare(config.data, shown_input=config.input, loader=config.input.loader)
    plan(config.network, len(dataset.classes))
    check_crops(config.input, dataset.size)
    if config.input.cache != "none" and not dataset.is_synthetic:
        decode_squares(dataset)
    if home.resume_from is None:
        plan_inheritance(config.initial_weights, config.network, dataset.classes)
    steps = steps_per_epoch(len(dataset.train), config.optim.batch_size, num_replicas)
    same_run = home.resume_from is not None and home.resume_from.parent == home.run_dir / "checkpoints"
    if home.resume_from is not None:
        manifest = check_resumable(home.resume_from, config, dataset.classes, identify(config, num_replicas, dataset))
        checkpoint.check_can_go_on(home.resume_from, manifest, len(config.network.layers))
        check_changes(home.resume_from, home.run_dir, config, print)
        step = manifest.step
        finished = same_run and (home.run_dir / "summary.json").exists()
        if finished and step >= count_steps(config, steps):
            keep_mean(home.run_dir, dataset)
            print(f"{home.run_dir} is finished already.")
            return ReadyRun(config, home.run_dir, None, finished=True)
        if same_run:
            checkpoint.forget_after(home.run_dir / "checkpoints", step)
    checkpoint.forget_pending(home.run_dir / "checkpoints")
    for folder in (home.run_dir, *(path for path in home.run_dir.iterdir() if path.is_dir())):
        remove_abandoned(folder)
    (home.run_dir / "summary.json").unlink(missing_ok=True)
    if not same_run:  # it is of a run that came to no checkpoint
        (home.run_dir / ENERGY).unlink(missing_ok=True)
    forget_failure(home.run_dir)
    forget_elsewhere(home.run_dir)
    keep_mean(home.run_dir, dataset)
    return ReadyRun(config, home.run_dir, home.resume_from)


def receive_run(config: Config, world: World, stack: ExitStack) -> ReadyRun:
    """Rank 0 gets everything ready; the others learn where the run lives, or stop when it could not.

    Args:
        stack: rank 0 holds the run's folder until this is closed.
    """
    failure: list[Exception] = []
    own: list[Config] = []  # rank 0 has one, with all that was filled in on the way

    def make() -> str:
        try:
            ready = stack.enter_context(get_ready(config, world.num_replicas))
        except (ValueError, OSError) as error:
            failure.append(error)
            return json.dumps({"error": word_error(error)})
        own.append(ready.config)
        home = {
            "run_dir": str(ready.run_dir.absolute()),
            "resume_from": str(ready.resume_from.absolute()) if ready.resume_from else "",
            "initial_weights": ready.config.initial_weights.path,
        }
        return json.dumps(home | {"finished": ready.finished})

    answer = json.loads(world.from_first("job", make))
    if "error" in answer:
        raise ValueError(answer["error"])
    if len(world.nodes) > 1:
        check_nodes(own[0] if own else config, world)
    resume_from = Path(answer["resume_from"]) if answer["resume_from"] else None
    config = own[0] if own else config
    weights = replace(config.initial_weights, path=answer["initial_weights"])
    return ReadyRun(
        freeze(replace(config, initial_weights=weights)),
        from_here(answer["run_dir"]),
        resume_from,
        answer["finished"],
    )
