"""The images of the benchmark: raw ones, those of data_root or drawn, and the same ones prepared."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from twotower.config import BenchmarkConfig, DataConfig, PrepareConfig, SourceConfig
from twotower.data.decoded_squares import decode_squares
from twotower.data.folder import index_folder
from twotower.data.load_data import load
from twotower.data.loader import PREFETCH
from twotower.data.prepared_set import is_prepared
from twotower.data.preparing.build_set import build
from twotower.data.preparing.first_use import prepare
from twotower.data.shapes import CLASSES, draw_image
from twotower.ground.processes import cores
from twotower.ground.wording import counted

NUM_DRAWN = 256  # different pictures
DRAWN_SIZE = (500, 375)  # pixels, the commonest size in ILSVRC
KEPT = "host"  # `input.cache` where the pixels of the prepared set are used
WARM = 3  # batches before the clock starts: those that were read ahead


def make_files(settings: BenchmarkConfig, scratch: Path, say: Callable[[str], None]) -> dict[str, DataConfig]:
    """`raw` images and the same `prepared`, enough for all turns, and the pixels of the prepared ones.

    The raw images are those of data_root, linked again and again, or drawn.

    Raises: ValueError if data_root cannot be used.
    """
    if settings.data_root is not None and is_prepared(Path(settings.data_root)):
        return {"prepared": _decode(settings.data_root, scratch, say)}
    raw, output = scratch / "raw", scratch / "prepared"
    originals = _draw(scratch / "drawn", say) if settings.data_root is None else _list(Path(settings.data_root))
    needed = settings.optim.batch_size * (WARM + settings.input_steps + PREFETCH + 2)
    for split, count in (("train", needed), ("val", len(originals["val"]))):
        for number in range(count):
            name, path = originals[split][number % len(originals[split])]
            link = raw / split / name / f"{number:06d}{path.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link_file(link, path.resolve())
    files = {"raw": DataConfig(kind="folder", root=str(raw), on_error="skip")}
    prepare(files["raw"])
    began = time.perf_counter()
    source = SourceConfig(name="folder", kind="tree", root=str(raw), splits={"train": "train", "val": "val"})
    build(PrepareConfig(source=source, output=str(output), max_rejects=1.0), lambda line: None)
    say(f"prepared {counted(needed, 'image')} in {time.perf_counter() - began:.1f} s on {counted(cores(), 'core')}")
    return files | {"prepared": _decode(str(output), scratch, say)}


def _decode(root: str, scratch: Path, say: Callable[[str], None]) -> DataConfig:
    """Decodes a prepared set, as `input.cache` does at the first start."""
    began, data = time.perf_counter(), DataConfig(kind="folder", root=root, cache=str(scratch / "decoded"))
    dataset = load(data)
    decode_squares(dataset)
    count = len(dataset.train) + len(dataset.val)
    say(f"decoded {counted(count, 'image')} in {time.perf_counter() - began:.1f} s on {counted(cores(), 'core')}")
    return data


def link_file(link: Path, path: Path) -> None:
    try:
        link.symlink_to(path)
    except OSError:  # Windows allows links to few users
        shutil.copy(path, link)


def _draw(folder: Path, say: Callable[[str], None]) -> dict[str, list[tuple[str, Path]]]:
    say(f"drawing {NUM_DRAWN} JPEGs of {DRAWN_SIZE[0]} x {DRAWN_SIZE[1]}; photographs: data_root=DIR")
    folder.mkdir()
    drawn: list[tuple[str, Path]] = []
    for index in range(NUM_DRAWN):
        path = folder / f"{index:04d}.jpg"
        draw_image(CLASSES[index % len(CLASSES)], np.random.default_rng(index)).resize(DRAWN_SIZE).save(
            path, quality=95
        )
        drawn.append((f"class{index % 2}", path))
    return {"train": drawn, "val": drawn[:4]}


def _list(root: Path) -> dict[str, list[tuple[str, Path]]]:
    index = index_folder(root, "data_root")
    return {
        split: [(name, root / split / name / file) for name, files in by_class.items() for file in files]
        for split, by_class in index.files.items()
    }
