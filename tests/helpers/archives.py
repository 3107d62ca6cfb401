"""Small archives of the right structure, and sets made of them: ILSVRC-2010 and 2012, trees, CIFAR-10's binaries."""

import hashlib
import io
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.io import savemat

from twotower.config import PrepareConfig, SourceConfig
from twotower.data.dataset import DataSet
from twotower.data.preparing.build_set import build

Files = Sequence[tuple[str, bytes]]

# Neither the order in the archive nor the devkit's ids follow the sorted names.
WNIDS = ("n02102040", "n01440764", "n03000684")
IDS = {"n02102040": 1, "n01440764": 3, "n03000684": 2}
WORDS = {"n01440764": "tench, Tinca tinca", "n02102040": "English springer", "n03000684": "chain saw"}
CIFAR_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def pixels(seed: int, width: int, height: int) -> NDArray[np.uint8]:
    """A smooth picture [height, width, 3] of waves, which survive a JPEG; each seed has others."""
    stream = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 60.0
    angles = stream.uniform(0, 6.3, (3, 1, 1))
    waves = np.sin(x * np.cos(angles) * 3 + y * np.sin(angles) * 3 + stream.uniform(0, 6.3, (3, 1, 1)))
    centre = stream.uniform(70, 185, (3, 1, 1))
    return (centre + 60 * waves).round().astype(np.uint8).transpose(1, 2, 0).copy()


def jpeg(image: NDArray[np.uint8], quality: int = 95) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return file.getvalue()


def picture(seed: int) -> bytes:
    """A JPEG of between 40 and 300 pixels a side."""
    stream = np.random.default_rng(seed)
    return jpeg(pixels(seed, int(stream.integers(40, 300)), int(stream.integers(40, 300))))


