"""From a composed configuration to running towers: checks, data, the run's folder, then the towers' processes.

Everything that can be refused is refused before a process is started (with `torchrun`, by rank 0 for all).
"""

import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

from twotower.config import Config, check
from twotower.config.frozen import freeze
from twotower.config.places import from_here
from twotower.data.choose_loader import check_loader, describe_loader, notice_fallback
from twotower.data.crops import check_crops
from twotower.data.load_data import load
from twotower.data.order import steps_per_epoch
from twotower.data.preparing.first_use import prepare
from twotower.distributed.transport import TowerLostError
from twotower.distributed.world import (
    Place,
    TowersDifferError,
    World,
    check_even,
    choose_device,
    die_with_parent,
    open_world,
    stay_on_this_host,
    threads_per_process,
)
from twotower.ground.words import counted
from twotower.model.table import count_parameters, plan
from twotower.runs import checkpoint
from twotower.runs.failure import forget_failure, note_failure, read_failure
from twotower.runs.journal import Journal
from twotower.runs.mirrors.open_mirrors import check_mirrors
from twotower.runs.mirrors.wandb_settings import settle
from twotower.runs.rundir import Home, check_resumable, hold_home, keep_mean
from twotower.training.schedule import Schedule
from twotower.training.trainer import NonFiniteLossError, Trainer, identity, total_steps
from twotower.weights.transfer import locate, plan_inheritance

GRACE_SECONDS = 10.0  # that a process gets to close its journal

# Errors that a person can understand and mend. All others are ours and are shown with their traceback.
EXPLAINED = (ValueError, OSError, TowerLostError, TowersDifferError, NonFiniteLossError)


@dataclass(frozen=True)
class Job:
    """A run that is ready to start."""

    config: Config
    run_dir: Path
    resume_from: Path | None
    finished: bool = False


@contextmanager
def get_ready(config: Config, num_replicas: int) -> Iterator[Job]:
    """Checks the configuration, prepares the data, makes the run's folder, and holds it while the block lasts.

    Raises: ValueError in one sentence for anything that cannot be run, HeldError if the run is being trained.
    """
    check(config)
    check_loader(config.input.loader, config.machine.loader_device)
    num_classes_later = 2  # widths and sizes can be checked before the data is known
    plan(config.network, num_classes_later)
    Schedule(config.schedule, config.optim.learning_rate, config.network)
    if config.initial_weights.path is not None:
        # The last checkpoint is chosen once for all processes, because that run may still be training.
        path = locate(config.initial_weights.path)
        config = freeze(replace(config, initial_weights=replace(config.initial_weights, path=path)))
    with hold_home(config) as home:
        yield _make_job(config, home, num_replicas)


def _make_job(config: Config, home: Home, num_replicas: int) -> Job:
    """In a folder that is held. Raises: ValueError."""
    config = freeze(replace(config, logging=settle(config.logging, home.run_dir)))
    check_mirrors(config.logging)
    dataset = prepare(config.data, shown_input=config.input, loader=config.input.loader)
    plan(config.network, len(dataset.classes))
    check_crops(config.input, dataset.size)
    if home.resume_from is None:
        plan_inheritance(config.initial_weights, config.network, dataset.classes)
    steps = steps_per_epoch(len(dataset.train), config.optim.batch_size, num_replicas)
    if home.resume_from is not None:
        step = check_resumable(
            home.resume_from, config, dataset.classes, identity(config, num_replicas, dataset)
        ).step
        same_run = home.resume_from.parent == home.run_dir / "checkpoints"
        finished = same_run and (home.run_dir / "summary.json").exists()
        if finished and step >= total_steps(config, steps):
            keep_mean(home.run_dir, dataset)
            print(f"{home.run_dir} is finished already.")
            return Job(config, home.run_dir, None, finished=True)
        if same_run:
            checkpoint.forget_after(home.run_dir / "checkpoints", step)
    (home.run_dir / "summary.json").unlink(missing_ok=True)
    forget_failure(home.run_dir)
    keep_mean(home.run_dir, dataset)
    return Job(config, home.run_dir, home.resume_from)


