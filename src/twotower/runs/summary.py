"""summary.json read back: what a training came to, written once at its end."""

from pathlib import Path
from typing import Any

from pydantic import ConfigDict, FiniteFloat, TypeAdapter
from typing_extensions import TypedDict

from twotower.ground.stored_files import Count, Percent, read_json

SUMMARY = "summary.json"
_LARGEST = 1 << 20  # bytes
_REMEDY = "delete it, and the command that started the run writes it again with resume=auto"


class _Needed(TypedDict):
    """What a report needs; errors in percent."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    top1_error: Percent
    top5_error: Percent
    images_per_second: FiniteFloat
    seconds: FiniteFloat
    epochs: FiniteFloat


class _Summary(_Needed, total=False):
    best_top1_error: Percent | None
    best_top5_error: Percent | None
    num_classes: Count | None


_FORM: TypeAdapter[Any] = TypeAdapter(_Summary)


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    """The summary of a finished run; None of one that has not finished. Raises: ValueError if it is damaged."""
    path = run_dir / SUMMARY
    return dict(read_json(path, _FORM, _REMEDY, _LARGEST)) if path.exists() else None
