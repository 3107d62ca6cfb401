"""All processes of a run must see one folder: each tower writes its part of a checkpoint there, rank 0 reads both.

Two hosts with a folder of the same name each, on disks of their own, would come to the first checkpoint, hours later.
"""

import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import torch

from twotower.distributed.world import World

SEE_SECONDS = 30.0  # time that a network file system gets to show a new file


def _sees(path: Path, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def check_folder_is_shared(run_dir: Path, world: World, seconds: float = SEE_SECONDS) -> None:
    """All processes call this together.

    Args:
        run_dir: the run's folder, as this process would write to it.
        seconds: that the others may take to see what rank 0 writes; less than `machine.timeout_seconds` helps.

    Raises: ValueError in all of them, naming the ranks that do not see it.
    """

    def write() -> str:
        name = f".seen-{uuid4().hex}"
        (run_dir / name).touch()
        return name

    token = run_dir / world.from_first("token", write)
    found = torch.tensor([float(_sees(token, seconds))], dtype=torch.float64)
    everyone = world.gather(found)
    if world.is_first:
        with suppress(OSError):
            token.unlink(missing_ok=True)
    blind = [f"rank {rank}" for rank, sees in enumerate(everyone) if not float(sees)]
    if blind:
        raise ValueError(
            f"{', '.join(blind)} cannot see {run_dir}, where rank 0 keeps the run; every process writes there, so "
            "give run_dir=DIR on a file system that all machines share."
        )
