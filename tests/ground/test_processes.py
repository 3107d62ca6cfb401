"""How a process is stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.marked import is_running

# Under nohup the tests have it ignored, and what they start would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Stops itself at the place that {stop} names, and says how it ended.
PROGRAM = """
import os, signal, time
from twotower.ground.processes import catch_stops

class Held:
    def __del__(self):
        os.kill(os.getpid(), signal.{signal})
        time.sleep(0)

catch_stops()
try:
    {stop}
    time.sleep(20)
    print("ran on")
except KeyboardInterrupt:
    os.kill(os.getpid(), signal.{signal})  # a second one disturbs nothing
    print("stopped")
"""


def run_program(stop: str, name: str) -> tuple[str, str]:
    """What a process that gets the signal `name` at `stop` prints, on both streams."""
    program = PROGRAM.format(stop=stop, signal=name)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.strip()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("stop", ["os.kill(os.getpid(), signal.{}); time.sleep(0)", "Held()"])
def test_a_signal_stops_the_process_wherever_it_comes(name: str, stop: str) -> None:
    assert run_program(stop.format(name), name) == ("stopped", "")


def test_other_errors_of_finalisers_are_still_told() -> None:
    stop = "Held.__del__ = lambda held: 1 / 0; Held(); os.kill(os.getpid(), signal.SIGTERM)"
    said, told = run_program(stop, "SIGTERM")
    assert said == "stopped"
    assert "ZeroDivisionError" in told


@pytest.mark.skipif(sys.platform != "linux", reason="waits by a function of Linux's C library")
def test_a_process_that_waits_in_a_library_ends_after_a_stop_that_it_cannot_hear() -> None:
    """A signal that is no stop does not end it."""

    def end(name: str) -> int:
        program = f"""
import ctypes, os, signal, threading
from twotower.ground.processes import catch_stops
catch_stops(0.3)
signal.signal(signal.SIGUSR1, lambda number, frame: None)
library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(200)
library.pthread_mutex_lock(mutex)
threading.Timer(0.2, os.kill, (os.getpid(), signal.{name})).start()
threading.Timer(2.0, library.pthread_mutex_unlock, (mutex,)).start()
library.pthread_mutex_lock(mutex)  # no signal ends this wait
"""
        return subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60).returncode

    assert end("SIGUSR1") == 0
    assert end("SIGTERM") == 130


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_held_stop_comes_when_the_block_has_ended(name: str) -> None:
    stop = f"""from twotower.ground.processes import stops_held
    with stops_held():
        os.kill(os.getpid(), signal.{name})
        time.sleep(0)
        print("held")"""
    assert run_program(stop, name) == ("held\nstopped", "")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_a_process_that_has_done_its_work_ends_as_such() -> None:
    """A stop within Python's own end would be a traceback."""
    program = """
import os, signal, time
from twotower.ground.processes import catch_stops, ignore_stops
catch_stops()
{}
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0)
"""
    done = [
        subprocess.run([sys.executable, "-c", program.format(line)], capture_output=True, text=True, timeout=60)
        for line in ("ignore_stops()", "")
    ]
    assert (done[0].returncode, done[0].stderr) == (0, "")
    assert "KeyboardInterrupt" in done[1].stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists processes in files")
def test_stuck_siblings_are_found_among_processes_of_any_name() -> None:
    """A name that is no UTF-8, as Linux makes it when it cuts one after 15 bytes, is somebody else's process."""
    program = """
import sys, time
from pathlib import Path
from twotower.ground.processes import kill_stuck_siblings
Path("/proc/self/comm").write_bytes(b"14 bytes, and \\xc3")
print(flush=True)
if sys.stdin.readline():
    kill_stuck_siblings(0)
else:
    time.sleep(600)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as stuck:
        assert stuck.stdout is not None
        stuck.stdout.readline()
        try:
            done = subprocess.run(command, input="\n", capture_output=True, text=True, timeout=60)
            assert (done.returncode, done.stderr) == (0, "")
            assert stuck.wait(60) == -signal.SIGKILL
        finally:
            stuck.kill()


NOHUP = """
import multiprocessing, os, signal, sys
from twotower.ground.processes import catch_stops, stops_held

