"""How far a long piece of work has come: a bar in a terminal, a line every ten seconds elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_LINE_SECONDS = 10.0


class Meter:
    """Counts what is done of `total`, 0 where that is not known.

    The rate is that since the first piece was done: before, processes start and buffers fill, which takes many
    times as long as a piece, and the time left would come out as much too long.
    """

    def __init__(self, title: str, total: int, done: int, unit: str, bar: Progress | None) -> None:
        self.title, self.total, self.unit = title, total, unit
        self._done, self._bar = done, bar
        self._last_line = time.monotonic()
        self._measured_from: tuple[int, float] | None = None  # what was done then, and when
        self._task = bar.add_task(title, total=total or None, completed=done, rate="") if bar else None

    def _rate(self, now: float) -> float | None:
        """Pieces a second; None while there is none to tell."""
        if self._measured_from is None:
            self._measured_from = (self._done, now)
            return None
        first, began = self._measured_from
        return (self._done - first) / max(now - began, 1e-9)

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        rate = self._rate(now)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, rate="" if rate is None else f"{rate:,.0f}/s")
        elif now - self._last_line >= PLAIN_LINE_SECONDS:
            self._last_line = now
            parts = [f"{self._done:,}{f' of {self.total:,}' if self.total else ''} {self.unit}"]
            if rate:
                parts.append(f"{rate:,.0f}/s")
                if self.total > self._done:
                    parts.append(f"{_clock((self.total - self._done) / rate)} left")
            print(f"{self.title}: {', '.join(parts)}", flush=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02d}:{int(seconds % 60):02d}"


@contextmanager
def metered(title: str, total: int, unit: str = "images", done: int = 0, silent: bool = False) -> Iterator[Meter]:
    """A meter that is on the screen for as long as the block runs; `done` was done before."""
    console = Console(highlight=False, soft_wrap=True)
    if silent or not console.is_terminal:
        meter = Meter(title, total, done, unit, None)
        if silent:
            meter.advance = lambda count: None  # type: ignore[method-assign]
        yield meter
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(
        *columns, TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), console=console, transient=True
    ) as bar:
        yield Meter(title, total, done, unit, bar)
