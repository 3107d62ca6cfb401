"""The file of a finished shard in work/: its part of the index, checksum, rejects, and sums of training images."""

import json
from pathlib import Path
from typing import Any

from twotower.data.prepared_set import WORK


def sums_path(output: Path, split: str, number: int) -> Path:
    """The path of the file that makes a shard count as done."""
    return output / WORK / f"{split}-{number:05d}.npz"


def read_about(sums: Any) -> dict[str, Any]:
    """Reads `sha256` and `rejects` from such a file, opened by `np.load`."""
    content: dict[str, Any] = json.loads(sums["about"].tobytes())
    return content
