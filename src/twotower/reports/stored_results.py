"""The errors that a run keeps of its last checkpoint: in stored predictions, and in evaluation.json."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter
from typing_extensions import TypedDict

from twotower.evaluation import predictions
from twotower.evaluation.predictions import StoredIdentity
from twotower.ground.stored_files import Percent, read_json
from twotower.runs import checkpoint

CROPS = ("centre", "ten")


class _Errors(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    top1_error: Percent
    top5_error: Percent


class _Evaluation(TypedDict):
    """evaluation.json, as far as it is read again."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    identity: StoredIdentity
    centre: _Errors | None
    ten: _Errors | None


_EVALUATION: TypeAdapter[Any] = TypeAdapter(_Evaluation)


@dataclass(frozen=True)
class StoredResult:
    """Errors in percent.

    Attributes:
        identity: checkpoint and images, as in `predictions`.
        crops: centre or ten.
    """

    identity: dict[str, Any]
    crops: str
    top1_error: float
    top5_error: float


def read_stored_results(run_dir: Path) -> list[StoredResult]:
    """Results of a run's last checkpoint: from stored predictions, and those that only evaluation.json still has.

    Raises: ValueError for a folder without a complete checkpoint, or a damaged evaluation.json.
    """
    path = checkpoint.find(run_dir)
    sha256 = checkpoint.read_manifest(path).sha256
    results = []
    for crops in CROPS:
        for file in sorted((run_dir / predictions.FOLDER).glob(f"{path.name}-*-{crops}.safetensors")):
            identity = predictions.read_identity(file)
            if identity is not None and identity["checkpoint"] == sha256:
                stored = predictions.read(file, identity)
                if stored is None:
                    continue  # damaged; an evaluation computes them again
                counts = stored.counts()
                results.append(StoredResult(identity, crops, counts.top1_error, counts.top5_error))
    report = run_dir / "evaluation.json"
    if not report.exists():
        return results
    content = read_json(report, _EVALUATION, predictions.REMEDY)
    identity = dict(content["identity"])
    if identity["checkpoint"] == sha256:
        for crops in CROPS:
            errors = content.get(crops)
            if errors is not None:
                results.append(StoredResult(identity, crops, errors["top1_error"], errors["top5_error"]))
    return results
