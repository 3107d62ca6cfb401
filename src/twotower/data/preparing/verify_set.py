"""Checks a finished prepared set: all checksums, and every image decoded."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from twotower.data.prepared_set import MEAN_IMAGE, is_unfinished, read_dataset_json
from twotower.data.preparing.shard_plan import Say
from twotower.data.preparing.shard_worker import check_file, check_shard, start_worker
from twotower.data.shards import INDEX_FILE
from twotower.ground.processes import cores
from twotower.ground.progress import metered
from twotower.ground.words import counted


def verify(root: Path, workers: int, say: Say) -> None:
    """Compares all checksums and decodes every image. Raises: ValueError naming what is wrong."""
    if is_unfinished(root):
        raise ValueError(f"output={root} is not finished; run the same command without verify=true to go on.")
    content = read_dataset_json(root)
    wrong = check_file(root / MEAN_IMAGE, content["mean_image_sha256"])
    total = sum(split["images"] for split in content["splits"].values())
    workers = workers or cores()
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start_worker)
    try:
        with metered("verifying", total) as meter:
            jobs = []
            for name, split in content["splits"].items():
                if found := check_file(root / name / INDEX_FILE, split["index_sha256"]):
                    wrong += found
                    continue
                index = np.load(root / name / INDEX_FILE)
                for number, shard in enumerate(split["shards"]):
                    part = index[index["shard"] == number]
                    path = root / name / shard["file"]
                    jobs.append(
                        (
                            pool.submit(check_shard, path, shard["sha256"], part, content["settings"]["size"]),
                            len(part),
                        )
                    )
            for future, count in jobs:
                wrong += future.result()
                meter.advance(count)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if wrong:
        raise ValueError("\n".join([f"{counted(len(wrong), 'fault')} in {root}; prepare it again:", *wrong[:20]]))
    say(f"{root}: {counted(total, 'image')}, all checksums are right and every image can be decoded.")
