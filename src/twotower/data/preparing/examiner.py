"""Starts a process that decodes unknown files, of which one may crash it, and talks to it.

The process is a command of its own (examiner_process.py) rather than one of multiprocessing, because that would first
import the caller's main module, which brings torch, and would need `if __name__ == "__main__"` in users' scripts.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np

from twotower.data.preparing.mean_and_pca import Fit

PROCESS = "twotower.data.preparing.examiner_process"
START_SECONDS = 120.0  # longest start of a decoder; it takes half a second where the disk is not busy


@dataclass
class Findings:
    """The results of examining files.

    Attributes:
        fit: sums over their images, from which the mean image and the colour axes follow.
        rejects: reason, by path, for each file that cannot be decoded.
        needs_resize: whether any image still has to be resized.
    """

    fit: Fit
    rejects: dict[str, str] = field(default_factory=dict)
    needs_resize: bool = False

    def merge(self, other: "Findings") -> None:
        """Adds the findings in other files."""
        self.fit.merge(other.fit.num_images, other.fit.image_sum, other.fit.products)
        self.rejects |= other.rejects
        self.needs_resize |= other.needs_resize


class ExaminerDiedError(RuntimeError):
    """The process crashed on a request, or was ended as late; the message is the reason to give for the file."""


class Examiner:
    """An examining process. It ends with `close`, or with the thread that made this object.

    Args:
        decoder: a class like `dali_decoder.Decoder`, in a module that can be imported.
        size: sides of the squares that images are brought to, in pixels.
        patience: seconds that a request may take; then the process is ended.
    """

    def __init__(self, decoder: type, size: int, patience: float) -> None:
        self._size, self._patience = size, patience
        self._late = 0.0  # the limit in seconds that the process has exceeded
        self.num_requests = 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # stays open as long as the process runs
        search_path = [entry or os.getcwd() for entry in sys.path]
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", PROCESS, f"{decoder.__module__}:{decoder.__qualname__}", str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | one_thread | {"PYTHONPATH": os.pathsep.join(search_path)},
            start_new_session=True,  # makes Ctrl-C reach only the parent, which then ends this process
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def examine(self, paths: list[Path], fit: bool) -> Findings:
        """Decodes files, and sums up their images if `fit`.

        Raises: ExaminerDiedError if the process dies of them, OSError if it does not even start.
        """
        if self.num_requests == 0:
            self._await_start()
        self.num_requests += 1
        request = {"paths": [str(path) for path in paths], "fit": fit}
        findings = Findings(Fit(self._size))
        try:
            with self._limited(self._patience):
                self._requests.write(json.dumps(request).encode() + b"\n")
                self._requests.flush()
                answer = self._read_answer()
                if "problem" in answer:
                    raise ExaminerDiedError(f"decoding it fails with {answer['problem']}"[:200])
                sums = np.frombuffer(self._read(4 * findings.fit.image_sum.size), np.uint32)
        except (BrokenPipeError, EOFError) as error:
            raise ExaminerDiedError(f"decoding it {self._end()}") from error
        findings.rejects, findings.needs_resize = answer["rejects"], answer["needs_resize"]
        sums = sums.reshape(findings.fit.image_sum.shape)
        findings.fit.merge(answer["num_images"], sums, np.array(answer["products"]))
        return findings

    def _await_start(self) -> None:
        try:
            with self._limited(START_SECONDS):
                problem = self._read_answer().get("problem")
        except EOFError:
            end = self._end()
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            problem = lines[-1] if lines else f"starting it {end}"
        if problem is not None:
            raise OSError(f"The process that decodes images could not be started ({problem}).")

    def _read_answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _read(self, length: int) -> bytes:
        content = self._answers.read(length)
        if len(content) < length:
            raise EOFError
        return content

    @contextmanager
    def _limited(self, seconds: float) -> Iterator[None]:
        """Ends the process if the block takes longer; the block then finds that its answers have ended."""

        def end() -> None:
            self._late = seconds
            self.kill()

        timer = Timer(seconds, end)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _end(self) -> str:
        """Says how the process ended, as the predicate of a sentence."""
        status = self._process.wait()
        if self._late:
            return f"did not come to an end within {self._late:g} seconds"
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        return f"ends the process with {how}"

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """Ends the process, and waits for its end."""
        self.kill()
        self._process.wait()
        for stream in (self._requests, self._answers, self._errors):
            with suppress(BrokenPipeError):  # half a request may still be in its buffer
                stream.close()
