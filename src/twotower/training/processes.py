"""The processes of a run, one for each tower of each replica: started here, or by torchrun."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

from twotower.config import Config, check
from twotower.data.choose_loader import describe_loader, notice_fallback
from twotower.data.load_data import load
from twotower.distributed.agreement import NOT_LOOKED
from twotower.distributed.place import (
    Place,
    check_agent,
    check_even,
    check_room,
    choose_device,
    stay_on_this_host,
    threads_per_process,
)
from twotower.distributed.transport import TowerSilentError
from twotower.distributed.world import World, open_world
from twotower.ground.precision import check_precision
from twotower.ground.processes import (
    STOPPED,
    catch_stops,
    die_with_parent,
    ignore_stops,
    interrupts_held,
    kill_stuck_siblings,
    stops_held,
)
from twotower.ground.scratch import remove_abandoned_scratch, scratch_folder
from twotower.ground.wording import counted
from twotower.model.fused_steps import notice_steps
from twotower.model.layer_table import count_parameters
from twotower.runs.failure import forget_failure, note_failure
from twotower.runs.journal import Journal, SilentJournal
from twotower.runs.rundir import find_kept_step
from twotower.runs.summary import read_summary
from twotower.training.explain import AlreadyExplainedError, explain
from twotower.training.identity import share_batch
from twotower.training.ready_run import ReadyRun, get_ready, receive_run
from twotower.training.shared_folder import SEE_SECONDS, check_folder_is_shared
from twotower.training.trainer import Trainer

GRACE_SECONDS = 10.0  # time that processes get to close their journals
# The same when another tower has failed: to end by itself, and then after it was asked to. All shall be gone in 5.
GRACE_AFTER_FAILURE_SECONDS = 2.0
ASKED_SECONDS = 1.0
DEAF_SECONDS = 1.5  # after which a process ends that waits within a library and does not hear that it shall


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
        trainer.world.notice_return(),
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
    catch_stops(DEAF_SECONDS)
    place = Place(local_rank, size, local_rank, size, ready.config.network.towers)
    try:
        with open_world(ready.config.machine, place, rendezvous) as world:
            _train(ready, world)
        ignore_stops()
    except KeyboardInterrupt:
        os._exit(STOPPED)
    except Exception as error:
        explain(error, place, ready.run_dir)
        # sys.exit would wait for the threads of a broken process group, which may never end.
        os._exit(1)


def _await_end(processes: Sequence[BaseProcess]) -> int | None:
    """Waits until all processes have ended well. Returns the rank of the first that has not, or None."""
    while True:
        ends = [process.exitcode for process in processes]
        # One that was killed is the cause of all else that is found at the same moment.
        for is_cause in (lambda status: status < 0, lambda status: status > 0):
            for rank, status in enumerate(ends):
                if status is not None and is_cause(status):
                    return rank
        # From the same look, as one that is killed in between would be taken for one that has ended well.
        running = [process.sentinel for process, status in zip(processes, ends, strict=True) if status is None]
        if not running:
            return None
        wait(running, timeout=1.0)  # in turns, as a Ctrl-C just before a wait is noticed only after it


def _join(processes: Sequence[BaseProcess], seconds: float) -> None:
    """Waits until all processes have ended, however, and no longer than `seconds`."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))


def _end(processes: Sequence[BaseProcess], seconds: float) -> None:
    """Asks those that still run to end, and ends those that have not after `seconds`."""
    for process in processes:
        if process.is_alive():
            process.terminate()
    _join(processes, seconds)
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()


