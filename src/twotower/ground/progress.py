"""Shows how far a long piece of work has come: a bar in a terminal, a line every ten seconds in a pipe or a log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from twotower.ground.wording import format_duration

PLAIN_LINE_SECONDS = 10.0  # least time between two lines; a person who waits wants no more, and a log stays short


class Meter:
    """Counts the pieces of a piece of work, and shows the count, the rate and the time left.

    The rate is measured from the end of the first piece: before it, processes start and buffers fill, which takes
    many times as long as a piece and would make the time left much too long.

    Args:
        title: name of the work, such as "converting".
        total: number of pieces; 0 where it is not known.
        unit: plural name of the pieces.
        done: pieces that were finished before.
        console: where the bar or the lines appear; None: standard output. Other lines printed to the same console
            appear above the bar.
        silent: shows nothing.
    """

    def __init__(
        self,
        title: str,
        total: int,
        unit: str = "images",
        done: int = 0,
        console: Console | None = None,
        silent: bool = False,
    ) -> None:
        self.title, self.unit = title, unit
        self._total, self._done, self._silent = total, done, silent
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._last_line = time.monotonic()
        self._measured_from: tuple[int, float] | None = None  # pieces and time at the end of the first piece
        self._bar: Progress | None = None
        if self._console.is_terminal and not silent:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
            values = TextColumn("{task.fields[values]}")
            self._bar = Progress(*columns, values, console=self._console, transient=True)
            self._task = self._bar.add_task(title, total=total or None, completed=done, values="")
            self._bar.start()

    def advance(self, count: int) -> None:
        """Adds `count` finished pieces."""
        self.reach(self._done + count)

    def reach(self, done: int, values: str = "") -> None:
        """Sets the number of finished pieces.

        Args:
            values: text to show in place of the rate.
        """
        self._done = done
        now = time.monotonic()
        rate = self._measure_rate(now)
        if self._silent:
            return
        parts = [values or (f"{rate:,.0f}/s" if rate else "")]
        if rate and self._total > done:
            parts.append(f"{format_duration((self._total - done) / rate)} left")
        shown = [part for part in parts if part]
        if self._bar is not None:
            self._bar.update(self._task, completed=done, values=", ".join(shown))
        elif now - self._last_line >= PLAIN_LINE_SECONDS:
            self._last_line = now
            count = f"{done:,}{f' of {self._total:,}' if self._total else ''} {self.unit}"
            self._console.print(f"{self.title}: {', '.join([count, *shown])}", markup=False)

    def _measure_rate(self, now: float) -> float | None:
        """Pieces a second; None at the end of the first piece, when there is no time to measure yet."""
        if self._measured_from is None:
            self._measured_from = (self._done, now)
            return None
        first, began = self._measured_from
        return (self._done - first) / max(now - began, 1e-9)

    def close(self) -> None:
        """Takes the bar off the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@contextmanager
def metered(title: str, total: int, unit: str = "images", done: int = 0, silent: bool = False) -> Iterator[Meter]:
    """A `Meter` that is on the screen for as long as the block runs."""
    meter = Meter(title, total, unit, done, silent=silent)
    try:
        yield meter
    finally:
        meter.close()
