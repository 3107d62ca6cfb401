"""The speed of the input by itself, with DALI and without, beside a torch DataLoader with Pillow on as many cores."""

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
from twotower.benchmarks.input_files import KEPT, WARM
from twotower.benchmarks.take_turns import Contestant, Turn, time_steps
from twotower.config import BenchmarkConfig, DataConfig, PrepareConfig
from twotower.data.batch import Share
from twotower.data.choose_loader import choose_loader
from twotower.data.dataset import PREPARED_SIZE, DataSet, FileSplit
from twotower.data.decode import cut_square, decode_image, encode_jpeg
from twotower.data.decoded_squares import open_decoded
from twotower.data.feed import open_train, open_validation
from twotower.data.load_data import load
from twotower.data.loader import PREFETCH
from twotower.data.preparing.mean_and_pca import Fit
from twotower.ground.devices import choose_device
from twotower.ground.processes import cores, die_with_parent

REST = 0.5  # seconds between turns, for work that goes on in the background
PREPARING, NUM_PREPARED = "raw preparing", 200
INPUTS = ("raw training", "raw centre", "prepared training", "prepared centre")


def _unpack(dataset: DataSet, root: Path) -> FileSplit:
    """The images of a prepared set as single files, which is how a DataLoader has them."""
    paths = []
    for index in range(len(dataset.train)):
        path = root / f"{index:06d}.jpg"
        path.write_bytes(dataset.train.read(index).tobytes())
        paths.append(path.name)
    return FileSplit(root, paths, dataset.train.labels)


def run_pipeline(settings: BenchmarkConfig, files: dict[str, DataConfig], pipe: Connection) -> None:
    """This project's pipeline: answers the names of INPUTS with a Turn.

    With ` torch` behind them without DALI, with ` kept` from pixels that were decoded before.
    """
    die_with_parent()
    torch.set_num_threads(1)
    device = choose_device(settings.machine.device)
    share = Share(settings.optim.batch_size, 0, 1, device, settings.machine.loader_threads or cores())
    datasets = {name: load(data) for name, data in files.items()}
    while (request := pipe.recv()) != "end":
        name, mode, *how = request.split(" ")
        dataset = datasets[name]
        if request == PREPARING:
            pipe.send(_time_preparing(_read_contents(dataset), pillow=False))
            continue
        config = replace(
            settings.input,
            loader="torch" if "torch" in how else settings.input.loader,
            cache=KEPT if "kept" in how else "none",
        )
        if "kept" in how:
            dataset = open_decoded(dataset)
        if mode == "training":
            feed = open_train(dataset, config, share, seed=0, first_step=0)
        else:
            feed = open_validation(replace(dataset, val=dataset.train), config, share)
        with closing(feed):
            for _ in range(WARM):
                next(feed)
            pipe.send(time_steps(device, settings.input_steps, partial(next, feed)).turn())


def _time_preparing(images: list[bytes], pillow: bool) -> Turn:
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


def _read_contents(dataset: DataSet) -> list[bytes]:
    return [dataset.train.read(i).tobytes() for i in range(min(NUM_PREPARED, len(dataset.train)))]


def run_loader(settings: BenchmarkConfig, files: dict[str, DataConfig], scratch: Path, pipe: Connection) -> None:
    """The DataLoader: answers the names of INPUTS with a Turn."""
    die_with_parent()
    torch.set_num_threads(1)
    datasets = {name: load(data) for name, data in files.items()}
    splits: dict[str, FileSplit] = {}
    for name, dataset in datasets.items():
        if isinstance(dataset.train, FileSplit):
            splits[name] = dataset.train
        else:
            (scratch / "unpacked").mkdir()
            splits[name] = _unpack(dataset, scratch / "unpacked")
    workers, batch = settings.machine.loader_threads or cores(), settings.optim.batch_size
    while (request := pipe.recv()) != "end":
        name, _, mode = request.partition(" ")
        if request == PREPARING:
            pipe.send(_time_preparing(_read_contents(datasets[name]), pillow=True))
            continue
        # Workers read ahead, so as many batches are in work at the end as before the clock started.
        num_batches = WARM + settings.input_steps + PREFETCH * workers
        batches = open_loader(
            datasets[name], splits[name], settings.input, mode == "training", batch, workers, num_batches
        )
        for _ in range(WARM):
            next(batches)
        turn = time_steps(torch.device("cpu"), settings.input_steps, partial(next, batches)).turn()
        for _ in batches:
            pass
        pipe.send(turn)


def _measure_preparing(ours: Contestant, theirs: Contestant) -> dict[str, float]:
    pillow, here = (contestant.turn(PREPARING)[0].seconds_per_step for contestant in (theirs, ours))
    return {
        "preparing_pillow_images_per_second_per_core": 1 / pillow,
        "preparing_twotower_images_per_second_per_core": 1 / here,
        "preparing_ratio": pillow / here,
    }


def benchmark_input(
    settings: BenchmarkConfig, files: dict[str, DataConfig], say: Callable[[str], None]
) -> list[dict[str, float]]:
    """Images/s of each loader for each kind of input, and their ratios, for each round."""
    scratch = Path(next(iter(files.values())).root or ".").parent / "loader"
    scratch.mkdir(exist_ok=True)
    inputs = [name for name in INPUTS if name.split()[0] in files]
    ours = Contestant(run_pipeline, [(settings, files)], cores())
    theirs = Contestant(run_loader, [(settings, files, scratch)], cores(), daemon=False)
    turns = [("dataloader", theirs, ""), ("twotower", ours, "")]
    if choose_loader(settings.input.loader) == "dali":
        turns.append(("torch_loader", ours, " torch"))
    turns.append(("kept", ours, " kept"))
    rounds = []
    try:
        for number in range(settings.rounds):
            result: dict[str, float] = {}
            if "raw" in files:
                result |= _measure_preparing(ours, theirs)
            for name in inputs:
                for label, contestant, how in turns:
                    if label == "kept" and not name.startswith("prepared"):
                        continue
                    (turn,) = contestant.turn(name + how)
                    result[f"{_key(name)}_{label}_images_per_second"] = (
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
    if f"{key}_kept_images_per_second" in result:
        ratios[f"{key}_kept_over_decoded"] = result[f"{key}_kept_images_per_second"] / ours
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
        if f"{key}_kept_over_decoded" in result:
            part += f", from pixels {result[f'{key}_kept_over_decoded']:.1f} times it"
        parts.append(part + ")")
    text = ", ".join(parts)
    if "preparing_ratio" in result:
        text += f"; preparing {result['preparing_twotower_images_per_second_per_core']:.0f} images/s a core "
        text += f"({result['preparing_ratio']:.2f} x Pillow)"
    return text
