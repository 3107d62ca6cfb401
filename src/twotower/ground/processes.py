"""A process and its machine: cores, Ctrl-C, the end of its parent. It imports no torch, which takes seconds."""

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType

# After which a stop that came within a finaliser is repeated, as often as it takes.
SECONDS_OF_A_FINALISER = 0.01
STOPS = ("SIGINT", "SIGTERM", "SIGHUP")
STOPPED = 130  # exit status after a stop, by which shells tell it from a failure
_kept_open: list[socket.socket] = []  # signals are written to it as long as the process lives


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def start_resource_tracker() -> None:
    """Starts the process by which Python's multiprocessing clears up, deaf to a closed terminal.

    Python starts it at the first lock or process otherwise, deaf to Ctrl-C and to a polite kill alone. A SIGHUP to
    all processes of a terminal would end it, and the next one would know nothing of the locks that are there.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows, which has none
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Holds Ctrl-C back until the block has ended, and from processes that are started within until `catch_stops`.

    Windows cannot hold it back, so there it may meet a worker that is starting, which then prints a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    start_resource_tracker()  # else the first start would start it, and that lets Ctrl-C through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _list_stops() -> list[signal.Signals]:
    """Those that the system has (Windows has no SIGHUP), without SIGHUP where nohup has it ignored."""
    stops = [getattr(signal, name) for name in STOPS if hasattr(signal, name)]
    return [stop for stop in stops if stop.name != "SIGHUP" or signal.getsignal(stop) is not signal.SIG_IGN]


@contextmanager
def stops_held() -> Iterator[None]:
    """Holds stops back until the block has ended. Processes that are started within get theirs as always."""
    came: list[int] = []
    before = {stop: signal.signal(stop, lambda number, _frame: came.append(number)) for stop in _list_stops()}
    try:
        yield
    finally:
        for stop, handler in before.items():
            signal.signal(stop, handler)
        if came:
            signal.raise_signal(came[0])


def ignore_stops() -> None:
    """For a process that has done its work: a stop would only interrupt Python's own end, with a traceback."""
    for stop in _list_stops():
        signal.signal(stop, signal.SIG_IGN)


def die_with_parent() -> None:
    """Ends this process when the one that started it ends, however that happens, so that no orphan computes on."""
    if sys.platform == "linux":
        parent_id, parent = os.getppid(), multiprocessing.parent_process()
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        # The kernel says nothing of a parent that had ended before the call, as it may while this process imports:
        # whoever adopted it since has another number, or has had it from the beginning, and then the pipe tells.
        if os.getppid() != parent_id or (parent is not None and not parent.is_alive()):
            os._exit(1)
    else:  # the kernel does not do it there
        threading.Thread(target=_end_after_parent, args=(os.getppid(),), daemon=True).start()


def _end_after_parent(parent_id: int) -> None:
    """Waits for the parent's end, and then ends this process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
    else:  # torchrun started it, not multiprocessing
        while os.getppid() == parent_id:  # for ever on Windows, because a process keeps its parent's number there
            time.sleep(1)
    os._exit(1)


def kill_stuck_siblings(grace: float) -> None:
    """Kills the processes that the parent of this one has started with the same command line, Linux only.

    Args:
        grace: seconds that they get first, to say why they end themselves.
    """
    if sys.platform != "linux":
        return
    time.sleep(grace)
    own = Path("/proc/self/cmdline").read_bytes()
    for folder in Path("/proc").glob("[0-9]*"):
        # A process may end while it is looked at.
        with suppress(OSError):
            # As bytes: its name stands there, too, which may be no text at all.
            status = (folder / "stat").read_bytes().rpartition(b")")[2].split()
            is_sibling = int(status[1]) == os.getppid() and int(folder.name) != os.getpid()
            if is_sibling and (folder / "cmdline").read_bytes() == own:
                os.kill(int(folder.name), signal.SIGKILL)


def _end_if_deaf(seconds: float, is_heard: Callable[[], bool]) -> None:
    """Starts a thread that ends this process some seconds after a stop that the main thread has not heard."""
    hear, tell = socket.socketpair()
    tell.setblocking(False)
    _kept_open.append(tell)
    signal.set_wakeup_fd(tell.fileno(), warn_on_full_buffer=False)
    stops = set(_list_stops())

    def listen() -> None:
        while not stops.intersection(hear.recv(1)):
            pass
        time.sleep(seconds)
        if not is_heard():
            os._exit(STOPPED)

    threading.Thread(target=listen, name="stops", daemon=True).start()


def catch_stops(deaf_seconds: float | None = None) -> None:
    """Lets Ctrl-C, a closed terminal and a polite kill end this process cleanly, each as a KeyboardInterrupt.

    Args:
        deaf_seconds: after which the process ends all the same if Python has not heard the signal, as its main thread
            waits within a library; None: never.
    """
    stopped = False

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        # The first signal runs every `finally`, which closes the journal; a second one must not disturb that.
        nonlocal stopped
        if not stopped:
            stopped = True
            raise KeyboardInterrupt

    for stop in _list_stops():
        signal.signal(stop, interrupt)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # where `interrupts_held` held it back
    if deaf_seconds is not None:
        _end_if_deaf(deaf_seconds, lambda: stopped)
    if not hasattr(signal, "setitimer"):  # Windows
        return
    report = sys.unraisablehook

    def stop_later(unraisable: "sys.UnraisableHookArgs") -> None:
        # A signal may come while the finaliser of an object runs, whose exceptions Python prints and then ignores:
        # the process would run on as if nobody had stopped it. So the stop is repeated when the finaliser is over.
        nonlocal stopped
        if stopped and unraisable.exc_type is KeyboardInterrupt:
            stopped = False
            signal.signal(signal.SIGALRM, interrupt)
            signal.setitimer(signal.ITIMER_REAL, SECONDS_OF_A_FINALISER)
        else:
            report(unraisable)

    sys.unraisablehook = stop_later
