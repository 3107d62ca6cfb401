"""Kills and signals at random moments; then the same command again must end as if nothing had happened.

Trainings (by python, by torchrun, with W&B's offline files), sweeps, prepare_data and what comes after a training
(evaluate, report, figure, export, features, predict) are hit in their launcher, a tower, torchrun's agent or all at
once, by KILL, TERM, INT, HUP, and towers by STOP, at a random time or just after a file has appeared. All processes
must be gone in time, no traceback may be printed, nothing half written may be left after the second start, and
results must be those of an undisturbed run, bit for bit.

    python -m campaigns.kills --count 200 --seed 0      in the folder tests/; --work export hits nothing else
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
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from safetensors import SafetensorError

from campaigns import FAILURES, HITS, Say, run_alone
from helpers.commands import draw_images
from helpers.contents import contents
from helpers.marked import TRAINING, Marked, find_debris, read_tensors, result_of

SHORT, FULL = 2, 200
SILENT_SECONDS = 6  # machine.timeout_seconds where a tower is stopped and hears nothing
# For the command to end, and then for its other processes. Each gets the time of the undisturbed command in addition,
# by which a machine is known that has other work: what is hit while it imports can end only after that.
END_SECONDS = 15.0
GONE_SECONDS = 5.0
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
        has_run: whether it starts from a run that is trained.
        once: whether it refuses to do again what is done.
        torchrun: processes that torchrun starts; 0: python starts the script.
    """

    arguments: tuple[str, ...]
    victims: tuple[str, ...]
    moments: tuple[str, ...]
    result: Result
    weight: int
    has_run: bool = False
    once: bool = False
    torchrun: int = 0


def _run(folder: Path) -> object:
    return result_of(folder / "run")


def _prepared(folder: Path) -> object:
    return contents(folder / "set")


def _evaluated(folder: Path) -> object:
    found = json.loads((folder / "run" / "evaluation.json").read_text())
    for view in ("centre", "ten"):
        found[view] = {key: value for key, value in found[view].items() if key not in ("images_per_second", "stored")}
    tensors = {
        path.name: read_tensors(path) for path in sorted((folder / "run" / "predictions").glob("*.safetensors"))
    }
    lasting = ("crops", "split", "num_images", "top1_error", "top5_error", "loss", "centre", "ten")
    return {key: found[key] for key in lasting}, tensors