def child():
    catch_stops()
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        print("goes on", flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        print("ran on", flush=True)
    except KeyboardInterrupt:
        print("stopped", flush=True)

if __name__ == "__main__":
    one = multiprocessing.get_context("spawn").Process(target=child)
    with stops_held():
        one.start()
        os.kill(os.getpid(), signal.SIGHUP)
    one.join()
    child()
"""


@pytest.mark.parametrize("is_ignored", [True, False], ids=["nohup", "plain"])
def test_what_nohup_has_ignored_stays_so(tmp_path: Path, is_ignored: bool) -> None:
    """In a command and in the processes that it starts; all other stops come as always."""
    script = tmp_path / "nohup.py"
    script.write_text(NOHUP)
    command = [sys.executable, str(script)]
    command = ["nohup", *command] if is_ignored else ["env", "--default-signal=HUP", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if is_ignored:
        assert done.stdout.split("\n") == ["goes on", "stopped"] * 2 + [""], done.stderr
        assert done.returncode == 0
    else:  # it ends at the signal that was held; what it has started may have come so far
        assert "goes on" not in done.stdout
        assert done.returncode == -signal.SIGHUP


STARTS = """
import multiprocessing, os, signal, time
from twotower.ground.processes import catch_stops, interrupts_held

def child(number):
    held = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    os.kill(os.getpid(), signal.SIGINT)  # while it still imports
    came = False
    try:
        catch_stops()
        time.sleep(10)
    except KeyboardInterrupt:
        came = True
    # In one piece: under PYTHONUNBUFFERED `print` writes each word by itself, between those of the other process.
    os.write(1, f"{number} {held} {came}\\n".encode())

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with interrupts_held():
        children = [context.Process(target=child, args=(number,)) for number in range(2)]
        for one in children:
            one.start()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    for one in children:
        one.join()
"""


def test_ctrl_c_waits_until_a_started_process_can_hear_it(tmp_path: Path) -> None:
    """The first process as well, with which Python starts one of its own that lets signals through."""
    script = tmp_path / "starts.py"
    script.write_text(STARTS)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True)
    assert sorted(done.stdout.splitlines()) == ["0 True True", "1 True True"], done.stderr


# Ended as all processes of a terminal are when it is closed, or by Ctrl-C, while multiprocessing's lock is there.
LOCKS = """
import multiprocessing, os, signal, time
from twotower.ground.processes import catch_stops, start_resource_tracker

start_resource_tracker()
catch_stops()
lock = multiprocessing.get_context("spawn").Lock()
try:
    os.killpg(0, signal.{signal})
    time.sleep(20)
except KeyboardInterrupt:
    time.sleep(0.5)  # as long as it takes the others to end
    other = multiprocessing.get_context("spawn").Lock()
    print("stopped")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_what_clears_up_for_multiprocessing_outlives_a_stop_of_all(name: str) -> None:
    """Else Python warns that it started another one, and prints a traceback for each lock that this one finds."""
    program = [sys.executable, "-c", LOCKS.format(signal=name)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, start_new_session=True, check=True)
    assert (done.stdout, done.stderr) == ("stopped\n", "")


# A process whose parent ends while it imports, as a tower does for seconds.
ADOPTED = """
import multiprocessing, os, sys, time
from pathlib import Path
from twotower.ground.processes import die_with_parent

def compute(folder):
    parent_id = os.getppid()
    (folder / "started").write_text(str(os.getpid()))
    while os.getppid() == parent_id:
        time.sleep(0.01)
    die_with_parent()
    (folder / "computes").touch()
    time.sleep(60)

if __name__ == "__main__":
    child = multiprocessing.get_context("spawn").Process(target=compute, args=(Path(sys.argv[1]),))
    child.start()
    child.join()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread looks for the parent")
def test_a_process_that_lost_its_parent_while_it_was_starting_does_not_compute(tmp_path: Path) -> None:
    script, started = tmp_path / "starts.py", tmp_path / "started"
    script.write_text(ADOPTED)
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
    try:
        assert wait_for(lambda: started.exists() and started.read_text() != "")
    finally:
        parent.kill()
        parent.wait()
    child = int(started.read_text())
    try:
        assert wait_for(lambda: not is_running(child)), "it waits or computes"
        assert not (tmp_path / "computes").exists()
    finally:
        if is_running(child):
            os.kill(child, signal.SIGKILL)


def wait_for(is_so: Callable[[], bool], seconds: float = 30) -> bool:
    """Whether it has become so within the time."""
    deadline = time.monotonic() + seconds
    while not (so := is_so()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return so