def _name_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def start_towers(ready: ReadyRun) -> dict[str, Any]:
    """Starts a process for each tower of each replica on this host, and waits for them.

    Returns the content of summary.json. Raises: ChildProcessError with the reason, AlreadyExplainedError.
    """
    towers = ready.config.network.towers
    size = towers * ready.config.machine.replicas
    choose_device(ready.config.machine, Place(0, size, 0, size, towers))
    # These are read when a process imports torch and when gloo looks for an interface.
    os.environ["OMP_NUM_THREADS"] = str(threads_per_process(ready.config.machine, size))
    stay_on_this_host()
    with scratch_folder() as folder:
        processes: list[BaseProcess] = []
        try:
            # A stop in between would leave a process with half of what it shall do, and others that wait for it.
            # One that meets a tower while it imports torch would be a traceback.
            with stops_held(), interrupts_held():
                context = mp.start_processes(
                    _run_tower, (ready, size, str(folder / "rendezvous")), size, join=False, start_method="spawn"
                )
                processes = context.processes
            failed = _await_end(processes)
            if failed is not None:
                _join(processes, GRACE_AFTER_FAILURE_SECONDS)
                _end(processes, ASKED_SECONDS)
        finally:
            _end(processes, GRACE_SECONDS)
    if failed is not None:
        status = processes[failed].exitcode
        assert status is not None
        if status > 0:
            if os.access(context.error_files[failed], os.R_OK):
                context.join()  # raises what came before the process could explain anything
            raise AlreadyExplainedError
        reason = (
            f"Tower {failed % towers} (process {processes[failed].pid}) was ended by {_name_signal(-status)}; start "
            "again with resume=auto to go on from the last checkpoint."
        )
        note_failure(ready.run_dir, reason)
        raise ChildProcessError(reason)
    return _read_finished(ready.run_dir)


def _read_finished(run_dir: Path) -> dict[str, Any]:
    """The summary of a run that has finished. Raises: ValueError if it is missing or damaged."""
    summary = read_summary(run_dir)
    if summary is None:
        raise ValueError(f"{run_dir} has no summary.json, though it finished; the same command writes it again.")
    return summary


def run(config: Config) -> dict[str, Any]:
    """One whole run in processes of its own. Returns the content of summary.json.

    Raises: ValueError, OSError, ChildProcessError.
    """
    check(config)
    remove_abandoned_scratch()  # also where nothing is left to do, as after a kill in the last moment of a run
    config = share_batch(config, config.machine.replicas)
    size = config.network.towers * config.machine.replicas
    check_room(size)
    device, _ = choose_device(config.machine, Place(0, size, 0, size, config.network.towers))
    check_precision(config.machine.precision, device)
    with get_ready(config, config.machine.replicas) as ready:
        if ready.finished:
            return _read_finished(ready.run_dir)
        return start_towers(ready)


def run_as_worker(config: Config, place: Place) -> int:
    """The part of one process that torchrun started. Returns its exit status."""
    run_dir: Path | None = None
    try:
        check(config)
        place = replace(place, num_towers=config.network.towers)
        check_even(place.size, place.num_towers)
        die_with_parent()
        catch_stops(DEAF_SECONDS)
        check_agent()
        config = share_batch(config, place.size // place.num_towers)
        # One process of a node looks for all, since a look reads whole checkpoints.
        kept_step = find_kept_step(config) if place.local_rank == 0 and not place.is_alone else NOT_LOOKED
        with ExitStack() as stack, open_world(config.machine, place, kept_step=kept_step) as world:
            ready = receive_run(config, world, stack)
            run_dir = ready.run_dir
            if not ready.finished:
                check_folder_is_shared(ready.run_dir, world, min(SEE_SECONDS, config.machine.timeout_seconds / 2))
                _train(ready, world)
                if place.local_rank == 0:  # where the node's folder is its own
                    forget_failure(ready.run_dir)
        ignore_stops()
        return 0
    except KeyboardInterrupt:
        return STOPPED
    except Exception as error:
        explain(error, place, run_dir)
        sys.stderr.flush()
        # torchrun's agent ends the other workers, too, but waits 30 seconds for one that answers no signal.
        if isinstance(error, TowerSilentError) and "TORCHELASTIC_RUN_ID" in os.environ:
            kill_stuck_siblings(GRACE_AFTER_FAILURE_SECONDS)
        os._exit(1)