def _below(*names: str, without: Sequence[str] = ()) -> Result:
    """All files in these folders, or these files; of safetensors the tensors, as texts in their heads say when."""

    def read(folder: Path) -> object:
        places = [path for name in names for path in (folder / name, *(folder / name).rglob("*")) if path.is_file()]
        return {
            str(path.relative_to(folder)): read_tensors(path) if path.suffix == ".safetensors" else path.read_bytes()
            for path in places
            if path.name not in without
        }

    return read


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
        has_run=True,
    ),
    "report": Work(
        ("report.py", "run", "output=report"),
        ("launcher",),
        ("report/.*", "report/*.csv", "report/*.png", "report/report.html"),
        _below("report", without=("report.html", "table.md")),  # which say when they were made
        2,
        has_run=True,
    ),
    "figure": Work(
        ("figure.py", "figure4", "run"),
        ("launcher",),
        ("run/features/*", "run/predictions/*", "run/figures/*"),
        _below("run/features", "run/figures", "run/predictions"),
        2,
        has_run=True,
    ),
    "export": Work(
        ("export.py", "run", "to=merged", "output=export"),
        ("launcher",),
        ("export", "export/.*", "export/*"),
        _below("export"),
        2,
        has_run=True,
    ),
    "features": Work(
        ("features.py", "run", "{images}/val", "layers=[conv2,fc7]", "output=features", "device=cpu", "batch_size=1"),
        ("launcher",),
        (".features*", ".features*/*", "features"),
        _below("features"),
        2,
        has_run=True,
        once=True,
    ),
    "predict": Work(
        ("predict.py", "run", "{images}/val/red", "output=predict.png", "device=cpu"),
        ("launcher",),
        (".predict*", "predict*"),
        _below("predict.png", "predict.csv"),
        2,
        has_run=True,
    ),
    "sweep": Work(
        (*_SWEEP, "-m", "seed=0,1", "schedule.max_steps=3", "sweep_dir=sweep"),
        _TOWERS,
        ("sweep/seed0/checkpoints/step-*", "sweep/seed1/checkpoints/*", "sweep/seed*/summary.json"),
        _sweep,
        2,
    ),
}
ANY = "any"
MISSED = "had ended before the signal"
# Files of frames that are not ours to mend: torchrun's agent says in a traceback where its workers are to be looked
# for, and Python has one in a process that was being started when its parent was killed.
_OF_TORCHRUN = r"torch/distributed/|<frozen runpy>"
_OF_STARTS = r"/multiprocessing/|/concurrent/futures/|<string>|<frozen "
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
        return Marked(self._arguments(work, silent_seconds), folder, work.torchrun)

    def _make_folder(self, name: str, folder: Path) -> Path:
        """The folder of an attempt; what starts from a run has one in it, and only that."""
        folder.mkdir()
        if WORKS[name].has_run:
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

    def attempt(self, stream: Random, number: int, only: str = ANY) -> str:
        """Returns the outcome; one that begins with "failed" is a failure.

        Args:
            only: the work that is hit, instead of one that is drawn.
        """
        name = stream.choices(list(WORKS), [work.weight for work in WORKS.values()])[0]
        name = name if only == ANY else only
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
            patience = END_SECONDS + reference.seconds + (silent if sent == "STOP" else 0)
            status = command.wait(patience if hit else WHOLE_SECONDS)
            if status is None and sent == "STOP":
                status = self._continue(command, patience)
            if status is None:
                problems.append(f"still runs after {patience:g} s")
            left = command.left_after(GONE_SECONDS + reference.seconds)
            took = time.monotonic() - began - (silent if sent == "STOP" else 0)
            if hit:
                self.slowest = max(self.slowest, took)
            if left:
                problems.append(f"processes are left: {left}")
            if hit and status == 0 and not self._is_done(work, folder, reference):
                problems.append("exit status 0, and it is not finished")
            problems += self._look_at(command, work, sent == "KILL")
        finally:
            command.end()
        first, refuses = command.said(), work.once and self._is_done(work, folder, reference)
        command = self._start(name, folder)
        try:
            status = command.wait(WHOLE_SECONDS)
            if refuses and (status != 1 or "is there already" not in command.said()):
                problems.append(f"the same command again ends with {status}, though all is done")
            elif not refuses and status != 0:
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
        self.say(f"{title}: {f'gone after {took:.1f} s, and goes on' if hit else MISSED}")
        return kind if hit else MISSED

    @staticmethod
    def _is_done(work: Work, folder: Path, reference: Reference) -> bool:
        try:
            return work.result(folder) == reference.result
        except (OSError, ValueError, KeyError, SafetensorError):
            return False

    @staticmethod
    def _look_at(command: Marked, work: Work, killed: bool = False) -> list[str]:
        return ["a traceback"] if has_traceback(command.said(), bool(work.torchrun), killed) else []

    @staticmethod
    def _continue(command: Marked, seconds: float) -> int | None:
        """A tower that was stopped when nothing was left to do but to end is waited for; so it is continued."""
        for pid in command.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        return command.wait(seconds)

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


def has_traceback(said: str, torchrun: bool, killed: bool) -> bool:
    """Whether a traceback was printed that is neither torchrun's own nor of a process whose start was cut off."""
    foreign = [pattern for pattern, there in ((_OF_TORCHRUN, torchrun), (_OF_STARTS, killed)) if there]
    if "Traceback" not in said or not foreign:
        return "Traceback" in said
    # Torch begins each line with [rank0]: where an error ends a process, and processes write between each other.
    files = re.findall(r'File "([^"\n]*)", line \d', said)
    return not all(re.search("|".join(foreign), file) for file in files)


def run(count: int, seed: int, say: Say, work: str = ANY) -> dict[str, int]:
    """Makes `count` attempts. Returns how many had which outcome.

    Args:
        work: one of WORKS; ANY: each attempt draws its own.
    """
    counts: Counter[str] = Counter()
    root = Path(tempfile.mkdtemp(prefix="campaign-kills-"))
    attacker = Attacker(root, say)
    for number in range(count):
        outcome = attacker.attempt(Random(f"{seed}/{number}"), number, work)
        counts[outcome] += 1
        counts[FAILURES] += outcome.startswith("failed")
        counts[HITS] += outcome != MISSED
    say(f"the slowest end: {attacker.slowest:.1f} s")
    if not counts[FAILURES]:
        shutil.rmtree(root)
    else:
        say(f"what failed is in {root}")
    return {FAILURES: 0, HITS: 0} | dict(sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(run_alone("kills", run, FULL, work=(ANY, *WORKS)))
