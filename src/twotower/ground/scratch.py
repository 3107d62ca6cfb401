"""Folders in the machine's temporary folder, which go with their process, or after it."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from twotower.ground.locks import ABANDONED_SECONDS, is_abandoned, marked

PREFIX = "twotower-"
OWNER = ".owner"  # a file that the process has marked as its own


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder that is removed when the block has ended. Those of killed processes are removed before."""
    remove_abandoned_scratch()
    # On Windows a killed process may hold a file for a moment longer.
    with (
        tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True) as folder,
        marked(Path(folder) / OWNER),
    ):
        yield Path(folder)


def remove_abandoned_scratch() -> None:
    """Removes the folders that killed processes of this user have left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            status = folder.lstat()
            is_ours = not hasattr(os, "getuid") or status.st_uid == os.getuid()
            owner = folder / OWNER
            # Without the file its process has been killed at once, or is of an earlier version.
            is_old = not owner.exists() and time.time() - status.st_mtime > ABANDONED_SECONDS
            if is_ours and folder.is_dir() and not folder.is_symlink() and (is_old or is_abandoned(owner)):
                shutil.rmtree(folder, ignore_errors=True)
