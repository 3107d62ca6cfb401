"""The errors that a run keeps of its last checkpoint: in stored predictions, and in evaluation.json."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twotower.evaluation import predictions
from twotower.runs import checkpoint

CROPS = ("centre", "ten")


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

    Raises: ValueError for a folder without a complete checkpoint.
    """
    path = checkpoint.find(run_dir)
    sha256 = checkpoint.read_manifest(path).sha256
    results = []
    for crops in CROPS:
        for file in sorted((run_dir / predictions.FOLDER).glob(f"{path.name}-*-{crops}.safetensors")):
            identity = predictions.read_identity(file)
            if identity is not None and identity["checkpoint"] == sha256:
                stored = predictions.read(file, identity)
                assert stored is not None
                counts = stored.counts()
                results.append(StoredResult(identity, crops, counts.top1_error, counts.top5_error))
    report = run_dir / "evaluation.json"
    content = json.loads(report.read_text()) if report.exists() else {}
    identity = content.get("identity", {})
    if identity.get("checkpoint") == sha256:
        for crops in CROPS:
            errors = content[crops]
            if errors is not None:
                results.append(StoredResult(identity, crops, errors["top1_error"], errors["top5_error"]))
    return results
