"""Plans a prepared set: decides which images of a source make which shard, once, before any image is read."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from twotower.config import PrepareConfig
from twotower.data.decode import SUBSAMPLING
from twotower.data.sources.source import Entry, Source
from twotower.ground.files import Lines
from twotower.ground.progress import metered
from twotower.ground.stored_files import Count, check_is_file, parse_json, read_json
from twotower.ground.wording import counted

PLAN = "plan.json"
_ENTRIES = TypeAdapter(list[tuple[str, Count, Count, str, str, str, str]])  # fields of `Entry`
SHARD_BYTES = 128 * 2**20  # most bytes of a source for one shard, because those of compressed archives are in memory
HOPELESS_REJECTS, HOPELESS_TOTAL = 10_000, 10_000_000  # too many rejects, even for the largest set imaginable

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """The plan of a set; its entries are in work/<split>.jsonl, one line a shard, and the rest in work/plan.json.

    Attributes:
        settings: everything that the bytes of the result depend on.
        classes: sorted names; a label is an index in this list.
        words: readable names by class.
        images: number of entries by split, usable or not.
        shards: number of shards by split.
        ignored: number of files that are no images of a split and class.
    """

    settings: dict[str, Any]
    classes: list[str]
    words: dict[str, str]
    images: dict[str, int]
    shards: dict[str, int]
    ignored: int


_FORM = TypeAdapter(Plan)


def list_settings(config: PrepareConfig, source: Source) -> dict[str, Any]:
    """Everything that the bytes of the result depend on."""
    return {
        "source": config.source.name,
        # The name of the folder, because a folder has no size to be recognised by, as archives have.
        "folder": None if source.files else Path(config.source.root or "").resolve().name,
        "splits": dict(config.source.splits),
        "archives": [{"name": path.name, "bytes": path.stat().st_size} for path in source.files],
        "size": config.size,
        "quality": config.quality,
        "images_per_shard": config.images_per_shard,
        "square": "centre, shorter side; half a pixel to the left or above where the rest is odd",
        "filter": "triangle, antialiased",
        "exif_turns": "ignored",
        "chroma_subsampling": SUBSAMPLING,
    }


class _SplitPlan:
    """Groups the entries of a split into shards, in the order in which they are added."""

    def __init__(self, path: Path, images_per_shard: int) -> None:
        self._file, self._per_shard = Lines(path, append=False), images_per_shard
        self._group: list[Entry] = []
        self._bytes = 0
        self.images, self.shards, self.problems = 0, 0, 0
        self.classes: Counter[str] = Counter()

    def add(self, entry: Entry) -> None:
        if self._group and (len(self._group) == self._per_shard or self._bytes + entry.size > SHARD_BYTES):
            self.flush()
        self._group.append(entry)
        self._bytes += entry.size
        self.images += 1
        self.problems += bool(entry.problem)
        self.classes[entry.class_name] += 1

    def flush(self) -> None:
        if self._group:
            self._file.write(json.dumps([astuple(entry) for entry in self._group]))
            self.shards += 1
        self._group, self._bytes = [], 0

    def close(self) -> None:
        self._file.close()


def make_plan(config: PrepareConfig, source: Source, settings: dict[str, Any], work: Path, say: Say) -> Plan:
    """Lists all entries of the source. Raises: ValueError if their number or their classes are not as expected."""
    splits: dict[str, _SplitPlan] = {}
    ignored: Counter[str] = Counter()
    expected = config.source.expected
    total = sum(count or 0 for count in expected.values())
    try:
        with metered("listing", total) as meter:
            for split, entry in source.walk(lambda name: ignored.update([Path(name).suffix])):
                if split not in splits:
                    splits[split] = _SplitPlan(work / f"{split}.jsonl", config.images_per_shard)
                splits[split].add(entry)
                meter.advance(1)
                problems = sum(part.problems for part in splits.values())
                if problems > HOPELESS_REJECTS and problems > config.max_rejects * HOPELESS_TOTAL:
                    raise ValueError(
                        f"{config.source.root} holds more than {HOPELESS_REJECTS:,} entries that are no usable "
                        f"files, like {entry.name} ({entry.problem}); this is not the data set it should be."
                    )
        for part in splits.values():
            part.flush()
    finally:
        for part in splits.values():
            part.close()
    _check_listing(config, {name: part.images for name, part in splits.items()})
    classes = sorted(splits["train"].classes)
    for name, part in splits.items():
        for class_name in part.classes:
            if class_name not in splits["train"].classes:
                raise ValueError(f"Class {class_name} is in {name} but not in train; each class must be in train.")
    if ignored:
        kinds = ", ".join(f"{kind or 'no ending'} ({count})" for kind, count in ignored.most_common(5))
        passed_over = counted(ignored.total(), "file is no image", "files are no images")
        say(f"passed over: {passed_over} of a split and class: {kinds}")
    return Plan(
        settings=settings,
        classes=classes,
        words={name: source.words[name] for name in classes if name in source.words},
        images={name: part.images for name, part in splits.items()},
        shards={name: part.shards for name, part in splits.items()},
        ignored=ignored.total(),
    )


def _check_listing(config: PrepareConfig, images: dict[str, int]) -> None:
    for split in ("train", "val"):
        if not images.get(split):
            wanted = ", ".join(f"{folder}/<class>/*" for folder in config.source.splits) or "the archives' images"
            raise ValueError(f"{config.source.root} holds no images for {split}; it should hold {wanted}.")
    for split, count in config.source.expected.items():
        if count is not None and images.get(split, 0) != count:
            raise ValueError(
                f"{split} has {counted(images.get(split, 0), 'image')}, not the {count:,} of {config.source.name}: "
                f"an archive is incomplete or another one; if this is meant, give source.expected.{split}=null."
            )


def read_plan(work: Path) -> Plan | None:
    """Reads the plan; None if there is no complete one."""
    try:
        return read_json(work / PLAN, _FORM, "delete it")
    except ValueError:
        return None


def read_entries(work: Path, split: str) -> Iterator[list[Entry]]:
    """Reads the entries of each shard of a split. Raises: ValueError if the list is missing or damaged."""
    path, remedy = work / f"{split}.jsonl", f"delete {work}, and run the command again"
    check_is_file(path, remedy)
    with path.open("rb") as file:
        for line in file:
            entries = parse_json(line, _ENTRIES, path, remedy)
            yield [Entry(*values) for values in entries]
