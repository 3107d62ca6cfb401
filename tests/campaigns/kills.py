"""Kills and signals at random moments; then the same command again must end as if nothing had happened.

Trainings (by python, by torchrun, with W&B's offline files), prepare_data, evaluate and sweeps are hit in their
launcher, a tower, torchrun's agent or all at once, by KILL, TERM, INT, HUP, and towers by STOP, at a random time or
just after a file has appeared. All processes must be gone in time, no traceback may be printed, nothing half written
may be left after the second start, and results must be those of an undisturbed run, bit for bit.

    python -m campaigns.kills --count 200 --seed 0      in the folder tests/
"""

import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from campaigns import FAILURES, Say, run_alone
from helpers.commands import draw_images
from helpers.contents import contents
from helpers.marked import TRAINING, Marked, find_debris, read_tensors, result_of

SHORT, FULL = 2, 200
SILENT_SECONDS = 6  # machine.timeout_seconds where a tower is stopped and hears nothing
END_SECONDS = 45.0  # for the command to end; far above what it takes, as the machine may have other work
GONE_SECONDS = 20.0  # for its other processes
WHOLE_SECONDS = 180.0  # for an undisturbed command

Result = Callable[[Path], object]


@dataclass(frozen=True)
class Work:
    """A command that is disturbed.

    Attributes:
        arguments: with {folder} for the folder of the attempt and {images} for that of the images.
        victims: what may be hit.
        moments: files whose appearance may be the moment, as patterns below the folder.
        result: what must be the same as without a disturbance.
        weight: how often it is drawn.
    """

    arguments: tuple[str, ...]
    victims: tuple[str, ...]
    moments: tuple[str, ...]
    result: Result
    weight: int
    torchrun: int = 0
    options: tuple[str, ...] = ()


def _run(folder: Path) -> object:
    return result_of(folder / "run")


def _prepared(folder: Path) -> object:
    return contents(folder / "set")


def _evaluated(folder: Path) -> object:
    found = json.loads((folder / "run" / "evaluation.json").read_text())
    for view in ("centre", "ten"):
        found[view] = {key: value for key, value in found[view].items() if key not in ("images_per_second", "stored")}
    tensors = {path.name: read_tensors(path) for path in sorted((folder / "run" / "predictions").iterdir())}
    lasting = ("crops", "split", "num_images", "top1_error", "top5_error", "loss", "centre", "ten")
    return {key: found[key] for key in lasting}, tensors


def _sweep(folder: Path) -> object:
    return {job.name: result_of(job) for job in sorted((folder / "sweep").iterdir()) if job.is_dir()}


_QUIET = ("logging=no_wandb", "logging.every_steps=2")
_SWEEP = ("two_gpu.py", *TRAINING, "data.root={images}", *_QUIET)
_TRAIN = ("two_gpu.py", *TRAINING, "data.root={images}", "run_dir=run", "resume=auto")
_CHECKPOINTS = ("run/metrics.jsonl", "run/checkpoints/pending-*", "run/checkpoints/step-0000000[2-8]")
_TOWERS = ("launcher", "tower", "all")

WORKS = {
    "training": Work((*_TRAIN, *_QUIET), _TOWERS, (*_CHECKPOINTS, "run/.mean_image.npy.pending"), _run, 9),
    "training, W&B offline": Work(_TRAIN, _TOWERS, ("run/wandb/*", *_CHECKPOINTS), _run, 2),
    "training, torchrun": Work((*_TRAIN, *_QUIET), _TOWERS, _CHECKPOINTS, _run, 4, torchrun=2),
    "prepare_data": Work(
        (
            "prepare_data.py",
            "source=folder",
            "source.root={images}",
            "output=set",
            "images_per_shard=2",
            "workers=2",
            "size=64",
        ),
        ("launcher", "worker", "all"),
        ("set/work/plan.json", "set/*/*.tar", "set/work/*.npz", "set/.picture.png.*", "set/mean_image.npy"),
        _prepared,
        4,
    ),
    "evaluate": Work(
        ("evaluate.py", "run", "crops=ten", "device=cpu", "batch_size=4", "fresh=true"),
        ("launcher",),
        ("run/predictions/.*", "run/predictions/*"),
        _evaluated,
        2,
    ),
    "sweep": Work(
        (*_SWEEP, "-m", "seed=0,1", "schedule.max_steps=3", "sweep_dir=sweep"),
        _TOWERS,
        ("sweep/seed0/checkpoints/step-*", "sweep/seed1/checkpoints/*", "sweep/seed*/summary.json"),
        _sweep,
        2,
    ),
}
OURS = re.compile(r"two_gpu\.py|/twotower/|/launch/")
SIGNALS = ("KILL", "KILL", "TERM", "INT", "HUP", "STOP")


