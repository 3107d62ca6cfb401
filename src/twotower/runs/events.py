"""metrics.jsonl read back: its events, and what is left of it when a run goes on from an earlier step."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, FiniteFloat, TypeAdapter
from typing_extensions import TypedDict

from twotower.ground.files import write_whole
from twotower.ground.stored_files import Count, damaged, parse_json, read_limited

LARGEST = 1 << 30  # bytes; the 90 epochs of ILSVRC-2012 leave 30 MB
REMEDY = "copy it again from where the run was trained, or leave this run out"


class _Event(TypedDict):
    """What every event has; others come with a text or with numbers by layer."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    event: str
    step: Count


class _Errors(_Event, total=False):
    epoch: FiniteFloat
    loss: float  # infinite or no number where a training has diverged
    top1_error: FiniteFloat
    top5_error: FiniteFloat


class _Training(_Errors, total=False):
    learning_rate: FiniteFloat


class _Memory(_Event, total=False):
    tower0: FiniteFloat
    tower1: FiniteFloat


_FORMS: dict[str, TypeAdapter[Any]] = {
    "train": TypeAdapter(_Training),
    "validation": TypeAdapter(_Errors),
    "memory": TypeAdapter(_Memory),
    "scales": TypeAdapter(dict[str, float | str]),
}
_ANY: TypeAdapter[Any] = TypeAdapter(_Event)


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a metrics.jsonl; a last line that was cut short by a kill is left out.

    Raises: ValueError naming another line that is no event.
    """
    if not path.exists():
        return []
    events: list[dict[str, Any]] = []
    for number, line in enumerate(read_limited(path, LARGEST, REMEDY).split(b"\n")[:-1], 1):
        try:
            event: dict[str, Any] = dict(parse_json(line, _ANY, path, REMEDY))
            form = _FORMS.get(event["event"])
            if form is not None:
                parse_json(line, form, path, REMEDY)
            if event["event"] == "scales":  # of which the form cannot say that one value alone is a text
                texts = [key for key, value in event.items() if isinstance(value, str) and key != "event"]
                if texts:
                    raise damaged(path, f"{texts[0]} is a text and should be a number", REMEDY)
            if events and event["step"] < events[-1]["step"]:
                raise damaged(path, f"step {event['step']} comes after step {events[-1]['step']}", REMEDY)
        except ValueError as error:
            raise ValueError(str(error).replace("is damaged (", f"is damaged (line {number}: ", 1)) from None
        events.append(event)
    return events


def check_values(path: Path, event: dict[str, Any], names: Iterable[str]) -> None:
    """Raises: ValueError if an event of metrics.jsonl has not all of these values."""
    missing = [name for name in names if name not in event]
    if missing:
        raise damaged(path, f"{event['event']} of step {event['step']} has no {missing[0]}", REMEDY)


def cut_back(path: Path, step: int) -> None:
    """Drops the events after `step`, which the resumed run will write again with the same values."""
    events = read_events(path)
    before = [event for event in events if event["step"] <= step and event["event"] != "end"]
    write_whole(path, "".join(json.dumps(event) + "\n" for event in before).encode())
