"""One process at a time in a folder: of a training, a sweep, stored predictions, a data set that is being prepared.

The lock is the kernel's (flock; on Windows msvcrt.locking), so it ends with the process that holds it, however that
ends, and a file that is left behind locks nothing. Children do not inherit it: what a killed process leaves running
for a moment does not keep the next one out.

On network file systems: over NFS Linux asks the server, so it holds between hosts, unless the folder is mounted with
`nolock` or `local_lock`, where it holds on one host only; Lustre needs the mount option `flock`. Where there are no
locks at all, that is said, and nothing keeps a second process out.
"""

import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from twotower.ground.links import check_ordinary

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_BYTE = 1 << 20  # the one that is locked on Windows, far beyond the text, which could not be read otherwise
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
ABANDONED_SECONDS = 86400.0  # since the last change, where there is no better sign than that
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has none
_open: set[int] = set()  # descriptors of the locks that this process holds


class HeldError(ValueError):
    """Another process holds the folder."""


def _close_in_child() -> None:
    """A lock lasts until every copy of its descriptor is closed, and a fork copies them all."""
    for descriptor in _open:
        with suppress(OSError):
            os.close(descriptor)
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def _lock(descriptor: int) -> None:
    """Raises: OSError if another process has it, or the file system has no locks."""
    if sys.platform == "win32":
        os.lseek(descriptor, _BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _open_locked(path: Path, what: str) -> int:
    """The descriptor of the locked file. Raises: HeldError, ValueError, OSError."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_ordinary(path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)  # never inherited (PEP 446)
        try:
            _lock(descriptor)
            at_path = os.stat(path)
            if (at_path.st_dev, at_path.st_ino) == (os.fstat(descriptor).st_dev, os.fstat(descriptor).st_ino):
                return descriptor
        except FileNotFoundError:
            pass  # removed with its folder before it was locked, as below
        except OSError as error:
            if error.errno in _NO_LOCKS:
                print(f"{path.parent} cannot be locked ({error.strerror}): nothing keeps a second process out of it.")
                return descriptor
            os.close(descriptor)
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                raise
            with suppress(OSError):
                holder = path.read_text().strip()
            about = f" ({holder})" if holder else ""
            raise HeldError(f"{what} by another process{about}; wait for it or stop it.") from None
        os.close(descriptor)


@contextmanager
def marked(path: Path) -> Iterator[None]:
    """Marks a file or folder as being written by a running process until the block has ended, for `is_abandoned`.

    Where nothing can be locked it stays unmarked, which `is_abandoned` takes for being written.
    """
    descriptor = None
    with suppress(OSError):
        descriptor = _open_mark(path)
    if descriptor is not None:
        _open.add(descriptor)
    try:
        yield
    finally:
        if descriptor is not None:
            _open.discard(descriptor)
            with suppress(OSError):
                os.close(descriptor)


def _open_mark(path: Path) -> int | None:
    """The locked descriptor of a file, made if need be, or of a folder. Raises: OSError."""
    if sys.platform == "win32":  # where the lock would keep this very process from writing by another descriptor
        return None
    for _ in range(10):
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT | NO_FOLLOW, 0o666)
        try:
            _lock(descriptor)
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        except FileNotFoundError:
            pass  # removed between the two calls by a process that took it for abandoned
        except BlockingIOError:
            time.sleep(0.01)  # another process is looking whether it is abandoned
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
    return None


def is_abandoned(path: Path) -> bool:
    """Whether the process that had marked a file or folder has ended; False where that cannot be told."""
    try:
        if sys.platform == "win32":
            return time.time() - path.stat().st_mtime > ABANDONED_SECONDS
        descriptor = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | NO_FOLLOW)
    except OSError:
        return False
    try:
        _lock(descriptor)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Holds a folder by the lock file `path` in it until the block, or this process, has ended.

    A folder that had to be made for it is removed again if nothing else has come into it.

    Args:
        what: begins the sentence about another holder: "run_dir=DIR is being trained".

    Raises: HeldError if another process holds it; ValueError if a link or a folder is in the file's place; OSError if
        it cannot be made.
    """
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    descriptor = _open_locked(path, what)
    _open.add(descriptor)
    try:
        with suppress(OSError):  # on a full disk the lock is worth as much without it
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        _open.discard(descriptor)
        if sys.platform == "win32":  # where an open file cannot be removed
            os.close(descriptor)
            _remove_if_alone(path, made)
        else:
            _remove_if_alone(path, made)
            os.close(descriptor)


def _remove_if_alone(path: Path, made: list[Path]) -> None:
    with suppress(OSError):
        if made and [entry.name for entry in path.parent.iterdir()] == [path.name]:
            path.unlink()
            for folder in made:
                folder.rmdir()
