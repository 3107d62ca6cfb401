"""How fast the input is by itself, with DALI and without, beside a torch DataLoader with Pillow on as many cores."""

import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from twotower.benchmarks.baseline_loader import open_loader, prepare_with_pillow
from twotower.benchmarks.contest import Contestant, Turn, timed
from twotower.config import BenchmarkConfig, DataConfig, PrepareConfig, SourceConfig
from twotower.data.batch import Share
from twotower.data.choose_loader import choose_loader
from twotower.data.dataset import PREPARED_SIZE, DataSet, FileSplit
from twotower.data.decode import cut_square, decode_image, encode_jpeg
from twotower.data.feed import open_train, open_validation
from twotower.data.folder import index_folder
from twotower.data.load_data import load
from twotower.data.loader import PREFETCH
from twotower.data.prepared_set import is_prepared
from twotower.data.preparing.build_set import build
from twotower.data.preparing.first_use import prepare
from twotower.data.preparing.mean_and_pca import Fit
from twotower.data.shapes import CLASSES, draw_image
from twotower.distributed.world import cores, die_with_parent
from twotower.ground.devices import choose_device
from twotower.ground.words import counted

NUM_DRAWN = 256  # different pictures
DRAWN_SIZE = (500, 375)  # pixels, the commonest size in ILSVRC
WARM = 3  # batches before the clock starts: those that were read ahead
REST = 0.5  # seconds between turns, for what runs on in the background
PREPARING, NUM_PREPARED = "raw preparing", 200
INPUTS = ("raw training", "raw centre", "prepared training", "prepared centre")


def make_files(settings: BenchmarkConfig, scratch: Path, say: Callable[[str], None]) -> dict[str, DataConfig]:
    """`raw` images and the same `prepared`, enough for all turns.

    They are those of data_root, linked again and again, or drawn.

    Raises: ValueError if data_root cannot be used.
    """
    if settings.data_root is not None and is_prepared(Path(settings.data_root)):
        return {"prepared": DataConfig(kind="folder", root=settings.data_root)}
    raw, output = scratch / "raw", scratch / "prepared"
    originals = _draw(scratch / "drawn", say) if settings.data_root is None else _list(Path(settings.data_root))
    needed = settings.optim.batch_size * (WARM + settings.input_steps + PREFETCH + 2)
    for split, count in (("train", needed), ("val", len(originals["val"]))):
        for number in range(count):
            name, path = originals[split][number % len(originals[split])]
            link = raw / split / name / f"{number:06d}{path.suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            _link(link, path.resolve())
    files = {"raw": DataConfig(kind="folder", root=str(raw), on_error="skip")}
    prepare(files["raw"])
    began = time.perf_counter()
    source = SourceConfig(name="folder", kind="tree", root=str(raw), splits={"train": "train", "val": "val"})
    build(PrepareConfig(source=source, output=str(output), max_rejects=1.0), lambda line: None)
    say(f"prepared {counted(needed, 'image')} in {time.perf_counter() - began:.1f} s on {counted(cores(), 'core')}")
    return files | {"prepared": DataConfig(kind="folder", root=str(output))}


def _link(link: Path, path: Path) -> None:
    try:
        link.symlink_to(path)
    except OSError:  # Windows allows it to few
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


def _unpacked(dataset: DataSet, root: Path) -> FileSplit:
    """The images of a prepared set as single files, which is how a DataLoader has them."""
    paths = []
    for index in range(len(dataset.train)):
        path = root / f"{index:06d}.jpg"
        path.write_bytes(dataset.train.read(index).tobytes())
        paths.append(path.name)
    return FileSplit(root, paths, dataset.train.labels)


def _ours(settings: BenchmarkConfig, files: dict[str, DataConfig], pipe: Connection) -> None:
    """This project's pipeline: answers the names of INPUTS with a Turn, and those with ` torch` without DALI."""
    die_with_parent()
    torch.set_num_threads(1)
    device = choose_device(settings.machine.device)
    share = Share(settings.optim.batch_size, 0, 1, device, settings.machine.loader_threads or cores())
    datasets = {name: load(one) for name, one in files.items()}
    while (what := pipe.recv()) != "end":
        name, mode, *loader = what.split(" ")
        dataset = datasets[name]
        if what == PREPARING:
            pipe.send(_preparing(_contents(dataset), pillow=False))
            continue
        config = replace(settings.input, loader=loader[0]) if loader else settings.input
        if mode == "training":
            feed = open_train(dataset, config, share, seed=0, first_step=0)
        else:
            feed = open_validation(replace(dataset, val=dataset.train), config, share)
        with closing(feed):
            for _ in range(WARM):
                next(feed)
            pipe.send(Turn(timed(device, settings.input_steps, partial(next, feed))))


