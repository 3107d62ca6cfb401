"""The benchmark compares what does the same work, and gives every figure that it promises. Never how fast."""

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from helpers.composing import compose
from helpers.paths import ROOT
from twotower.benchmarks.baseline_loader import PillowImages, prepare_with_pillow
from twotower.benchmarks.floor import count_flops, plan_work
from twotower.benchmarks.input import INPUTS
from twotower.benchmarks.tower_process import FEEDS
from twotower.config import BenchmarkConfig, DataConfig, InputConfig, MachineConfig, OptimConfig
from twotower.data.batch import Share
from twotower.data.dataset import DataSet, FileSplit
from twotower.data.decode import cut_square, decode_image
from twotower.data.feed import open_validation
from twotower.data.preparing.first_use import prepare

SHARE = Share(4, 0, 1, torch.device("cpu"), 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of smooth pictures of several sizes, two classes."""
    root, stream = tmp_path_factory.mktemp("pictures"), np.random.default_rng(3)
    for split in ("train", "val"):
        for index, size in enumerate(((300, 260), (260, 400), (500, 375), (256, 256), (90, 120), (333, 500))):
            folder = root / split / f"class{index % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            cells = Image.fromarray(stream.integers(0, 256, (9, 9, 3), dtype=np.uint8))
            cells.resize(size, Image.Resampling.BICUBIC).save(folder / f"{index}.jpg", quality=95)
    return root


@pytest.mark.parametrize("mean", ["central", "aligned"])
def test_the_dataloader_feeds_the_same_images(root: Path, mean: str) -> None:
    """The centre crops of both sides of the comparison agree, up to the rounding of the resize."""
    dataset = prepare(DataConfig(kind="folder", root=str(root)), progress=False)
    assert isinstance(dataset.val, FileSplit)
    config = InputConfig(mean=mean, colour_noise="none")
    theirs = PillowImages(dataset, dataset.val, config, training=False)
    with closing(open_validation(dataset, config, SHARE)) as feed:
        ours = torch.cat([batch.images for batch in feed])
    assert len(ours) == len(theirs) == 6
    for image, (tensor, _) in zip(ours, (theirs[i] for i in range(6)), strict=True):
        assert float((image - tensor).abs().max()) <= 2
    assert float((ours[0] - theirs[1][0]).abs().max()) > 50, "another image would have been noticed"


def test_the_dataloader_trains_with_the_same_kind_of_crops(root: Path) -> None:
    """Without noise, each of its training images is a crop of the image, mirrored or not, less the mean's centre."""
    dataset: DataSet = prepare(DataConfig(kind="folder", root=str(root)), progress=False)
    assert isinstance(dataset.train, FileSplit)
    assert dataset.mean_image is not None
    images = PillowImages(dataset, dataset.train, InputConfig(colour_noise="none"), training=True)
    torch.manual_seed(0)
    fed = (images[0][0].permute(1, 2, 0).numpy() + dataset.mean_image[16:240, 16:240]).round()
    square = cut_square(decode_image(dataset.train.read(0).tobytes()), 256).astype(np.float32)
    distances = [
        np.abs(fed - view[y : y + 224, x : x + 224]).max()
        for view in (square, square[:, ::-1])
        for y in range(33)
        for x in range(33)
    ]
    assert min(distances) <= 2
    assert np.median(distances) > 20


def test_pillow_prepares_the_same_square(root: Path) -> None:
    """Both cut the same square up to rounding and JPEG, because the rest is even; an odd one moves it by half."""
    content = (root / "train" / "class0" / "0.jpg").read_bytes()
    sums = [np.zeros((256, 256, 3), np.int64), np.zeros((3, 3))]
    jpeg = prepare_with_pillow(content, 256, 100, sums)
    ours = cut_square(decode_image(content), 256).astype(int)
    assert abs(decode_image(jpeg).astype(int) - ours).mean() < 2
    assert abs(sums[0] - ours).max() <= 8


def test_the_command_times_all_inputs(root: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "launch" / "benchmark.py"), "part=input", "rounds=1", "input_steps=1"]
    done = subprocess.run(
        [*command, "optim.batch_size=4", f"data_root={root}", "output=found.json", "machine.loader_threads=1"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    medians = json.loads((tmp_path / "found.json").read_text())["input"]["medians"]
    for name in INPUTS:
        key = name.replace(" ", "_")
        ratio = medians[f"{key}_twotower_images_per_second"] / medians[f"{key}_dataloader_images_per_second"]
        assert medians[f"{key}_ratio"] == pytest.approx(ratio)
        without = medians[f"{key}_torch_loader_images_per_second"] / medians[f"{key}_twotower_images_per_second"]
        assert medians[f"{key}_torch_loader_over_dali"] == pytest.approx(without)
        kept = f"{key}_kept_images_per_second" in medians
        assert kept == name.startswith("prepared")
        if kept:
            speed = medians[f"{key}_kept_images_per_second"]
            ratio = speed / medians[f"{key}_twotower_images_per_second"]
            assert medians[f"{key}_kept_over_decoded"] == pytest.approx(ratio)
    assert medians["preparing_ratio"] > 0


def time_small(part: str, folder: Path, *more: str) -> dict[str, float]:
    """The medians of one round of a part, on a narrow network in small batches."""
    command = [sys.executable, str(ROOT / "launch" / "benchmark.py"), f"part={part}", "rounds=1", "steps=1"]
    small = ["network=alexnet_2012", "network.width=0.0625", "optim.batch_size=4", "num_classes=10", "input_steps=1"]
    done = subprocess.run(
        [*command, *small, "precisions=[fp32]", "output=found.json", "machine.device=cpu", *more],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    medians: dict[str, float] = json.loads((folder / "found.json").read_text())[part]["medians"]
    return medians


def test_the_command_times_replicas(tmp_path: Path) -> None:
    medians = time_small("replicas", tmp_path)
    ratio = medians["fp32_replicas2_images_per_second"] / medians["fp32_replicas1_images_per_second"]
    assert medians["fp32_replicas2_over_replicas1"] == pytest.approx(ratio)


def test_the_command_times_training_from_every_input(root: Path, tmp_path: Path) -> None:
    medians = time_small("training", tmp_path, f"data_root={root}")
    for name in FEEDS:
        key = f"fp32_{name.replace(' ', '_decoded_')}"
        share = 100 * medians[f"{key}_images_per_second"] / medians["fp32_synthetic_images_per_second"]
        assert medians[f"{key}_percent_of_synthetic"] == pytest.approx(share)


def test_the_command_times_the_towers_beside_everything(tmp_path: Path) -> None:
    """Without torch's compiler, which takes a minute here: the compiled process then runs as the eager one does."""
    command = [sys.executable, str(ROOT / "launch" / "benchmark.py"), "part=towers", "rounds=1", "steps=1"]
    small = ["network=alexnet_2012", "network.width=0.0625", "optim.batch_size=4", "num_classes=10"]
    done = subprocess.run(
        [*command, *small, "precisions=[fp32]", "output=found.json", "machine.device=cpu"],
        cwd=tmp_path,
        env=os.environ | {"TORCH_COMPILE_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    results = json.loads((tmp_path / "found.json").read_text())
    found = results["towers"]["medians"]
    speed = found["fp32_two_towers_images_per_second"]
    for other in ("eager", "compiled", "compiled_keeping_memory"):
        name = f"one_process_{other}"
        ratio = speed / found[f"fp32_{name}_images_per_second"]
        assert found[f"fp32_two_towers_over_{name}"] == pytest.approx(ratio)
        assert found[f"fp32_{name}_peak_megabytes"] > 100
    percent = 100 * speed / found["fp32_floor_images_per_second"]
    assert found["fp32_two_towers_percent_of_floor"] == pytest.approx(percent)
    for name in ("two_towers", "floor", "one_process_eager"):
        assert found[f"fp32_{name}_user_ms_a_step"] >= 0
        assert found[f"fp32_{name}_kernel_ms_a_step"] >= 0
    parts = results["parts_ms"]["fp32"]
    layers = {name.removeprefix("floor: ") for name in parts if name.startswith("floor: ")}
    assert layers == {"conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"}
    profiled = {name.removeprefix("step: ") for name in parts if name.startswith("step: ")}
    assert {"ReLU, norms and pooling", "update", "exchange", "other"} <= profiled
    assert layers <= {layer for name in profiled for layer in name.split("+")}
    assert all(parts[f"step: {layer}"] > 0 for layer in layers & profiled)


def test_the_floor_has_all_the_work_of_the_paper() -> None:
    """724.4 million products an image forward: 105.4 223.9 149.5 112.1 74.8 by convolution, 37.7 16.8 4.1 by fc."""
    convolutions = [
        55 * 55 * 96 * 363,
        27 * 27 * 256 * 48 * 25,
        13 * 13 * 384 * 256 * 9,
        13 * 13 * 384 * 192 * 9,
        13 * 13 * 256 * 192 * 9,
    ]
    products = [9216 * 4096, 4096 * 4096, 4096 * 1000]
    assert sum(convolutions) + sum(products) == pytest.approx(724.4e6, rel=1e-3)
    expected = 2 * (2 * convolutions[0] + 3 * (sum(convolutions[1:]) + sum(products)))
    network = compose("network=alexnet", "network.width=1").network
    settings = BenchmarkConfig(network, InputConfig(), OptimConfig(batch_size=1), MachineConfig())
    assert count_flops(settings) == expected
    seen: list[str] = []
    counter = FlopCounterMode(display=False)
    with counter:
        for tower in (0, 1):
            for work in plan_work(settings, tower, "fp32", torch.device("cpu")):
                seen.append(work.layer)
                work.run()
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-6)
    assert {name: seen.count(name) for name in seen} == {
        **{f"conv{n}": 2 for n in (1, 2, 4, 5)},
        **dict.fromkeys(("conv3", "fc6", "fc7", "fc8"), 4),
    }


def test_a_precision_that_is_not_there_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "launch" / "benchmark.py"), "precisions=[tf32]", "machine.device=cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert "error: precisions=tf32 is for GPUs, and this computes on the CPU; use precisions=fp32." in done.stderr


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "launch" / "benchmark.py"), "part=everything"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert (
        "error: part=everything is not known; choose one of all, towers, input, training, batches, replicas."
        in done.stderr
    )