def _train(job: Job, world: World) -> None:
    dataset = load(job.config.data)
    trainer = Trainer(job.config, world, dataset, job.run_dir, job.resume_from)
    journals: list[Journal] = []

    def open_journal() -> str:
        journals.append(Journal(job.config, job.run_dir, trainer.step, trainer.total_steps, dataset.picture))
        return "open"

    world.from_first("journal", open_journal)
    journal = journals[0] if journals else None
    exit_code = 1
    try:
        if journal is not None:
            loader = job.config.input.loader
            images = "random tensors for images" if dataset.is_synthetic else f"images {describe_loader(loader)}"
            journal.say(f"{world.describe()}, {images}")
            notice = None if dataset.is_synthetic else notice_fallback(loader)
            if notice is not None:
                journal.say(notice)
            parameters = count_parameters(trainer.tower.rows)
            begin = "from random weights" if trainer.inheritance is None else "from other weights"
            begin = f"from step {trainer.step}" if trainer.step else begin
            journal.say(
                f"{job.config.network.name}, width {job.config.network.width:g}, {parameters:,} parameters, "
                f"{counted(len(dataset.classes), 'class', 'classes')}, {len(dataset.train)} + {len(dataset.val)} "
                f"images, {counted(trainer.total_steps, 'step')} of {counted(trainer.global_batch, 'image')}, "
                f"{begin}\nrun directory: {job.run_dir}"
            )
            if trainer.inheritance is not None:
                journal.say(trainer.inheritance.describe())
        summary = trainer.run(journal)
        if journal is not None:
            journal.finish(trainer.step, summary)
            forget_failure(job.run_dir)
        exit_code = 0
    finally:
        if journal is not None:
            journal.close(exit_code)


def explain(error: BaseException, place: Place, run_dir: Path | None = None) -> None:
    """Tells a person why this process stops, and notes it in the run's folder where there is one."""
    if isinstance(error, EXPLAINED):
        if place.rank != 0 and not isinstance(error, TowerLostError | OSError):
            # Every rank raises this error and only rank 0 prints it. The others wait, because torchrun kills all
            # ranks as soon as one of them ends.
            with suppress(KeyboardInterrupt):  # sent by torchrun once rank 0 has ended
                time.sleep(2)
            return
        # failure.json is written before anything is printed, and an earlier entry is kept: that one is the cause, and
        # a lost peer only its effect.
        if run_dir is not None and not (isinstance(error, TowerLostError) and read_failure(run_dir) is not None):
            note_failure(run_dir, str(error))
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        if run_dir is not None:
            note_failure(run_dir, f"{type(error).__name__}: {error}")
        print(f"error in tower {place.tower} of replica {place.replica}:", file=sys.stderr)
        traceback.print_exception(error)


def catch_stops() -> None:
    """Lets Ctrl-C, a closed terminal and a polite kill end this process cleanly, each as a KeyboardInterrupt."""
    stopped = False

    def interrupt(_signal: int, _frame: Any) -> None:
        # The first signal runs every `finally`, which closes the journal; a second one must not disturb that.
        nonlocal stopped
        if not stopped:
            stopped = True
            raise KeyboardInterrupt

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), interrupt)


def _run_tower(local_rank: int, job: Job, size: int, rendezvous: str) -> None:
    """The main function of a process that `start_towers` started."""
    die_with_parent()
    catch_stops()
    place = Place(local_rank, size, local_rank, size, job.config.network.towers)
    try:
        with open_world(job.config.machine, place, rendezvous) as world:
            _train(job, world)
    except KeyboardInterrupt:
        os._exit(130)
    except Exception as error:
        explain(error, place, job.run_dir)
        # sys.exit would wait for the threads of a broken process group, which may never end.
        os._exit(1)


