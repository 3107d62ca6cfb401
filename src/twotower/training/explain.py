"""Why a process stops: one sentence for a person, and the same in the run's folder."""

import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

import torch

from twotower.distributed.place import Place
from twotower.distributed.transport import TowerLostError
from twotower.distributed.world import TowersDifferError
from twotower.ground.files import DiskFullError
from twotower.ground.wording import on_one_line, word_error
from twotower.runs.failure import note_failure, read_failure
from twotower.runs.journal import FolderGoneError
from twotower.training.trainer import NonFiniteLossError, ToldElsewhereError

HEAD_START_SECONDS = 2.0  # time that a node's first process gets to print an error before another one ends

# Errors that a person can understand and mend. All others are ours and are shown with their traceback.
EXPLAINED = (ValueError, OSError, TowerLostError, TowersDifferError, NonFiniteLossError)


class AlreadyExplainedError(ChildProcessError):
    """A tower's process has failed, and has said why itself."""


def _wait_for_others() -> None:
    """Lets the process that has something to say print it, as torchrun ends all ranks as soon as one has ended."""
    with suppress(KeyboardInterrupt):  # sent by torchrun once the other one has ended
        time.sleep(HEAD_START_SECONDS)


def _explain_memory(error: BaseException) -> BaseException:
    """What torch or numpy say in many words where memory is short, as a sentence; any other error as it is."""
    is_torchs = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    if not (is_torchs or isinstance(error, MemoryError | torch.OutOfMemoryError)):
        return error
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return OSError(
        f"There is not enough memory ({reason.rstrip('.')}); a smaller optim.batch_size, network.width or "
        "network.image_size needs less."
    )


def explain(error: BaseException, place: Place, run_dir: Path | None = None) -> None:
    """Says to a person why this process stops, and notes it in the run's folder where there is one."""
    error = _explain_memory(error)
    if isinstance(error, ToldElsewhereError):
        _wait_for_others()
    elif isinstance(error, EXPLAINED):
        if place.local_rank != 0 and not isinstance(error, TowerLostError | OSError):
            _wait_for_others()  # every rank raises this error, and only the first of each node prints it
            return
        # failure.json is written before anything is printed, and an earlier entry is kept: that one is the cause, and
        # a lost peer only its effect.
        is_effect = isinstance(error, TowerLostError) and run_dir is not None and read_failure(run_dir) is not None
        if isinstance(error, DiskFullError):
            text = f"{error} Once there is room, the same command with resume=auto goes on from the last checkpoint."
        else:
            text = word_error(error)
        if run_dir is not None and not is_effect and not isinstance(error, FolderGoneError):
            note_failure(run_dir, text)
        print(f"error: {on_one_line(text)}", file=sys.stderr, flush=True)
    else:
        if run_dir is not None:
            note_failure(run_dir, f"{type(error).__name__}: {error}")
        print(f"error in tower {place.tower} of replica {place.replica}:", file=sys.stderr)
        traceback.print_exception(error)