@dataclass
class Reference:
    """The undisturbed command: its result, and the seconds that it took."""

    result: object
    seconds: float


class Attacker:
    """Makes the attempts. `root` holds all they need; an attempt's folder is deleted if it did not fail."""

    def __init__(self, root: Path, say: Say) -> None:
        self.root, self.say = root, say
        self.images = draw_images(root / "images")
        self._references: dict[str, Reference] = {}
        self.slowest = 0.0

    def _arguments(self, work: Work, silent_seconds: int) -> list[str]:
        arguments = [part.format(images=self.images) for part in work.arguments]
        if arguments[0] == "two_gpu.py":
            arguments.append(f"machine.timeout_seconds={silent_seconds}")
        return arguments

    def _start(self, name: str, folder: Path, silent_seconds: int = 30) -> Marked:
        work = WORKS[name]
        return Marked(self._arguments(work, silent_seconds), folder, work.torchrun, work.options)

    def _make_folder(self, name: str, folder: Path) -> Path:
        """The folder of an attempt; an evaluation has a run in it, and only that."""
        folder.mkdir()
        if name == "evaluate":
            trained = self.root / "reference-training" / "run"
            if not (trained / "summary.json").exists():
                self.reference("training")
            shutil.copytree(trained, folder / "run")
        return folder

    def reference(self, name: str) -> Reference:
        if name not in self._references:
            folder = self._make_folder(name, self.root / f"reference-{name.replace(' ', '').replace(',', '-')}")
            began = time.monotonic()
            command = self._start(name, folder)
            status = command.wait(WHOLE_SECONDS)
            command.end()
            if status != 0:
                raise RuntimeError(f"undisturbed, {name} ends with {status}: {command.said()[-2000:]}")
            self._references[name] = Reference(WORKS[name].result(folder), time.monotonic() - began)
        return self._references[name]

    def attempt(self, stream: Random, number: int) -> str:
        """Returns the outcome; one that begins with "failed" is a failure."""
        name = stream.choices(list(WORKS), [work.weight for work in WORKS.values()])[0]
        work, reference = WORKS[name], self.reference(name)
        sent, victim = stream.choice(SIGNALS), stream.choice(work.victims)
        if sent == "STOP":
            if "tower" not in work.victims:
                sent = "KILL"
            else:
                victim = "tower"
        if victim == "worker" and sent != "STOP":
            sent = "KILL"  # its parent alone decides what all other signals mean
        moment = stream.choice((None, *work.moments))
        delay = stream.uniform(0, reference.seconds) if moment is None else stream.uniform(0, 0.03)
        if victim in ("tower", "worker") and moment is None:
            delay = stream.uniform(0, 0.7 * reference.seconds)
        which = stream.randrange(2)
        folder = self._make_folder(name, self.root / f"attempt-{number:04d}")
        title = f"{number}: {name}, {sent} to {victim}, " + (moment or "after") + f" + {delay:.3f} s"

        silent = SILENT_SECONDS if sent == "STOP" else 30
        command = self._start(name, folder, silent)
        problems: list[str] = []
        try:
            hit = self._hit(command, folder, (sent, victim, moment), delay, which)
            began = time.monotonic()
            # A tower that hears nothing is only noticed after the time-out.
            patience = END_SECONDS + (silent if sent == "STOP" else 0)
            status = command.wait(patience if hit else WHOLE_SECONDS)
            if status is None and sent == "STOP":
                status = self._continue(command)
            if status is None:
                problems.append(f"still runs after {patience:g} s")
            left = command.left_after(GONE_SECONDS if hit else END_SECONDS)
            if hit:
                self.slowest = max(self.slowest, time.monotonic() - began - (silent if sent == "STOP" else 0))
            if left:
                problems.append(f"processes are left: {left}")
            if hit and status == 0 and not self._is_done(work, folder, reference):
                problems.append("exit status 0, and it is not finished")
            problems += self._look_at(command, work, sent == "KILL")
        finally:
            command.end()
        first = command.said()
        command = self._start(name, folder)
        try:
            status = command.wait(WHOLE_SECONDS)
            if status != 0:
                problems.append(f"the same command again ends with {status}")
            elif not self._is_done(work, folder, reference):
                problems.append("the same command again has another result")
            problems += self._look_at(command, work)
        finally:
            command.end()
        problems += [f"left behind: {path}" for path in find_debris(folder)]
        kind = f"{name}, {sent}"
        if problems:
            self.say(f"FAILED {title}: {'; '.join(problems)}")
            self.say(f"--- first\n{first[-3000:]}\n--- again\n{command.said()[-3000:]}")
            return f"failed: {kind}"
        shutil.rmtree(folder)
        self.say(f"{title}: {'goes on' if hit else 'had ended before'}")
        return kind if hit else "had ended before the signal"

    @staticmethod
    def _is_done(work: Work, folder: Path, reference: Reference) -> bool:
        try:
            return work.result(folder) == reference.result
        except (OSError, ValueError, KeyError):
            return False

    @staticmethod
    def _look_at(command: Marked, work: Work, killed: bool = False) -> list[str]:
        said = command.said()
        # torchrun's agent prints a traceback of its own, which says where its workers are to be looked for. So does
        # Python in a process that was being started when its parent was killed.
        foreign = bool(work.torchrun) or killed
        if "Traceback" in said and (not foreign or OURS.search(_tracebacks(said))):
            return ["a traceback"]
        return []

    @staticmethod
    def _continue(command: Marked) -> int | None:
        """A tower that was stopped when nothing was left to do but to end is waited for; so it is continued."""
        for pid in command.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        return command.wait(END_SECONDS)

    def _hit(self, command: Marked, folder: Path, how: tuple[str, str, str | None], delay: float, which: int) -> bool:
        """Whether there was anything to hit."""
        sent, victim, moment = how
        if moment is not None:
            command.wait_until(lambda: any(True for _ in folder.glob(moment)), WHOLE_SECONDS)
        if victim in ("tower", "worker"):
            command.wait_until(lambda: len(command.towers()) == 2, WHOLE_SECONDS)
        time.sleep(delay)
        if command.process.poll() is not None:
            return False
        number = getattr(signal, f"SIG{sent}")
        with suppress(ProcessLookupError):
            if victim == "launcher":
                os.kill(command.process.pid, number)
            elif victim == "all":
                os.killpg(command.process.pid, number)  # as a terminal does
            else:
                towers = command.towers()
                if not towers:
                    return False
                os.kill(towers[min(which, len(towers) - 1)], number)
            return True
        return False


def _tracebacks(said: str) -> str:
    """The lines of tracebacks that are of this project, and not only of torchrun."""
    lines = said.splitlines()
    return "\n".join(line for line in lines if line.strip().startswith("File ") and "/torch/" not in line)


def run(count: int, seed: int, say: Say) -> dict[str, int]:
    """Makes `count` attempts. Returns how many had which outcome."""
    counts: Counter[str] = Counter()
    root = Path(tempfile.mkdtemp(prefix="campaign-kills-"))
    attacker = Attacker(root, say)
    for number in range(count):
        outcome = attacker.attempt(Random(f"{seed}/{number}"), number)
        counts[outcome] += 1
        counts[FAILURES] += outcome.startswith("failed")
    say(f"the slowest end: {attacker.slowest:.1f} s")
    if not counts[FAILURES]:
        shutil.rmtree(root)
    else:
        say(f"what failed is in {root}")
    return {FAILURES: 0} | dict(sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(run_alone("kills", run, FULL))
