"""Converts the images of a source to shards, one task a shard, on all cores."""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path

from twotower.config import PrepareConfig
from twotower.data.prepared_set import WORK
from twotower.data.preparing.input_picture import SHOWN
from twotower.data.preparing.rejects import Rejects
from twotower.data.preparing.shard_plan import Plan, Say, read_entries
from twotower.data.preparing.shard_sums import INDEX, read_sums, sums_path
from twotower.data.preparing.shard_worker import Task, convert_shard, start_pool
from twotower.data.sources.archives import DAMAGE, View, is_compressed, open_archive
from twotower.data.sources.source import Entry, Source
from twotower.ground.processes import cores, interrupts_held
from twotower.ground.progress import metered
from twotower.ground.wording import counted, printable

BYTES_PER_PIXEL = 0.5  # those of a JPEG of quality 95, measured on ILSVRC: 30 KB for 256 x 256


class _CompressedArchives:
    """Reads the entries of compressed archives, from front to back, because several workers could not."""

    def __init__(self, files: list[Path]) -> None:
        self._compressed = {str(path) for path in files if is_compressed(path)}
        self._open: tuple[str, View] | None = None
        self._stack = ExitStack()

    def contents(self, entries: list[Entry]) -> list[bytes] | None:
        """The bytes of each entry; None if a worker can read them from the files themselves."""
        if not any(entry.file in self._compressed for entry in entries):
            return None
        return [self._read(entry) if not entry.problem else b"" for entry in entries]

    def _read(self, entry: Entry) -> bytes:
        if self._open is None or self._open[0] != entry.file:
            self._stack.close()
            self._open = (entry.file, self._stack.enter_context(open_archive(Path(entry.file))))
        view = self._open[1]
        try:
            view.seek(entry.offset)
            return view.read(entry.size)
        except DAMAGE as error:
            raise ValueError(f"{entry.file} was changed, or cannot be read any more ({error}).") from error

    def close(self) -> None:
        self._stack.close()


def _check_sources(entries: list[Entry], root: str | None, files: list[Path], work: Path) -> None:
    """A plan that a stranger has begun may name any file. Raises: ValueError for one that is not of the source."""
    known, inside = {os.path.abspath(path) for path in files}, os.path.join(os.path.abspath(root or ""), "")
    for entry in entries:
        file = os.path.abspath(entry.file)
        if file not in known and not file.startswith(inside):
            raise ValueError(
                f"{work} names {printable(entry.file)}, which is no file of source.root={root}; delete that folder, "
                "and run the command again."
            )


def _list_tasks(config: PrepareConfig, plan: Plan, source: Source, output: Path) -> Iterator[Task]:
    """The tasks of all shards that are not there yet. Raises: ValueError for a plan that is damaged."""
    labels = {name: label for label, name in enumerate(plan.classes)}
    shown = [plan.images["train"] * (2 * k + 1) // (2 * SHOWN) for k in range(SHOWN)]
    archives = _CompressedArchives(source.files)
    try:
        for split in plan.shards:
            first = 0
            for number, entries in enumerate(read_entries(output / WORK, split)):
                _check_sources(entries, config.source.root, source.files, output / WORK)
                if not sums_path(output, split, number).exists():
                    yield Task(
                        output=str(output),
                        split=split,
                        number=number,
                        first=first,
                        entries=entries,
                        labels=[labels[entry.class_name] for entry in entries],
                        contents=archives.contents(entries),
                        shown=shown if split == "train" else [],
                        size=config.size,
                        quality=config.quality,
                    )
                first += len(entries)
    finally:
        archives.close()


def _count_finished(work: Path, size: int) -> tuple[int, int]:
    """The images and the rejects of all finished shards. Raises: ValueError if one is damaged."""
    images, rejects = 0, 0
    for path in sorted(work.glob("*-*.npz")):
        about, arrays = read_sums(path, size)
        images += len(arrays[INDEX])
        rejects += len(about["rejects"])
    return images, rejects


def convert_set(config: PrepareConfig, plan: Plan, source: Source, output: Path, say: Say) -> None:
    """Makes the shards that are not there yet, in `config.workers` processes.

    Raises: ValueError for too many rejects, OSError if the disk is full or a worker has died.
    """
    workers = config.workers or cores()
    total = sum(plan.images.values())
    rejects = Rejects(config.max_rejects, total, output / WORK, config.size)
    images_before, rejects_before = _count_finished(output / WORK, config.size)
    finished = images_before + rejects_before
    if finished:
        say(f"going on: {finished:,} of {counted(total, 'image was', 'images were')} done before")
    rejects.add(rejects_before)
    needed, free = (total - finished) * config.size**2 * BYTES_PER_PIXEL, shutil.disk_usage(output).free
    if needed > free:
        say(f"the disk may be too small: about {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    pool = start_pool(workers)
    pending: set[Future[tuple[int, int]]] = set()
    try:
        with metered("converting", total, done=finished) as meter:

            def await_shards(most_pending: int) -> None:
                nonlocal pending
                while len(pending) > most_pending:
                    ready, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in ready:
                        num_images, num_rejects = future.result()
                        meter.advance(num_images + num_rejects)
                        rejects.add(num_rejects)

            for task in _list_tasks(config, plan, source, output):
                with interrupts_held():  # starts a worker, which Ctrl-C must not meet before it ignores it
                    pending.add(pool.submit(convert_shard, task))
                await_shards(2 * workers - 1)
            await_shards(0)
    except BrokenProcessPool as error:
        raise OSError(
            "A worker process has died, perhaps for lack of memory. The same command goes on from here; with "
            f"workers={max(1, workers // 2)} it needs less memory."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
