"""Builds a prepared set from a source: plan, convert shard by shard on all cores, finish.

    output/train/00000.tar ...   JPEGs of size x size, `images_per_shard` images of the source each
    output/train/index.npy       where each image lies, and its label                 (val, test: the same)
    output/mean_image.npy        float32 [size, size, 3]
    output/dataset.json          classes, counts, settings, checksums, rejects, colour PCA; written last
    output/picture.png           what the network is fed
    output/work/                 the plan and the sums of each shard; gone when all is finished

A shard is made from fixed images of the source, and counts as done when its file in work/ is there. So the bytes do
not depend on the number of workers, nor on how often the work was interrupted.
"""

import json
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twotower.config import PrepareConfig
from twotower.data.prepared_set import (
    DATASET,
    FORMAT,
    MEAN_IMAGE,
    PICTURE,
    SPLITS,
    WORK,
    assemble,
    is_prepared,
    read_dataset_json,
)
from twotower.data.preparing.input_picture import SHOWN, draw_picture
from twotower.data.preparing.mean_and_pca import Fit
from twotower.data.preparing.shard_plan import PLAN, Plan, Say, make_plan, read_entries, read_plan, settings_of
from twotower.data.preparing.shard_worker import Task, about_shard, convert_shard, sha256_of, start_worker, sums_path
from twotower.data.shards import INDEX_FILE, INDEX_TYPE, shard_name
from twotower.data.sources.archives import DAMAGE, View, is_compressed, open_archive
from twotower.data.sources.source import Entry, Source, find_source
from twotower.ground.files import write_npy, write_whole
from twotower.ground.locks import held
from twotower.ground.processes import cores
from twotower.ground.progress import metered
from twotower.ground.words import counted

BYTES_PER_PIXEL = 0.5  # of a JPEG of quality 95, measured on ILSVRC: 30 KB for 256 x 256


class DiskFullError(OSError):
    """Nothing more can be written; what is there is kept."""


# Conversion


class _Streams:
    """Reads compressed archives from front to back."""

    def __init__(self, files: list[Path]) -> None:
        self._compressed = {str(path) for path in files if is_compressed(path)}
        self._open: tuple[str, View] | None = None
        self._stack = ExitStack()

    def contents(self, entries: list[Entry]) -> list[bytes] | None:
        """The bytes of each entry; None if a worker can read them where they lie."""
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


