"""Reads W&B's offline files back, which wandb itself does only on the way to its server.

run-<id>.wandb is a LevelDB log: a header of 7 bytes, then blocks of 32 KiB with chunks of crc32, length and kind
(whole, first, middle, last), which together are protobuf records. The checksums are not checked here.
"""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

HEADER, BLOCK = b":W&B", 32 * 1024
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_records(content: bytes) -> Iterator[Record]:
    """All complete records; one cut short at the end is left out. Raises: ValueError for another kind of file."""
    if content[:4] != HEADER:
        raise ValueError("this is no offline file of W&B: it does not begin with its header.")
    place, pending = 7, b""
    while place + 7 <= len(content):
        left = BLOCK - place % BLOCK
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        chunk = content[place + 7 : place + 7 + length]
        if kind not in (WHOLE, FIRST, MIDDLE, LAST) or len(chunk) < length:
            return
        place += 7 + length
        pending = chunk if kind in (WHOLE, FIRST) else pending + chunk
        if kind in (WHOLE, LAST):
            record = Record()
            record.ParseFromString(pending)
            yield record


@dataclass
class OfflineRun:
    """The content of an offline run; nested keys are joined by dots.

    Attributes:
        history: one dict for each `log`.
        summary: the last values.
        metrics: define_metric's name or glob -> its x axis, empty for none.
        artifacts: name -> type, names of its files, aliases.
        exit_code: None if the run did not end by itself.
    """

    folder: Path
    about: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    artifacts: dict[str, tuple[str, set[str], set[str]]] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def keys(self) -> set[str]:
        """Everything that was logged; of pictures and tables only the key."""
        return {key for row in self.history for key in row if not key.startswith("_")}

    def files(self, key: str) -> list[Path]:
        """The files of all pictures or tables that were logged as `key`."""
        values = [row[key] for row in self.history if key in row]
        names = [name for one in values for name in one.get("filenames", [one.get("path")])]
        return [self.folder / "files" / name for name in names]


def _items(items: Any) -> dict[str, Any]:
    """Turns `a` with the nested keys x and y into {"a": {"x": ..., "y": ...}}."""
    found: dict[str, Any] = {}
    for item in items:
        *parents, last = list(item.nested_key) or [item.key]
        inside = found
        for parent in parents:
            inside = inside.setdefault(parent, {})
        inside[last] = json.loads(item.value_json)
    return found


def read_run(path: Path) -> OfflineRun:
    """Reads run-<id>.wandb. Raises: ValueError for another kind of file."""
    run = OfflineRun(path.parent)
    for record in read_records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.about = record.run
            run.config |= _items(record.run.config.update)
        elif kind == "config":
            run.config |= _items(record.config.update)
        elif kind == "history":
            run.history.append(_items(record.history.item))
        elif kind == "summary":
            run.summary |= _items(record.summary.update)
        elif kind == "metric":
            run.metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "artifact":
            one = record.artifact
            run.artifacts[one.name] = (one.type, {c.path for c in one.manifest.contents}, set(one.aliases))
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def read_runs(run_dir: Path) -> list[OfflineRun]:
    """Reads all W&B runs in the folder of a run, in the order of their beginning."""
    runs = [read_run(path) for path in run_dir.glob("wandb/offline-run-*/run-*.wandb")]
    return sorted(
        (run for run in runs if run.about is not None), key=lambda run: run.about.start_time.ToNanoseconds()
    )


def ended_runs(run_dir: Path, count: int) -> list[OfflineRun]:
    """Waits for exactly `count` runs that have ended, because W&B's process may write for a moment after `finish`."""
    deadline = time.monotonic() + 20
    while True:
        runs = read_runs(run_dir)
        if len(runs) >= count and all(run.exit_code is not None for run in runs):
            assert len(runs) == count, runs
            return runs
        assert time.monotonic() < deadline, f"{len(runs)} of {count} runs, exit codes {[r.exit_code for r in runs]}"
        time.sleep(0.05)