def start_towers(job: Job) -> dict[str, Any]:
    """Starts a process for each tower of each replica on this host, and waits for them.

    Returns what summary.json holds. Raises: ChildProcessError if a process failed, after it explained itself.
    """
    towers = job.config.network.towers
    size = towers * job.config.machine.replicas
    choose_device(job.config.machine, Place(0, size, 0, size, towers))
    # torch would print a line for each process that it ends, and the one that failed has said why already.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    # These are read when a process imports torch and when gloo looks for an interface.
    os.environ["OMP_NUM_THREADS"] = str(threads_per_process(job.config.machine, size))
    stay_on_this_host()
    # On Windows a killed process may hold the rendezvous file for a moment longer.
    with tempfile.TemporaryDirectory(prefix="twotower-", ignore_cleanup_errors=True) as folder:
        context = mp.start_processes(
            _run_tower, (job, size, str(Path(folder) / "rendezvous")), size, join=False, start_method="spawn"
        )
        try:
            while not context.join(timeout=1.0, grace_period=GRACE_SECONDS):
                pass
        except mp.ProcessExitedException as error:
            if error.signal_name is not None:
                tower = error.error_index % towers
                reason = (
                    f"Tower {tower} (process {error.error_pid}) was ended by {error.signal_name}; start again with "
                    "resume=auto to go on from the last checkpoint."
                )
                note_failure(job.run_dir, reason)
                raise ChildProcessError(reason) from None
            raise ChildProcessError("") from None
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.terminate()
            for process in context.processes:
                process.join(GRACE_SECONDS)
                if process.is_alive():
                    process.kill()
    summary: dict[str, Any] = json.loads((job.run_dir / "summary.json").read_text())
    return summary


def run(config: Config) -> dict[str, Any]:
    """One whole run in processes of its own. Returns what summary.json holds.

    Raises: ValueError, OSError, ChildProcessError.
    """
    size = config.network.towers * config.machine.replicas
    choose_device(config.machine, Place(0, size, 0, size, config.network.towers))
    with get_ready(config, config.machine.replicas) as job:
        if job.finished:
            summary: dict[str, Any] = json.loads((job.run_dir / "summary.json").read_text())
            return summary
        return start_towers(job)


def run_as_worker(config: Config, place: Place) -> int:
    """The part of one process that torchrun started. Returns its exit status."""
    run_dir: Path | None = None
    try:
        check(config)
        place = replace(place, num_towers=config.network.towers)
        check_even(place.size, place.num_towers)
        die_with_parent()
        catch_stops()
        machine = replace(config.machine, replicas=place.size // place.num_towers)
        config = freeze(replace(config, machine=machine))
        with ExitStack() as stack, open_world(config.machine, place) as world:
            job = _job_from_first(config, world, stack)
            run_dir = job.run_dir
            if not job.finished:
                _train(job, world)
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        explain(error, place, run_dir)
        sys.stderr.flush()
        os._exit(1)


def _job_from_first(config: Config, world: World, stack: ExitStack) -> Job:
    """Rank 0 gets everything ready; the others learn where the run lives, or stop when it could not.

    Args:
        stack: rank 0 holds the run's folder until this is closed.
    """
    failure: list[Exception] = []
    ready: list[Config] = []  # rank 0 has one, with all that was filled in on the way

    def make() -> str:
        try:
            job = stack.enter_context(get_ready(config, world.num_replicas))
        except (ValueError, OSError) as error:
            failure.append(error)
            return json.dumps({"error": str(error)})
        ready.append(job.config)
        home = {
            "run_dir": str(job.run_dir.absolute()),
            "resume_from": str(job.resume_from.absolute()) if job.resume_from else "",
            "initial_weights": job.config.initial_weights.path,
        }
        return json.dumps(home | {"finished": job.finished})

    answer = json.loads(world.from_first("job", make))
    if "error" in answer:
        raise ValueError(answer["error"])
    resume_from = Path(answer["resume_from"]) if answer["resume_from"] else None
    config = ready[0] if ready else config
    weights = replace(config.initial_weights, path=answer["initial_weights"])
    return Job(
        freeze(replace(config, initial_weights=weights)),
        from_here(answer["run_dir"]),
        resume_from,
        answer["finished"],
    )