def _tasks(config: PrepareConfig, plan: Plan, source: Source, output: Path) -> Iterator[Task]:
    """The shards that are not there yet."""
    labels = {name: label for label, name in enumerate(plan.classes)}
    shown = [plan.images["train"] * (2 * k + 1) // (2 * SHOWN) for k in range(SHOWN)]
    streams = _Streams(source.files)
    try:
        for split in plan.shards:
            first = 0
            for number, entries in enumerate(read_entries(output / WORK, split)):
                if not sums_path(output, split, number).exists():
                    yield Task(
                        str(output),
                        split,
                        number,
                        first,
                        entries,
                        [labels[entry.class_name] for entry in entries],
                        streams.contents(entries),
                        shown if split == "train" else [],
                        config.size,
                        config.quality,
                    )
                first += len(entries)
    finally:
        streams.close()


class _Rejects:
    """Counts what cannot be used, and stops when it is too much."""

    def __init__(self, config: PrepareConfig, plan: Plan, work: Path) -> None:
        self._work, self._max = work, config.max_rejects
        self._total = sum(plan.images.values())
        self.count = 0

    def add(self, count: int) -> None:
        """Raises: ValueError with the first of them, if they are more than is allowed."""
        self.count += count
        if count == 0 or self.count <= self._max * self._total:
            return
        listed = [
            f"{split}: {name}: {reason}"
            for split in SPLITS
            for sums in sorted(self._work.glob(f"{split}-*.npz"))
            for name, reason in about_shard(np.load(sums))["rejects"]
        ]
        (self._work / "rejects.txt").write_text("".join(line + "\n" for line in listed))
        first = "".join(f"\n  {line}" for line in listed[:20])
        raise ValueError(
            f"{self.count:,} of {counted(self._total, 'image')} cannot be used, more than max_rejects={self._max:g} "
            "allows. If that is as it should be, give a larger max_rejects (at most 1). The list, also in "
            f"{self._work / 'rejects.txt'}:{first}"
        )


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Ctrl-C comes through when the block has ended; in processes that are started within, never.

    Windows cannot hold it back; there it may meet a worker that is starting, which then says so.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _convert(config: PrepareConfig, plan: Plan, source: Source, output: Path, say: Say) -> None:
    workers = config.workers or cores()
    done = [
        (len(sums["index"]), len(about_shard(sums)["rejects"]))
        for path in sorted((output / WORK).glob("*-*.npz"))
        for sums in [np.load(path)]
    ]
    rejects, total = _Rejects(config, plan, output / WORK), sum(plan.images.values())
    finished = sum(images + bad for images, bad in done)
    if finished:
        say(f"going on: {finished:,} of {counted(total, 'image was', 'images were')} done before")
    rejects.add(sum(bad for _, bad in done))
    needed, free = (total - finished) * config.size**2 * BYTES_PER_PIXEL, shutil.disk_usage(output).free
    if needed > free:
        say(f"the disk may be too small: about {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start_worker)
    pending: set[Future[tuple[int, int]]] = set()
    try:
        with metered("converting", total, done=finished) as meter:

            def settle(enough: int) -> None:
                nonlocal pending
                while len(pending) > enough:
                    ready, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for future in ready:
                        images, bad = future.result()
                        meter.advance(images + bad)
                        rejects.add(bad)

            for task in _tasks(config, plan, source, output):
                with _interrupts_wait():  # a worker is started here; Ctrl-C must not meet it before start_worker
                    pending.add(pool.submit(convert_shard, task))
                settle(2 * workers - 1)
            settle(0)
    except BrokenProcessPool as error:
        raise OSError(
            "A worker process has died, perhaps for lack of memory. The same command goes on from here; with "
            f"workers={max(1, workers // 2)} it needs less memory."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# The end


def _finish(config: PrepareConfig, plan: Plan, output: Path, say: Say) -> None:
    fit, rejects = Fit(config.size), []
    splits: dict[str, dict[str, Any]] = {}
    shown: list[tuple[int, NDArray[np.uint8]]] = []
    counts = {name: dict.fromkeys(plan.shards, 0) for name in plan.classes}
    for split in SPLITS:
        if split not in plan.shards:
            continue
        parts, shards = [np.empty(0, INDEX_TYPE)], []
        for number in range(plan.shards[split]):
            with np.load(sums_path(output, split, number)) as sums:
                about = about_shard(sums)
                parts.append(sums["index"])
                shards.append({"file": shard_name(number), "sha256": about["sha256"]})
                rejects += [{"split": split, "name": name, "reason": reason} for name, reason in about["rejects"]]
                if split == "train":
                    fit.merge(len(sums["index"]), sums["image_sum"], sums["products"])
                    before = sum(len(part) for part in parts[:-1])
                    keys = [key for key in sums.files if key.startswith("shown-")]
                    shown += [(before + int(key.removeprefix("shown-")), sums[key]) for key in keys]
        index = np.concatenate(parts)
        for label, count in zip(*np.unique(index["label"], return_counts=True), strict=True):
            counts[plan.classes[label]][split] = int(count)
        write_npy(output / split / INDEX_FILE, index)
        splits[split] = {
            "images": len(index),
            "index_sha256": sha256_of(output / split / INDEX_FILE),
            "shards": shards,
        }
    for name in plan.classes:
        if counts[name]["train"] == 0:
            raise ValueError(f"No training image of class {name} can be used; each class needs at least one.")
    for split, found in splits.items():
        if found["images"] == 0:
            raise ValueError(f"No image of {split} can be used; each split needs at least one.")
    write_npy(output / MEAN_IMAGE, fit.mean_image())
    values, vectors = fit.colour_pca()
    content = {
        "format": FORMAT,
        "settings": plan.settings,
        "classes": [{"name": name, "words": plan.words.get(name, name), **counts[name]} for name in plan.classes],
        "splits": splits,
        "rejects": rejects,
        "files_passed_over": plan.ignored,
        "mean_image_sha256": sha256_of(output / MEAN_IMAGE),
        "channel_means": fit.mean_image().mean(axis=(0, 1), dtype=np.float64).tolist(),
        "eigenvalues": values.tolist(),
        "standard_deviations": np.sqrt(np.maximum(values, 0)).tolist(),
        "eigenvectors": vectors.tolist(),
    }
    draw_picture(assemble(output, content), shown, dict(config.picture), output / PICTURE)
    write_whole(output / DATASET, json.dumps(content, indent=1).encode() + b"\n")
    for split, found in splits.items():
        say(f"{split}: {counted(found['images'], 'image')} in {counted(len(found['shards']), 'shard')}")
    classes, left_out = counted(len(plan.classes), "class", "classes"), counted(len(rejects), "reject")
    say(f"{classes}, {left_out}, listed in {output / DATASET}")
    shutil.rmtree(output / WORK)


def check(config: PrepareConfig) -> None:
    """Raises: ValueError naming the key, what was given, what is allowed."""
    for key, value, least, most in (
        ("size", config.size, 8, 4096),
        ("quality", config.quality, 1, 100),
        ("images_per_shard", config.images_per_shard, 1, 65536),
        ("max_rejects", config.max_rejects, 0, 1),
        ("workers", config.workers, 0, 1024),
    ):
        if not least <= value <= most:
            raise ValueError(f"{key}={value} is not between {least} and {most}.")
    for folder, split in config.source.splits.items():
        if split not in SPLITS:
            raise ValueError(f"source.splits.{folder}={split} is not known; choose one of {', '.join(SPLITS)}.")


def build(config: PrepareConfig, say: Say) -> None:
    """Makes the set in `config.output`, or goes on with it; a finished one is never touched.

    Raises: ValueError, OSError in one sentence; what was done so far is kept.
    """
    check(config)
    output = Path(config.output)
    source = find_source(config.source)
    settings = settings_of(config, source)
    if is_prepared(output):
        _check_same(settings, read_dataset_json(output)["settings"], output, "is finished")
        shutil.rmtree(output / WORK, ignore_errors=True)
        say(f"{output} is finished already, from {settings['source']}; verify=true checks it.")
        return
    work = output / WORK
    try:
        if output.is_dir() and any(output.iterdir()) and not work.is_dir():
            raise ValueError(f"output={output} holds something else; give a new or empty folder.")
        work.mkdir(parents=True, exist_ok=True)
        with held(work / "lock", f"output={output} is being built"):
            if is_prepared(output):
                raise ValueError(f"output={output} was just finished by another process; verify=true checks it.")
            plan = read_plan(work)
            if plan is None:
                plan = make_plan(config, source, settings, work, say)
                write_whole(work / PLAN, json.dumps(plan.__dict__).encode())
            else:
                _check_same(settings, plan.settings, output, "was begun")
            for split in plan.shards:
                (output / split).mkdir(exist_ok=True)
            _convert(config, plan, source, output, say)
            _finish(config, plan, output, say)
    except OSError as error:
        if error.errno is None:
            raise
        raise DiskFullError(
            f"output={output} cannot be written ({error.strerror}). Nothing is lost: the same command goes on from "
            "here."
        ) from error


def _check_same(wanted: dict[str, Any], found: dict[str, Any], output: Path, state: str) -> None:
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ValueError(
                f"output={output} {state} with {key}={found.get(key)}, not {value}; choose another output, or delete "
                "that folder."
            )
