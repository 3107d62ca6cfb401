"""Who sees the run's folder: both towers of the first replica must, and the other nodes need not.

Each of these towers writes its part of a checkpoint there, and rank 0 reads both. Two hosts with a folder of the same
name each, on disks of their own, would come to the first checkpoint, hours later. A node without the folder leaves a
note in its own, so that a run whose checkpoints are on another host is never begun anew by mistake.
"""

import time
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import torch

from twotower.distributed.world import World
from twotower.runs.elsewhere import note_elsewhere

SEE_SECONDS = 30.0  # time that a network file system gets to show a new file
NOTICE_SECONDS = 3.0  # the same, where nothing depends on it but a note


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
        seconds: that the towers of the first replica may take to see what rank 0 writes; less than
            `machine.timeout_seconds` helps.

    Raises: ValueError in all of them, naming the ranks that must see it and do not.
    """

    def write() -> str:
        name = f".seen-{uuid4().hex}"
        (run_dir / name).touch()
        return name

    token = run_dir / world.from_first("token", write)
    must_see = world.replica == 0
    sees = True
    if must_see or world.place.local_rank == 0:
        sees = _sees(token, seconds if must_see else min(seconds, NOTICE_SECONDS))
    everyone = world.gather(torch.tensor([float(sees)], dtype=torch.float64))
    if world.is_first:
        with suppress(OSError):
            token.unlink(missing_ok=True)
    blind = [f"rank {rank}" for rank, sees in enumerate(everyone[: world.num_towers]) if not float(sees)]
    if blind:
        raise ValueError(
            f"{', '.join(blind)} cannot see {run_dir}, where rank 0 keeps the run; both towers of the first replica "
            "write there, so give run_dir=DIR on a file system that their machines share."
        )
    if not sees:
        note_elsewhere(run_dir, next(iter(world.nodes.values())))
