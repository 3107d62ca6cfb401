"""What the reader's code prints in two towers at once: whole lines, and before each the tower that printed it."""

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TextIO


class TowerLines(io.TextIOBase):
    """A stream that keeps what a thread writes until its line is complete, and puts the thread's name before it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.begun, self.lock = stream, dict[str, str](), threading.Lock()

    def write(self, text: str) -> int:
        name = threading.current_thread().name
        with self.lock:
            *whole, self.begun[name] = (self.begun.get(name, "") + text).split("\n")
            self.stream.writelines(f"{self._title(name)}{line}\n" for line in whole)
        return len(text)

    def finish(self) -> None:
        """Writes the lines that no line break has ended."""
        for name, line in self.begun.items():
            if line:
                self.stream.write(f"{self._title(name)}{line}\n")
        self.begun.clear()
        self.stream.flush()

    def flush(self) -> None:
        self.stream.flush()

    def _title(self, name: str) -> str:
        return f"{name}: " if name.startswith("tower ") else ""


@contextmanager
def print_by_tower(stream: TextIO) -> Iterator[None]:
    """Lets `print` write whole lines to `stream`, each with the name of its tower."""
    lines = TowerLines(stream)
    with redirect_stdout(lines):
        try:
            yield
        finally:
            lines.finish()
