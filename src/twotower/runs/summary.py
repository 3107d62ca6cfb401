"""summary.json read back: what a training came to, written once at its end."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, FiniteFloat, TypeAdapter
from typing_extensions import TypedDict

from twotower.ground.stored_files import Count, Percent, damaged, read_json

SUMMARY = "summary.json"
_LARGEST = 1 << 20  # bytes
_REMEDY = "delete it, and the command that started the run writes it again with resume=auto"


class _Summary(TypedDict, total=False):
    """The numbers that are read again; errors in percent."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    top1_error: Percent
    top5_error: Percent
    images_per_second: FiniteFloat
    seconds: FiniteFloat
    epochs: FiniteFloat
    hours: FiniteFloat
    watt_hours_cpu: FiniteFloat
    watt_hours_gpu: FiniteFloat
    energy: str
    best_top1_error: Percent | None
    best_top5_error: Percent | None
    num_classes: Count | None


_FORM: TypeAdapter[Any] = TypeAdapter(_Summary)


def read_summary(run_dir: Path, needed: Iterable[str] = ()) -> dict[str, Any] | None:
    """The summary of a finished run; None of one that has not finished.

    Args:
        needed: keys that it must have.

    Raises: ValueError if it is damaged, or lacks one of these.
    """
    path = run_dir / SUMMARY
    if not path.exists():
        return None
    summary = dict(read_json(path, _FORM, _REMEDY, _LARGEST))
    missing = [key for key in needed if key not in summary]
    if missing:
        raise damaged(path, f"it has no {missing[0]}", _REMEDY)
    return summary
