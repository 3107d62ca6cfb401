"""metrics.jsonl read back: its events, and what is left of it when a run goes on from an earlier step."""

import json
from pathlib import Path
from typing import Any

from twotower.ground.files import write_whole


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a metrics.jsonl; a last line that was cut short by a kill is left out.

    Raises: ValueError naming another line that is no event.
    """
    if not path.exists():
        return []
    events = []
    for number, line in enumerate(path.read_text().splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            continue
        try:
            event = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, cannot be read ({error}); the file was changed.") from error
        if not isinstance(event, dict) or not {"event", "step"} <= set(event):
            raise ValueError(f"{path}, line {number}, is no event of a run; the file was changed.")
        events.append(event)
    return events


def cut_back(path: Path, step: int) -> None:
    """Drops the events after `step`, which the resumed run will write again with the same values."""
    events = read_events(path)
    before = [event for event in events if event["step"] <= step and event["event"] != "end"]
    write_whole(path, "".join(json.dumps(event) + "\n" for event in before).encode())
