"""Commands on a disk that is full after a random number of bytes: a sentence, what was there stays, and it goes on.

The room is that of a small tmpfs where one can be mounted (root on Linux), else, and half of the time, the largest
size that a file may have (RLIMIT_FSIZE). The sentence names the file, the bytes that it takes and the free ones;
every checkpoint that is there is whole; with more room the same command ends with the same bits as with a large disk.

    python -m campaigns.disk_full --count 60 --seed 0      in the folder tests/
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from campaigns import FAILURES, HITS, Say, run_alone
from helpers.commands import draw_images
from helpers.contents import contents
from helpers.marked import TRAINING, Marked, find_debris, read_tensors, result_of
from twotower.runs import checkpoint

SHORT, FULL = 3, 60
SECONDS = 180.0  # for a command
PAGE = 4096  # a tmpfs gives room by pages
ENOUGH = "room enough"
ANY = "any"
SENTENCE = re.compile(
    r"error: (?P<path>.*) cannot be written \((No space left on device|File too large)\): it takes (more than )?"
    r"[\d,]+ bytes, and [\d,]+ are free on its disk\.|"
    r"error: (?P<path2>\S*) would take [\d,]+ bytes for pixels, and [\d,]+ are free there; "
)


@dataclass(frozen=True)
class Work:
    """A command that writes.

    Attributes:
        arguments: with {disk} for the folder on the small disk, {images}, {set} and {run} for what lies elsewhere.
        result: what must be the same as on a large disk.
        weight: how often it is drawn.
        largest_bytes: the size of the largest file that it writes, about.
        needs: one of NEEDS that it starts from.
        prepare: puts onto the disk what the command starts from.
    """

    arguments: tuple[str, ...]
    result: Callable[[Path], object]
    weight: int
    largest_bytes: int
    needs: str | None = None
    prepare: Callable[[Path, Path], None] = lambda disk, root: None


def _copy_run(disk: Path, root: Path) -> None:
    shutil.copytree(root / "trained" / "run", disk / "run")


def _evaluated(disk: Path) -> object:
    found = json.loads((disk / "run" / "evaluation.json").read_text())
    tensors = {path.name: read_tensors(path) for path in sorted((disk / "run" / "predictions").glob("*.safetensors"))}
    return {key: found[key] for key in ("top1_error", "top5_error", "loss")}, tensors


def _cached(disk: Path) -> object:
    return contents(disk / "cache"), result_of(disk / "run")


def _reported(disk: Path) -> object:
    found = contents(disk / "report")
    # These two say when they were made.
    return {name: content for name, content in found.items() if name not in ("report.html", "table.md")}


_QUIET = ("logging=no_wandb", "logging.every_steps=1")
_TRAIN = ("two_gpu.py", *TRAINING, *_QUIET, "resume=auto", "run_dir={disk}/run")
NEEDS = {
    "trained": ("two_gpu.py", *TRAINING, *_QUIET, "data.root={images}", "run_dir=run"),
    "prepared": ("prepare_data.py", "source=folder", "source.root={images}", "output=set"),
}
WORKS = {
    "training": Work((*_TRAIN, "data.root={images}"), lambda disk: result_of(disk / "run"), 4, 910_000),
    "first use": Work(
        (*_TRAIN, "data.root={images}", "data.cache={disk}/cache", "schedule.max_steps=1"), _cached, 2, 1_500_000
    ),
    "decoded pixels": Work(
        (*_TRAIN, "data.root={set}", "data.cache={disk}/cache", "input.cache=host", "schedule.max_steps=1"),
        _cached,
        1,
        5_200_000,
        "prepared",
    ),
    "prepare_data": Work(
        ("prepare_data.py", "source=folder", "source.root={images}", "output={disk}/set", "images_per_shard=4"),
        lambda disk: contents(disk / "set"),
        2,
        1_500_000,
    ),
    "evaluate": Work(
        ("evaluate.py", "{disk}/run", "crops=ten", "device=cpu", "fresh=true"),
        _evaluated,
        2,
        1_000,
        "trained",
        _copy_run,
    ),
    "report": Work(("report.py", "{run}", "output={disk}/report"), _reported, 1, 250_000, "trained"),
    "figure": Work(("figure.py", "figure3", "{run}", "output={disk}/figure3.png"), contents, 1, 60_000, "trained"),
}


@contextmanager
def small_disk(path: Path, size: int) -> Iterator[None]:
    """A tmpfs of `size` bytes at `path`. Raises: OSError where none can be mounted."""
    path.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        path.rmdir()
        raise OSError("no tmpfs can be mounted") from error
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
        path.rmdir()


def can_mount(folder: Path) -> bool:
    try:
        with small_disk(folder / "trial", PAGE):
            return True
    except OSError:
        return False


def enlarge(path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=256m", str(path)], check=True)


class Filler:
    """Makes the attempts."""

    def __init__(self, root: Path, say: Say) -> None:
        self.root, self.say = root, say
        self.images = draw_images(root / "images")
        self.mounts = can_mount(root)
        self._references: dict[str, tuple[object, int]] = {}

    def _make(self, name: str) -> None:
        """Makes the run or the set that commands start from, once."""
        if not (self.root / name).exists():
            (self.root / name).mkdir()
            self._finish(tuple(part.format(images=self.images) for part in NEEDS[name]), self.root / name)

    def _finish(self, arguments: tuple[str, ...], folder: Path) -> str:
        command = Marked(arguments, folder)
        status = command.wait(SECONDS)
        command.end()
        if status != 0:
            raise RuntimeError(f"{arguments} ends with {status}: {command.said()[-2000:]}")
        return command.said()

    def _arguments(self, name: str, disk: Path) -> tuple[str, ...]:
        places = {
            "disk": disk,
            "images": self.images,
            "set": self.root / "prepared" / "set",
            "run": self.root / "trained" / "run",
        }
        return tuple(part.format(**places) for part in WORKS[name].arguments)

    def reference(self, name: str) -> tuple[object, int]:
        """The result on a large disk, and the bytes that all its files take there, by pages."""
        if name not in self._references:
            if (needs := WORKS[name].needs) is not None:
                self._make(needs)
            folder = self.root / f"reference-{name.replace(' ', '-')}"
            folder.mkdir()
            disk = self.root / "disk"  # the path of all attempts, which may stand in what is written
            disk.mkdir()
            WORKS[name].prepare(disk, self.root)
            before = _used(disk)
            self._finish(self._arguments(name, disk), folder)
            self._references[name] = WORKS[name].result(disk), _used(disk) - before
            shutil.rmtree(disk)
        return self._references[name]

    def attempt(self, stream: Random, number: int, work: str = ANY) -> str:
        """Returns the outcome; one that begins with "failed" is a failure."""
        name = stream.choices(list(WORKS), [work.weight for work in WORKS.values()])[0]
        name = name if work == ANY else work
        expected, used = self.reference(name)
        by_mount = self.mounts and stream.random() < 0.6
        share = stream.random()
        folder, disk = self.root / f"attempt-{number:04d}", self.root / "disk"
        folder.mkdir()
        if not by_mount:
            limit = max(1, int((1.05 - share**2) * WORKS[name].largest_bytes))  # often close to the largest file
            disk.mkdir()
            try:
                return self._try(name, number, folder, disk, limit, by_mount, expected)
            finally:
                shutil.rmtree(disk)
        size = max(PAGE, int(share * 1.1 * used) // PAGE * PAGE)
        with small_disk(disk, 256 << 20):
            WORKS[name].prepare(disk, self.root)
            subprocess.run(["mount", "-o", f"remount,size={_used(disk) + size}", str(disk)], check=True)
            return self._try(name, number, folder, disk, size, by_mount, expected)

    def _try(
        self, name: str, number: int, folder: Path, disk: Path, size: int, by_mount: bool, expected: object
    ) -> str:
        work = WORKS[name]
        if not by_mount:
            work.prepare(disk, self.root)
        before = contents(disk)
        arguments = self._arguments(name, disk)
        problems: list[str] = []
        command = Marked(arguments, folder, largest_file=None if by_mount else size)
        status = command.wait(SECONDS)
        if status is None:
            problems.append(f"still runs after {SECONDS:g} s")
        if left := command.left_after(10):
            problems.append(f"processes are left: {left}")
        command.end()
        said, path = command.said(), ""
        if "Traceback" in said:
            problems.append("a traceback")
        if status == 0:
            if work.result(disk) != expected:
                problems.append("exit status 0, and another result")
        else:
            told = SENTENCE.search(said)
            if told is None:
                problems.append("no sentence")
            else:
                path = told["path"] or told["path2"]
            if said.count("error:") != 1:
                problems.append(f"{said.count('error:')} errors")
        after = contents(disk)
        problems += [f"{name} has changed" for name in before if before[name] != after.get(name) and status != 0]
        for step in checkpoint.checkpoint_steps(disk / "run" / "checkpoints"):
            checkpoint.verify_checkpoint(checkpoint.place(disk / "run" / "checkpoints", step))
        if by_mount:
            enlarge(disk)
        again = Marked(arguments, folder)
        status_again = again.wait(SECONDS)
        again.end()
        if status_again != 0:
            problems.append(f"with room the same command ends with {status_again}")
        elif work.result(disk) != expected:
            problems.append("with room the same command has another result")
        problems += [f"left behind: {path}" for path in find_debris(disk, folder)]
        way = "tmpfs" if by_mount else "limit"
        title = f"{number}: {name}, {way} of {size:,} bytes"
        if problems:
            self.say(f"FAILED {title}: {'; '.join(problems)}")
            self.say(f"--- full\n{said[-3000:]}\n--- again\n{again.said()[-2000:]}")
            return f"failed: {name}, {way}"
        file = re.sub(r"\d+|tower\d", "N", Path(path).name) if path else ENOUGH
        self.say(f"{title}: {file}")
        return f"{name}, {way}: {file}"


def _used(folder: Path) -> int:
    """Bytes of all files and folders below, in whole pages."""
    sizes = [path.stat().st_size if path.is_file() else 1 for path in folder.rglob("*")]
    return sum(-(-size // PAGE) * PAGE for size in sizes)


def run(count: int, seed: int, say: Say, work: str = ANY) -> dict[str, int]:
    """Makes `count` attempts. Returns how many had which outcome: work, way, and the file that found no room.

    Args:
        work: one of WORKS; ANY: each attempt draws its own.
    """
    counts: Counter[str] = Counter()
    root = Path(tempfile.mkdtemp(prefix="campaign-disk-"))
    try:
        filler = Filler(root, say)
        if not filler.mounts:
            say("no tmpfs can be mounted here, so the limit on the size of files has to do")
        for number in range(count):
            outcome = filler.attempt(Random(f"{seed}/{number}"), number, work)
            counts[outcome] += 1
            counts[FAILURES] += outcome.startswith("failed")
            counts[HITS] += not outcome.endswith(ENOUGH)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return {FAILURES: 0, HITS: 0} | dict(sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(run_alone("disk_full", run, FULL, work=(ANY, *WORKS)))
