"""Builds a prepared set from a source, for launch/prepare_data.py: plan, convert shard by shard, finish.

    output/train/00000.tar ...   JPEGs of size x size, `images_per_shard` images of the source each
    output/train/index.npy       the position of each image, and its label       (val, test: the same)
    output/mean_image.npy        float32 [size, size, 3]
    output/dataset.json          classes, counts, settings, checksums, rejects, colour PCA; written last
    output/picture.png           pictures of the network's input
    output/work/                 the plan and the sums of each shard; removed at the end

A shard is made from fixed images of the source, and counts as done when its file in work/ is there. So the bytes do
not depend on the number of workers, nor on how often the work was interrupted.
"""

import json
from pathlib import Path
from typing import Any

from twotower.config import PrepareConfig, check_bounds
from twotower.data.prepared_set import WORK, is_prepared, read_dataset_json
from twotower.data.preparing.convert_set import convert_set
from twotower.data.preparing.finish_set import finish_set
from twotower.data.preparing.shard_plan import PLAN, Say, list_settings, make_plan, read_plan
from twotower.data.sources.source import find_source
from twotower.ground.files import DiskFullError, remove, remove_abandoned, write_whole
from twotower.ground.links import refuse_links
from twotower.ground.locks import held

NOTHING_LOST = "Nothing is lost: the same command goes on from here."


def build(config: PrepareConfig, say: Say) -> None:
    """Makes the set in `config.output`, or goes on with it. A finished set is never changed.

    Args:
        say: shows a person a line.

    Raises: ValueError, OSError with a sentence for a person; the shards made so far are kept.
    """
    check_bounds(config)
    output = Path(config.output)
    source = find_source(config.source)
    settings = list_settings(config, source)
    if is_prepared(output):
        _check_same(settings, read_dataset_json(output)["settings"], output, "is finished")
        remove(output / WORK)
        say(f"{output} is finished already, from {settings['source']}; verify=true checks it.")
        return
    refuse_links(output)
    work = output / WORK
    try:
        if output.is_dir() and any(output.iterdir()) and not work.is_dir():
            raise ValueError(f"output={output} holds something else; give a new or empty folder.")
        work.mkdir(parents=True, exist_ok=True)
        with held(work / "lock", f"output={output} is being built"):
            if is_prepared(output):
                raise ValueError(f"output={output} was just finished by another process; verify=true checks it.")
            plan = read_plan(work)
            if plan is None:
                plan = make_plan(config, source, settings, work, say)
                write_whole(work / PLAN, json.dumps(plan.__dict__).encode())
            else:
                _check_same(settings, plan.settings, output, "was begun")
            for split in plan.shards:
                (output / split).mkdir(exist_ok=True)
            for folder in (output, work, *(output / split for split in plan.shards)):
                remove_abandoned(folder)
            convert_set(config, plan, source, output, say)
            finish_set(config, plan, output, say)
    except DiskFullError as error:
        raise DiskFullError(f"{error} {NOTHING_LOST}") from error
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(f"output={output} cannot be written ({error.strerror}). {NOTHING_LOST}") from error


def _check_same(wanted: dict[str, Any], stored: dict[str, Any], output: Path, state: str) -> None:
    """Raises: ValueError naming a setting that the set in `output` has otherwise."""
    for key, value in wanted.items():
        if stored.get(key) != value:
            raise ValueError(
                f"output={output} {state} with {key}={stored.get(key)}, not {value}; choose another output, or "
                "delete that folder."
            )