def _preparing(images: list[bytes], pillow: bool) -> Turn:
    """Seconds for each image, in one thread; `images` are read already."""
    size, quality = PREPARED_SIZE, PrepareConfig.quality
    fit, sums = Fit(size), [np.zeros((size, size, 3), np.int64), np.zeros((3, 3))]
    began = time.perf_counter()
    for content in images:
        if pillow:
            prepare_with_pillow(content, size, quality, sums)
        else:
            square = cut_square(decode_image(content), size)
            fit.add(square)
            encode_jpeg(square, quality)
    return Turn((time.perf_counter() - began) / len(images))


def _contents(dataset: DataSet) -> list[bytes]:
    return [dataset.train.read(i).tobytes() for i in range(min(NUM_PREPARED, len(dataset.train)))]


def _theirs(settings: BenchmarkConfig, files: dict[str, DataConfig], scratch: Path, pipe: Connection) -> None:
    """The DataLoader: answers the same."""
    die_with_parent()
    torch.set_num_threads(1)
    datasets = {name: load(one) for name, one in files.items()}
    splits: dict[str, FileSplit] = {}
    for name, dataset in datasets.items():
        if isinstance(dataset.train, FileSplit):
            splits[name] = dataset.train
        else:
            (scratch / "unpacked").mkdir()
            splits[name] = _unpacked(dataset, scratch / "unpacked")
    workers, batch = settings.machine.loader_threads or cores(), settings.optim.batch_size
    while (what := pipe.recv()) != "end":
        name, _, mode = what.partition(" ")
        if what == PREPARING:
            pipe.send(_preparing(_contents(datasets[name]), pillow=True))
            continue
        num_batches = WARM + settings.input_steps + PREFETCH * workers  # as many are worked on at the end as before
        batches = open_loader(
            datasets[name], splits[name], settings.input, mode == "training", batch, workers, num_batches
        )
        for _ in range(WARM):
            next(batches)
        turn = Turn(timed(torch.device("cpu"), settings.input_steps, partial(next, batches)))
        for _ in batches:
            pass
        pipe.send(turn)


def _preparing_speed(ours: Contestant, theirs: Contestant) -> dict[str, float]:
    pillow, here = (contestant.turn(PREPARING)[0].seconds_per_step for contestant in (theirs, ours))
    return {
        "preparing_pillow_images_per_second_per_core": 1 / pillow,
        "preparing_twotower_images_per_second_per_core": 1 / here,
        "preparing_ratio": pillow / here,
    }


def benchmark_input(
    settings: BenchmarkConfig, files: dict[str, DataConfig], say: Callable[[str], None]
) -> list[dict[str, float]]:
    """Images/s of all for each kind of input, and their ratios, for each round."""
    scratch = Path(next(iter(files.values())).root or ".").parent / "loader"
    scratch.mkdir(exist_ok=True)
    inputs = [name for name in INPUTS if name.split()[0] in files]
    ours = Contestant(_ours, [(settings, files)], cores())
    theirs = Contestant(_theirs, [(settings, files, scratch)], cores(), daemon=False)
    turns = [("dataloader", theirs, ""), ("twotower", ours, "")]
    if choose_loader(settings.input.loader) == "dali":
        turns.append(("torch_loader", ours, " torch"))
    rounds = []
    try:
        for number in range(settings.rounds):
            result: dict[str, float] = {}
            if "raw" in files:
                result |= _preparing_speed(ours, theirs)
            for name in inputs:
                for who, contestant, loader in turns:
                    (turn,) = contestant.turn(name + loader)
                    result[f"{_key(name)}_{who}_images_per_second"] = (
                        settings.optim.batch_size / turn.seconds_per_step
                    )
                    time.sleep(REST)
                result |= _ratios(result, _key(name))
            say(f"input, round {number + 1}/{settings.rounds}: {_describe(result, inputs)}")
            rounds.append(result)
    finally:
        ours.end()
        theirs.end()
        shutil.rmtree(scratch, ignore_errors=True)
    return rounds


def _key(name: str) -> str:
    return name.replace(" ", "_")


def _ratios(result: dict[str, float], key: str) -> dict[str, float]:
    ours = result[f"{key}_twotower_images_per_second"]
    ratios = {f"{key}_ratio": ours / result[f"{key}_dataloader_images_per_second"]}
    if f"{key}_torch_loader_images_per_second" in result:
        ratios[f"{key}_torch_loader_over_dali"] = result[f"{key}_torch_loader_images_per_second"] / ours
    return ratios


def _describe(result: dict[str, float], inputs: list[str]) -> str:
    parts = []
    for name in inputs:
        key = _key(name)
        part = f"{name} {result[f'{key}_twotower_images_per_second']:.0f} images/s "
        part += f"({result[f'{key}_ratio']:.2f} x DataLoader"
        if f"{key}_torch_loader_over_dali" in result:
            part += f", without DALI {result[f'{key}_torch_loader_over_dali']:.2f} of it"
        parts.append(part + ")")
    text = ", ".join(parts)
    if "preparing_ratio" in result:
        text += f"; preparing {result['preparing_twotower_images_per_second_per_core']:.0f} images/s a core "
        text += f"({result['preparing_ratio']:.2f} x Pillow)"
    return text