def tar_bytes(files: Iterable[tuple[str, bytes]], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def meta_mat(year: int) -> bytes:
    """Three classes and a node above them, as in the devkit's meta.mat."""
    kinds = [(f"ILSVRC{year}_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    kinds += [("children", "O"), ("wordnet_height", "O")]
    rows = [(i, wnid, WORDS[wnid], "gloss", 0, np.zeros((1, 0)), 0) for wnid, i in IDS.items()]
    rows.append((4, "n00001740", "entity", "all there is", 3, np.arange(1, 4), 2))
    file = io.BytesIO()
    savemat(file, {"synsets": np.array(rows, dtype=kinds).reshape(-1, 1)})
    return file.getvalue()


def truth_text(wnids: Iterable[str]) -> bytes:
    return "".join(f"{IDS[wnid]}\n" for wnid in wnids).encode()


def write_devkit(path: Path, year: int, truth: bytes) -> None:
    folder = {2010: "devkit-1.0", 2012: "ILSVRC2012_devkit_t12"}[year]
    files = [
        (f"{folder}/readme.txt", b"read me"),
        (f"{folder}/data/meta.mat", meta_mat(year)),
        (f"{folder}/data/ILSVRC{year}_validation_ground_truth.txt", truth),
    ]
    path.write_bytes(tar_bytes(files, "w:gz"))


def seed_of(split: str, wnid: str, number: int) -> int:
    """The seed of the picture of an image in these archives."""
    return {"train": 1, "val": 2, "test": 3}[split] * 10_000 + WNIDS.index(wnid) * 1_000 + number


def numbered(split: str, count: int) -> list[tuple[int, str]]:
    """Number and class of each image of val or test, not in order."""
    stream = np.random.default_rng(count)
    return [(int(n), WNIDS[int(n) ** 2 % 7 % len(WNIDS)]) for n in stream.permutation(count) + 1]


def ilsvrc(root: Path, year: int, train: int = 4, val: int = 5, test: int = 4) -> SourceConfig:
    """Writes the archives: `train` images a class; 2010 also has `test` images and their labels."""
    root.mkdir(parents=True, exist_ok=True)
    classes = [
        (f"{wnid}.tar", tar_bytes((f"{wnid}_{n}.JPEG", picture(seed_of("train", wnid, n))) for n in range(train)))
        for wnid in WNIDS
    ]
    names = {"train": "images_train.tar", "val": "images_val.tar", "devkit": "devkit.tar.gz"}
    (root / names["train"]).write_bytes(tar_bytes(classes))
    config = SourceConfig(name=f"mini{year}", kind="ilsvrc", root=str(root), **names)
    truths: dict[str, list[str]] = {}
    for split, count in (("val", val), ("test", test)):
        images = numbered(split, count)
        truths[split] = [wnid for _, wnid in sorted(images)]
        if split == "val" or year == 2010:
            files = [
                (f"{split}/ILSVRC{year}_{split}_{n:08d}.JPEG", picture(seed_of(split, wnid, n))) for n, wnid in images
            ]
            (root / f"images_{split}.tar").write_bytes(tar_bytes(files))
    write_devkit(root / "devkit.tar.gz", year, truth_text(truths["val"]))
    config.expected = {"train": train * len(WNIDS), "val": val}
    if year == 2010:
        (root / "test_truth.txt").write_bytes(truth_text(truths["test"]))
        config.test, config.test_truth = "images_test.tar", "test_truth.txt"
        config.expected["test"] = test
    return config


def tree_files(classes: Sequence[str] = ("cat", "dog"), train: int = 3, val: int = 2) -> list[tuple[str, bytes]]:
    """Small files `set/<split>/<class>/<n>.jpg`."""
    return [
        (f"set/{split}/{name}/{n}.jpg", jpeg(pixels(100 * k + 10 * n + len(split), 44, 40)))
        for split, count in (("train", train), ("val", val))
        for k, name in enumerate(classes)
        for n in range(count)
    ]


def write_tree(root: Path, files: Iterable[tuple[str, bytes]]) -> SourceConfig:
    """Writes a folder instead of an archive, without the first part of each name."""
    for name, content in files:
        path = root / name.partition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tree_source(root)


def tree_source(root: Path, *archives: str) -> SourceConfig:
    splits = {"train": "train", "val": "val", "test": "test"}
    return SourceConfig(name="mini", kind="tree", root=str(root), archives=list(archives), splits=splits)


def cifar_records(seed: int, count: int) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """The ten labels in turn, and pictures of 32 x 32."""
    for n in range(count):
        yield (7 * n + seed) % 10, pixels(seed * 1000 + n, 32, 32)


def write_cifar10(path: Path, batches: int = 2, count: int = 20, test: int = 10) -> None:
    def batch(seed: int, count: int) -> bytes:
        return b"".join(bytes([i]) + x.transpose(2, 0, 1).tobytes() for i, x in cifar_records(seed, count))

    folder = "cifar-10-batches-bin"
    files = [(f"{folder}/data_batch_{b}.bin", batch(b, count)) for b in range(1, batches + 1)]
    files += [(f"{folder}/batches.meta.txt", ("\n".join(CIFAR_NAMES) + "\n\n").encode())]
    files += [(f"{folder}/readme.html", b"<html>"), (f"{folder}/test_batch.bin", batch(9, test))]
    path.write_bytes(tar_bytes(files, "w:gz"))


class Here(Executor):
    """A pool that runs its work in this process."""

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def submit(self, work: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args, **options))
        except Exception as error:
            future.set_exception(error)
        return future


def prepare_here(source: SourceConfig, output: Path, **options: Any) -> list[str]:
    """Builds the set and returns the printed lines; the picture shows only originals and squares."""
    said: list[str] = []
    build(PrepareConfig(source=source, output=str(output), **{"workers": 1, **options}), said.append)
    return said


def contents(root: Path) -> dict[str, str]:
    """Every file below, with a digest of its bytes."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def by_name(dataset: DataSet, split: str) -> dict[str, tuple[str, bytes]]:
    """Class and JPEG of each image by its path in the shard."""
    part = getattr(dataset, split)
    found = {}
    for i, label in enumerate(part.labels):
        found[part.name(i).split("/", 2)[2]] = (dataset.classes[label], part.read(i).tobytes())
    assert len(found) == len(part)
    return found


def matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None
