"""Verifies a finished prepared set: compares all checksums and decodes every image, on all cores."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twotower.data.dataset import MEAN_IMAGE
from twotower.data.decode import UnusableError, decode_image
from twotower.data.prepared_set import REMEDY, is_unfinished, read_dataset_json
from twotower.data.preparing.shard_plan import Say
from twotower.data.preparing.shard_worker import start_pool
from twotower.data.shards import INDEX_FILE, INDEX_TYPE
from twotower.ground.files import hash_file
from twotower.ground.processes import cores
from twotower.ground.progress import metered
from twotower.ground.stored_files import read_numbers
from twotower.ground.wording import counted


def check_file(path: Path, checksum: str) -> list[str]:
    """The fault of a file, as a sentence; empty if it has none."""
    if not path.is_file():
        return [f"{path} is {'no file' if os.path.lexists(path) else 'missing'}"]
    return [] if hash_file(path) == checksum else [f"{path} has been changed: its checksum is another one"]


def check_shard(path: Path, checksum: str, index: NDArray[np.void], size: int) -> list[str]:
    """The fault of a shard, as a sentence: other bytes, or its first bad image. Empty if it has none."""
    if faults := check_file(path, checksum):
        return faults
    with path.open("rb") as file:
        for entry in index:
            file.seek(int(entry["offset"]))
            content = file.read(int(entry["length"]))
            try:
                shape = decode_image(content).shape
            except UnusableError as error:
                return [f"{path}: the image at byte {int(entry['offset'])} cannot be decoded ({error})"]
            if shape != (size, size, 3):
                return [f"{path}: the image at byte {int(entry['offset'])} has shape {shape}"]
    return []


def verify(root: Path, workers: int, say: Say) -> None:
    """Compares all checksums and decodes every image. Raises: ValueError with the first faults."""
    if is_unfinished(root):
        raise ValueError(f"output={root} is not finished; run the same command without verify=true to go on.")
    content = read_dataset_json(root)
    faults = check_file(root / MEAN_IMAGE, content["mean_image_sha256"])
    total = sum(split["images"] for split in content["splits"].values())
    workers = workers or cores()
    pool = start_pool(workers)
    try:
        with metered("verifying", total) as meter:
            jobs = []
            for name, split in content["splits"].items():
                if index_faults := check_file(root / name / INDEX_FILE, split["index_sha256"]):
                    faults += index_faults
                    continue
                index = read_numbers(root / name / INDEX_FILE, INDEX_TYPE, (None,), REMEDY)
                for number, shard in enumerate(split["shards"]):
                    part = index[index["shard"] == number]
                    path = root / name / shard["file"]
                    job = pool.submit(check_shard, path, shard["sha256"], part, content["settings"]["size"])
                    jobs.append((job, len(part)))
            for future, count in jobs:
                faults += future.result()
                meter.advance(count)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if faults:
        raise ValueError("\n".join([f"{counted(len(faults), 'fault')} in {root}; prepare it again:", *faults[:20]]))
    say(f"{root}: {counted(total, 'image')}, all checksums are right and every image can be decoded.")
