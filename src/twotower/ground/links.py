"""Links in a folder that may be a stranger's, and whatever else may lie there in the place of a file.

What is written through a link that leads out of a folder changes files elsewhere, and what is read through it comes
from there. A pipe in the place of a file keeps its reader waiting for ever.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from twotower.ground.wording import printable

# W&B makes it, to the log of its own process in the user's cache; it is neither read nor written here.
_WANDB_LOG = "wandb/*/logs/debug-core.log"


def _list_links(folder: str, below: bool) -> Iterator[str]:
    waiting = [folder]
    while waiting:
        # Other processes may be removing folders.
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    yield entry.path
                elif below and entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def refuse_links(folder: Path, name: str | None = None, *, below: bool = True) -> None:
    """Refuses a folder with a link in it that leads out of it. The folder itself may be a link, or not be there.

    Args:
        name: of the one entry to look at, with all below it; None: all entries.
        below: whether to look into the folders in it as well.

    Raises: ValueError naming the link and where it leads; OSError for a folder that cannot be listed.
    """
    place = folder if name is None else folder / name
    root = os.path.realpath(folder)
    for link in [str(place)] if name is not None and place.is_symlink() else _list_links(str(place), below):
        target = os.path.realpath(link)
        if not Path(target).is_relative_to(root) and not Path(link).match(_WANDB_LOG):
            raise ValueError(
                f"{printable(link)} is a link that leads out of {folder}, to {printable(target)}, and is not "
                "followed; put there what it leads to, or move the whole folder and make a link to that."
            )


def check_ordinary(path: Path) -> None:
    """Called before a file is opened for writing at its own place. Raises: ValueError if something else is there."""
    if not os.path.lexists(path) or (path.is_file() and not path.is_symlink()):
        return
    kind = "a link" if path.is_symlink() else "a folder" if path.is_dir() else "a pipe or a device"
    raise ValueError(f"{path} is {kind}, and a file is to be written in its place; delete it.")
