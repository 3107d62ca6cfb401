"""What both towers do in a training step, on one clock: a drawing, and a trace that https://ui.perfetto.dev opens.

python launch/timeline.py [network=alexnet_2012] [optim.batch_size=64] [machine.precision=bf16] [data_root=DIR]

Both towers train in two processes for a few steps; the one of median length is drawn and summed up.
"""

from pathlib import Path

from rich.table import Table

import twotower.command_line  # noqa: F401 - before torch, as a stop while that is imported is silent then
from twotower.benchmarks.timeline.draw import draw_timeline
from twotower.benchmarks.timeline.records import Sums, sum_up
from twotower.benchmarks.timeline.run import record_timeline
from twotower.benchmarks.timeline.trace import write_trace
from twotower.command_line.command import command
from twotower.config import TimelineConfig
from twotower.figures.figure2 import check_suffix
from twotower.ground.screen import print_table


@command("timeline")
def main(settings: TimelineConfig) -> None:
    output = Path(settings.output)
    check_suffix(output)
    timeline = record_timeline(settings)
    step = timeline.steps[timeline.drawn]
    sums = sum_up(step, timeline.layers)
    table = Table("ms")
    for tower in (0, 1):
        for head in ("computing", "waiting", "hidden transfer"):
            table.add_column(f"tower {tower}:\n{head}", justify="right")
    totals = (Sums(), Sums())
    for part, pair in sums.items():
        table.add_row(part, *(text for one in pair for text in _show(one)))
        for total, one in zip(totals, pair, strict=True):
            total.add(one)
    table.add_section()
    table.add_row("in all", *(text for one in totals for text in _show(one)))
    lengths = [length / 1e6 for length in timeline.lengths]
    print_table(table, timeline.title)
    print(
        f"step {timeline.drawn + 1} of {len(lengths)}, the one of median length, {lengths[timeline.drawn]:,.1f} ms "
        f"({min(lengths):,.1f} to {max(lengths):,.1f} ms)"
    )
    for tower, one in enumerate(totals):
        share = 100 * one.waiting / (one.waiting + one.compute)
        print(
            f"tower {tower} waited {one.waiting:,.1f} ms ({share:.1f} % of its step), {one.late:,.1f} of them before "
            f"tower {1 - tower} had sent"
        )
    print(f"one clock: those of the two processes differ by at most {timeline.clock_error / 1e6:.3f} ms")
    draw_timeline(timeline, output)
    write_trace(timeline, output.with_suffix(".json"))
    print(f"drawn: {output}; for https://ui.perfetto.dev: {output.with_suffix('.json')}")


def _show(sums: Sums) -> tuple[str, str, str]:
    return tuple(f"{value:,.1f}" if value else "" for value in (sums.compute, sums.waiting, sums.hidden))  # type: ignore[return-value]


if __name__ == "__main__":
    main()
