"""Files of named tensors, complete or absent. They hold numbers and nothing that could run (safetensors)."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from twotower.ground.files import written_whole

_HEADER_BYTES = 100  # about as many for each tensor: its name, type, shape and place


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None, shared: bool = False
) -> None:
    """Writes contiguous tensors; `shared` as in `files.written_whole`. Raises: OSError, DiskFullError."""
    with written_tensors(path, tensors, metadata, shared):
        pass


@contextmanager
def written_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None, shared: bool = False
) -> Iterator[Path]:
    """The same, with the block in which the written file can be checked before it takes its place."""
    needed = sum(tensor.numel() * tensor.element_size() + _HEADER_BYTES for tensor in tensors.values())
    needed += sum(len(key) + len(value) for key, value in (metadata or {}).items())
    with written_whole(path, shared, needed) as pending:
        # The library makes its own file, which nobody else may read; ours are as the user's umask has them.
        pending.touch()
        mode = pending.stat().st_mode & 0o777
        try:
            save_file(dict(tensors), pending, metadata=metadata)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            code = int(number[1])
            raise OSError(code, os.strerror(code), str(path)) from error
        pending.chmod(mode)
        yield pending
