"""The processes of a run, one for each tower of each replica: started here, or by torchrun."""

import json
import logging
import os
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

from twotower.config import Config, check
from twotower.config.frozen_config import freeze
from twotower.data.choose_loader import describe_loader, notice_fallback
from twotower.data.load_data import load
from twotower.distributed.place import (
    Place,
    check_even,
    check_room,
    choose_device,
    stay_on_this_host,
    threads_per_process,
)
from twotower.distributed.transport import TowerSilentError
from twotower.distributed.world import World, open_world
from twotower.ground.precision import check_precision
from twotower.ground.processes import catch_stops, die_with_parent, kill_stuck_siblings
from twotower.ground.wording import counted
from twotower.model.fused_steps import notice_steps
from twotower.model.layer_table import count_parameters
from twotower.runs.failure import forget_failure, note_failure
from twotower.runs.journal import Journal, SilentJournal
from twotower.training.explain import AlreadyExplainedError, explain
from twotower.training.ready_run import ReadyRun, get_ready, receive_run
from twotower.training.shared_folder import SEE_SECONDS, check_folder_is_shared
from twotower.training.trainer import Trainer

GRACE_SECONDS = 10.0  # time that a process gets to close its journal
# The same when another tower has failed. torch takes it twice, before it asks and before it kills, and a tower that
# has stopped answering is to be gone 15 seconds after machine.timeout_seconds.
GRACE_AFTER_FAILURE_SECONDS = 4.0


def _describe_start(trainer: Trainer, ready: ReadyRun) -> list[str]:
    """The first lines on the screen."""
    dataset, network, loader = trainer.dataset, ready.config.network, ready.config.input.loader
    cache = ready.config.input.cache
    images = "random tensors for images" if dataset.is_synthetic else f"images {describe_loader(loader, cache)}"
    notice = None if dataset.is_synthetic or cache != "none" else notice_fallback(loader)
    begin = "from random weights" if trainer.inheritance is None else "from other weights"
    begin = f"from step {trainer.step}" if trainer.step else begin
    lines = [
        f"{trainer.world.describe()}, {images}",
        notice,
        notice_steps() if trainer.world.device.type == "cpu" and trainer.tower.fuses_steps() else None,
        f"{network.name}, width {network.width:g}, {count_parameters(trainer.tower.rows):,} parameters, "
        f"{counted(len(dataset.classes), 'class', 'classes')}, {len(dataset.train)} + {len(dataset.val)} "
        f"images, {counted(trainer.total_steps, 'step')} of {counted(trainer.global_batch, 'image')}, "
        f"{begin}\nrun directory: {ready.run_dir}",
        None if trainer.inheritance is None else trainer.inheritance.describe(),
    ]
    return [line for line in lines if line is not None]


def _train(ready: ReadyRun, world: World) -> None:
    dataset = load(ready.config.data)
    trainer = Trainer(ready.config, world, dataset, ready.run_dir, ready.resume_from)
    journal = SilentJournal()

    def open_journal() -> str:
        nonlocal journal
        journal = Journal(ready.config, ready.run_dir, trainer.step, trainer.total_steps, dataset.picture)
        return "open"

    world.from_first("journal", open_journal)
    exit_code = 1
    try:
        if world.is_first:
            for line in _describe_start(trainer, ready):
                journal.say(line)
        summary = trainer.run(journal)
        journal.finish(trainer.step, summary)
        if world.is_first:
            forget_failure(ready.run_dir)
        exit_code = 0
    finally:
        journal.close(exit_code)


def _run_tower(local_rank: int, ready: ReadyRun, size: int, rendezvous: str) -> None:
    """The main function of a process that `start_towers` started."""
    die_with_parent()
    catch_stops()
    place = Place(local_rank, size, local_rank, size, ready.config.network.towers)
    try:
        with open_world(ready.config.machine, place, rendezvous) as world:
            _train(ready, world)
    except KeyboardInterrupt:
        os._exit(130)
    except Exception as error:
        explain(error, place, ready.run_dir)
        # sys.exit would wait for the threads of a broken process group, which may never end.
        os._exit(1)


def start_towers(ready: ReadyRun) -> dict[str, Any]:
    """Starts a process for each tower of each replica on this host, and waits for them.

    Returns the content of summary.json. Raises: ChildProcessError with the reason, AlreadyExplainedError.
    """
    towers = ready.config.network.towers
    size = towers * ready.config.machine.replicas
    choose_device(ready.config.machine, Place(0, size, 0, size, towers))
    # torch would print a line for each process that it ends, and the one that failed has said why already.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    # These are read when a process imports torch and when gloo looks for an interface.
    os.environ["OMP_NUM_THREADS"] = str(threads_per_process(ready.config.machine, size))
    stay_on_this_host()
    # On Windows a killed process may hold the rendezvous file for a moment longer.
    with tempfile.TemporaryDirectory(prefix="twotower-", ignore_cleanup_errors=True) as folder:
        context = mp.start_processes(
            _run_tower, (ready, size, str(Path(folder) / "rendezvous")), size, join=False, start_method="spawn"
        )
        try:
            while not context.join(timeout=1.0, grace_period=GRACE_AFTER_FAILURE_SECONDS):
                pass
        except mp.ProcessExitedException as error:
            if error.signal_name is not None:
                tower = error.error_index % towers
                reason = (
                    f"Tower {tower} (process {error.error_pid}) was ended by {error.signal_name}; start again with "
                    "resume=auto to go on from the last checkpoint."
                )
                note_failure(ready.run_dir, reason)
                raise ChildProcessError(reason) from None
            raise AlreadyExplainedError from None
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.terminate()
            for process in context.processes:
                process.join(GRACE_SECONDS)
                if process.is_alive():
                    process.kill()
    summary: dict[str, Any] = json.loads((ready.run_dir / "summary.json").read_text())
    return summary


def run(config: Config) -> dict[str, Any]:
    """One whole run in processes of its own. Returns the content of summary.json.

    Raises: ValueError, OSError, ChildProcessError.
    """
    check(config)
    size = config.network.towers * config.machine.replicas
    check_room(size)
    device, _ = choose_device(config.machine, Place(0, size, 0, size, config.network.towers))
    check_precision(config.machine.precision, device)
    with get_ready(config, config.machine.replicas) as ready:
        if ready.finished:
            summary: dict[str, Any] = json.loads((ready.run_dir / "summary.json").read_text())
            return summary
        return start_towers(ready)


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
            ready = receive_run(config, world, stack)
            run_dir = ready.run_dir
            if not ready.finished:
                check_folder_is_shared(ready.run_dir, world, min(SEE_SECONDS, machine.timeout_seconds / 2))
                _train(ready, world)
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        explain(error, place, run_dir)
        sys.stderr.flush()
        # torchrun's agent ends the other workers, too, but waits 30 seconds for one that answers no signal.
        if isinstance(error, TowerSilentError) and "TORCHELASTIC_RUN_ID" in os.environ:
            kill_stuck_siblings(GRACE_AFTER_FAILURE_SECONDS)
        os._exit(1)
