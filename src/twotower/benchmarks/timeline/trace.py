"""A timeline as a trace in Chrome's JSON format, which https://ui.perfetto.dev opens.

Each tower is a process of the trace, and each kind of work a thread of it; each half that crosses is an arrow (a
flow) from where it was given away to where it arrived. Times are microseconds since the first recorded step began.

Perfetto takes the numbers for those of an operating system: 0 is its idle process, a thread that has its process's
number is the main one, and no two processes have a thread of the same number. So each tower has a hundred of its own.
"""

from pathlib import Path
from typing import Any

from twotower.benchmarks.timeline.records import LOADING, SEND, WAIT, Span, Timeline, TowerStep, list_travels
from twotower.ground.files import write_json

STEPS, COMPUTE, WAITING, SENDING, INPUT, ARRIVING = range(6)
THREADS = {
    STEPS: "steps",
    COMPUTE: "computing",
    WAITING: "waiting",
    SENDING: "sending",
    INPUT: "loading",
    ARRIVING: "arriving",  # of halves that are under way together the second has a thread of its own, and so on
}
_OF_KIND = {WAIT: WAITING, SEND: SENDING, LOADING: INPUT}


def make_trace(timeline: Timeline) -> dict[str, Any]:
    """The trace of all recorded steps; the one that is drawn is marked among the steps."""
    events: list[dict[str, Any]] = []
    for tower in (0, 1):
        events.append(_name("process_name", tower, 0, f"tower {tower}"))
        events += [_name("thread_name", tower, thread, name) for thread, name in THREADS.items()]
    free_from: tuple[list[float], list[float]] = ([0.0], [0.0])  # of each tower, by thread from ARRIVING on
    origin = min(tower.begin for tower in timeline.steps[0])
    flow = 0
    for number, step in enumerate(timeline.steps):
        for tower, one in enumerate(step):
            events += _list_spans(number, number == timeline.drawn, tower, one, origin)
        for travel in list_travels(step):
            flow += 1
            to = 1 - travel.source
            name = f"{travel.what} for {travel.part}"
            args: dict[str, Any] = {"bytes": travel.num_bytes, "from tower": travel.source}
            begin, end = _since(travel.sent, origin), _since(travel.arrived, origin)
            args |= {"hidden ms": travel.hidden / 1e6, "late ms": travel.late / 1e6}
            thread = ARRIVING + _find_free(free_from[to], begin, end)
            events.append(_complete(name, "arriving", to, thread, (begin, end), args))
            # An arrow ends within the slice that it belongs to, so a nanosecond before its end.
            at = max(begin, end - 1e-3)
            sent_in = WAITING if travel.part == LOADING else SENDING
            shared = {"cat": "crossing", "name": name, "id": flow}
            events.append({"ph": "s", "ts": begin, **_place(travel.source, sent_in), **shared})
            events.append({"ph": "f", "bp": "e", "ts": at, **_place(to, thread), **shared})
    for tower, threads in enumerate(free_from):
        for number in range(1, len(threads)):
            events.append(_name("thread_name", tower, ARRIVING + number, THREADS[ARRIVING]))
    about = {
        "title": timeline.title,
        "clock": "the host's monotonic clock, which all its processes share",
        "clocks differ by at most, ms": timeline.clock_error / 1e6,
        "drawn step": timeline.drawn + 1,
    }
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}


def write_trace(timeline: Timeline, path: Path) -> None:
    """Raises: OSError if it cannot be written."""
    write_json(path, make_trace(timeline))


def _find_free(free_from: list[float], begin: float, end: float) -> int:
    """The first thread that has nothing else at `begin`, which is then taken until `end`."""
    thread = next((number for number, free in enumerate(free_from) if free <= begin), len(free_from))
    free_from[thread : thread + 1] = [end]
    return thread


def _since(moment: int, origin: int) -> float:
    return (moment - origin) / 1e3


def _place(tower: int, thread: int) -> dict[str, int]:
    process = 100 * (tower + 1)
    return {"pid": process, "tid": process + thread}


def _name(what: str, tower: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, **_place(tower, thread), "args": {"name": name}}


def _complete(
    name: str, category: str, tower: int, thread: int, way: tuple[float, float], args: dict[str, Any]
) -> dict[str, Any]:
    begin, end = way
    event = {
        "ph": "X",
        "name": name,
        "cat": category,
        **_place(tower, thread),
        "ts": begin,
        "dur": round(end - begin, 3),
    }
    return event | {"args": args}


def _list_spans(number: int, is_drawn: bool, tower: int, step: TowerStep, origin: int) -> list[dict[str, Any]]:
    way = _since(step.begin, origin), _since(step.end, origin)
    name = f"step {number + 1}, drawn" if is_drawn else f"step {number + 1}"
    events = [_complete(name, "step", tower, STEPS, way, {})]
    for span in step.spans:
        way = _since(span.begin, origin), _since(span.end, origin)
        thread = _OF_KIND.get(span.kind, COMPUTE)
        events.append(_complete(name_span(span), span.kind, tower, thread, way, {"part": span.part}))
    return events


def name_span(span: Span) -> str:
    """ "conv3 forward", "waiting, conv3", "loss"."""
    if span.kind == span.part:
        return span.kind
    return f"{span.kind}, {span.part}" if span.kind in (WAIT, SEND) else f"{span.part} {span.kind}"
