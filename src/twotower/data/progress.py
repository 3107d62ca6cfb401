"""How far a long piece of work has come: a bar in a terminal, a line every ten seconds elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_LINE_SECONDS = 10.0


class Meter:
    """Counts what is done of `total`, 0 where that is not known; the rate is that since the meter was made."""

    def __init__(self, title: str, total: int, done: int, unit: str, bar: Progress | None) -> None:
        self.title, self.total, self.unit = title, total, unit
        self._done, self._first, self._bar = done, done, bar
        self._began = self._last_line = time.monotonic()
        self._task = bar.add_task(title, total=total or None, completed=done, rate="") if bar else None

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        rate = (self._done - self._first) / max(now - self._began, 1e-9)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done, rate=f"{rate:,.0f}/s")
        elif now - self._last_line >= PLAIN_LINE_SECONDS:
            self._last_line = now
            of, end = "", ""
            if self.total:
                left = max(0, self.total - self._done) / max(rate, 1e-9)
                of = f" of {self.total:,}"
                end = f", {int(left // 3600)}:{int(left // 60 % 60):02d}:{int(left % 60):02d} left"
            print(f"{self.title}: {self._done:,}{of} {self.unit}, {rate:,.0f}/s{end}", flush=True)


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
