"""Examines the files of a folder: decodes each once, in other processes, and survives it when one of them dies.

Files that are named as images may hold anything, and native decoders crash on some. When a process crashes on a
batch, or does not finish it, the batch is examined again one file at a time. Each crash then names its file, which
counts as one that cannot be decoded.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Lock, local
from types import TracebackType
from typing import Self

from twotower.data.choose_loader import choose_loader
from twotower.data.folder import FolderIndex
from twotower.data.preparing.dali_decoder import Decoder
from twotower.data.preparing.examiner import Examiner, ExaminerDiedError, Findings
from twotower.data.preparing.mean_and_pca import Fit
from twotower.data.preparing.rejects import refuse_file
from twotower.data.preparing.torch_decoder import TorchDecoder
from twotower.ground.processes import cores
from twotower.ground.progress import metered

BATCH = 32  # files in a request
MAX_EXAMINERS = 16  # processes; each needs 60 MB besides the libraries that they share
PATIENCE_SECONDS = 120.0  # for a batch, and for a file alone; a PNG of 16000 x 16000 pixels took 32
TURN_SECONDS = 0.5  # longest wait for a batch before Ctrl-C is noticed
AHEAD = 4  # batches that a process may have finished before the earlier ones of other processes


def choose_decoder(loader: str) -> type[Decoder] | type[TorchDecoder]:
    """The decoder that agrees with a loader about which files can be decoded.

    Raises: ValueError for a loader that this machine lacks.
    """
    return TorchDecoder if choose_loader(loader) == "torch" else Decoder


class Examiners:
    """Several processes, each replaced when it dies.

    Args:
        decoder, size, patience: as those of `Examiner`.
        count: number of processes.
    """

    def __init__(self, decoder: type, size: int, count: int, patience: float = PATIENCE_SECONDS) -> None:
        self._decoder, self._size, self._patience, self._count = decoder, size, patience, count
        # Linux ends a process with the thread that started it, so each thread starts and asks its own.
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="examine")
        self._own = local()
        self._lock, self._all, self._closed = Lock(), set[Examiner](), False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
            for examiner in self._all:
                examiner.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for examiner in self._all:
            examiner.close()

    def examine(self, paths: list[Path], fit: bool) -> Iterator[tuple[int, Findings]]:
        """Yields the length of each batch and the findings in it, in the order of `paths`.

        Raises: OSError if no process can be started.
        """
        pending: deque[tuple[int, Future[Findings]]] = deque()
        for begin in range(0, len(paths), BATCH):
            batch = paths[begin : begin + BATCH]
            pending.append((len(batch), self._threads.submit(self._survive, batch, fit)))
            if len(pending) >= AHEAD * self._count:
                length, future = pending.popleft()
                yield length, _await(future)
        for length, future in pending:
            yield length, _await(future)

    def _survive(self, paths: list[Path], fit: bool) -> Findings:
        """The findings in a batch, also when the process dies of it."""
        examiner = self._examiner()
        is_new = examiner.num_requests == 0
        try:
            return examiner.examine(paths, fit)
        except ExaminerDiedError as death:
            self._drop(examiner)
            if len(paths) == 1 and is_new:
                return Findings(Fit(self._size), {str(paths[0]): str(death)})
        # Each file alone. A single file is tried once more, because the process may have died of an earlier one.
        findings = Findings(Fit(self._size))
        for path in paths:
            findings.merge(self._survive([path], fit))
        return findings

    def _examiner(self) -> Examiner:
        """The process of this thread, started if there is none."""
        examiner: Examiner | None = getattr(self._own, "examiner", None)
        if examiner is None:
            with self._lock:
                if self._closed:
                    raise OSError("No more files are examined.")
                self._own.examiner = examiner = Examiner(self._decoder, self._size, self._patience)
                self._all.add(examiner)
        return examiner

    def _drop(self, examiner: Examiner) -> None:
        self._own.examiner = None
        with self._lock:
            self._all.discard(examiner)
        examiner.close()


def _await(future: Future[Findings]) -> Findings:
    """The result. Waits in short turns, because a Ctrl-C just before a wait is noticed only after it."""
    while not wait([future], timeout=TURN_SECONDS).done:
        pass
    return future.result()


def examine(
    index: FolderIndex, size: int, on_error: str, progress: bool, decoder: type = Decoder
) -> tuple[Fit, dict[str, str], bool]:
    """Decodes every file of a folder, on all cores.

    Args:
        size: sides of the squares that images are brought to, in pixels.
        on_error: `stop` at a file that cannot be decoded, or `skip` it.
        progress: whether to show progress.
        decoder: as that of `Examiner`.

    Returns: sums over the training images; the reason for each reject, by its path below the root; whether any image
        still has to be resized to a square of `size`.

    Raises: ValueError naming a file that cannot be decoded, unless such are skipped; OSError if no process starts.
    """
    paths = {
        split: [index.root / split / name / file for name, files in by_class.items() for file in files]
        for split, by_class in index.files.items()
    }
    num_batches = max(-(-len(part) // BATCH) for part in paths.values())
    findings = Findings(Fit(size))
    with Examiners(decoder, size, min(cores(), MAX_EXAMINERS, num_batches)) as examiners:
        for split, part in paths.items():
            with metered(f"preparing {split}", len(part), silent=not progress) as meter:
                for length, in_batch in examiners.examine(part, fit=split == "train"):
                    if in_batch.rejects and on_error == "stop":
                        raise refuse_file(*next(iter(in_batch.rejects.items())))
                    findings.merge(in_batch)
                    meter.advance(length)
    rejects = {Path(path).relative_to(index.root).as_posix(): reason for path, reason in findings.rejects.items()}
    return findings.fit, rejects, findings.needs_resize
