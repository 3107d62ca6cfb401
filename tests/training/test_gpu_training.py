"""Whole trainings on GPUs: the day-one command, losses, images, memory, waits, and a tower that is lost.

`make test-gpu` runs them; each should take less than half a minute on one GPU. They have not been run on a GPU yet.
What they do was tried on a CPU, with TWOTOWER_TEST_DEVICE=cpu, all but the two ways of a shared GPU.
"""

import os
import re
import signal
import time
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from helpers.commands import command, events, finish
from helpers.composing import compose
from helpers.processes import run_processes
from twotower.config import InputConfig
from twotower.data.batch import Share
from twotower.data.dataset import DataSet, FileSplit
from twotower.data.feed import open_train, open_validation
from twotower.data.load_data import load
from twotower.distributed.gpu_memory_link import GpuMemoryLink
from twotower.distributed.pinned_link import PinnedLink
from twotower.training.trainer import Trainer

DEVICE = os.environ.get("TWOTOWER_TEST_DEVICE", "cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU that torch sees: make test-gpu"
    ),
]
SMALL = (
    "network=alexnet_2012",
    "network.width=0.125",
    "data=synthetic",
    "data.num_classes=10",
    "optim.batch_size=16",
)
DAY_ONE = (
    "data=shapes",
    "data.num_train=480",
    "data.num_val=96",
    "network.width=0.125",
    "optim.batch_size=32",
    f"machine.device={DEVICE}",
    "logging=no_wandb",
    "logging.every_steps=5",
    "machine.timeout_seconds=20",
)


def open_trainer(world: Any, *overrides: str) -> tuple[Trainer, Any]:
    config = compose(*SMALL, *overrides)
    trainer = Trainer(config, world, load(config.data), Path("."), None)
    trainer.optimiser.set_rate(1e-3)
    share = trainer.share
    return trainer, open_train(trainer.dataset, trainer.input, share, seed=0, first_step=0)


# 1: the command of the first day


@pytest.mark.timeout(240)
def test_the_command_of_the_first_day_learns_and_resumes(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    arguments = (*DAY_ONE, f"data.root={tmp_path / 'shapes'}", f"run_dir={run_dir}")
    status, text = finish(command(*arguments, "schedule.max_steps=30", cwd=tmp_path, torchrun=2))
    assert status == 0, text
    losses = [event["loss"] for event in events(run_dir) if event["event"] == "train"]
    assert len(losses) == 6
    assert min(losses[-2:]) < losses[0]
    assert (run_dir / "summary.json").exists()
    status, text = finish(command(*arguments, "schedule.max_steps=40", "resume=auto", cwd=tmp_path, torchrun=2))
    assert status == 0, text
    assert "from step 30" in text


# 2: the same losses as on a CPU


def five_losses(world: Any) -> list[float]:
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    trainer, feed = open_trainer(world)
    for module in trainer.tower.modules():
        if hasattr(module, "keep"):  # dropout draws other masks on another device
            module.keep = 1.0
    losses = []
    with closing(feed):
        for batch, _ in zip(feed, range(5), strict=False):
            trainer.train_step(batch)
            trainer.world.catch_up()
            sums = trainer.window.pending[-1].cpu()
            losses.append(float(sums[1] / sums[0]))
    return losses


def test_five_losses_are_those_of_the_cpu(tmp_path: Path) -> None:
    on_cpu = run_processes(five_losses, tmp_path / "cpu", device="cpu", deadline=180)
    on_gpu = run_processes(five_losses, tmp_path / "gpu", device=DEVICE, deadline=180)
    for rank in (0, 1):
        assert on_gpu[rank] == pytest.approx(on_cpu[rank], rel=1e-3)
    assert len(set(on_cpu[0])) == 5


# 3 and 4: images


def draw_photograph(number: int) -> Image.Image:
    """Soft colours with some grain, 500 x 375."""
    stream = np.random.default_rng(number)
    coarse = Image.fromarray(stream.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
    grain = stream.integers(-6, 7, (375, 500, 1))
    return Image.fromarray((np.asarray(coarse, np.int16) + grain).clip(0, 255).astype(np.uint8))


def encode_all_kinds(folder: Path) -> list[str]:
    """JPEGs as they are found: 4:2:0, 4:4:4, grey, CMYK, progressive."""
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "420": ("RGB", {"subsampling": 2}),
        "444": ("RGB", {"subsampling": 0}),
        "grey": ("L", {}),
        "cmyk": ("CMYK", {}),
        "progressive": ("RGB", {"progressive": True}),
    }
    names = []
    for number, (name, (mode, options)) in enumerate(kinds.items()):
        content = BytesIO()
        draw_photograph(number).convert(mode).save(content, "JPEG", quality=90, **options)
        (folder / f"{name}.jpg").write_bytes(content.getvalue())
        names.append(f"{name}.jpg")
    return names


def open_photographs(folder: Path) -> DataSet:
    names = encode_all_kinds(folder)
    split = FileSplit(folder, names, np.arange(len(names)))
    mean = np.zeros((256, 256, 3), np.float32)
    return DataSet(names, split, split, mean, np.ones(3), np.eye(3))


def test_jpegs_of_every_kind_are_those_of_the_cpu(tmp_path: Path) -> None:
    dataset = open_photographs(tmp_path)
    images = []
    for device in ("cpu", DEVICE):
        share = Share(len(dataset.classes), 0, 1, torch.device(device), 2)
        with closing(open_validation(dataset, InputConfig(), share)) as feed:
            images.append(next(feed).images.cpu())
    difference = (images[0] - images[1]).abs()
    for row, name in enumerate(dataset.classes):
        assert float(difference[row].mean()) < 1.5, name
        assert float(difference[row].max()) < 40, name
    assert float(images[0].std()) > 20  # there is something to see


def decode_both_ways(world: Any, folder: Path) -> list[Tensor]:
    """The first batch when each image is decoded by one tower, and when both decode all."""
    dataset = open_photographs_again(folder)
    batches = []
    for partner in (world.link, None):
        share = Share(4, 0, 1, world.device, 2, partner=partner)
        with closing(open_train(dataset, InputConfig(), share, seed=0, first_step=0)) as feed:
            batches.append(next(feed).images.cpu())
    return batches


def open_photographs_again(folder: Path) -> DataSet:
    """Each process draws its own, which are the same."""
    own = folder / str(os.getpid())
    own.mkdir()
    return open_photographs(own)


def test_each_image_is_decoded_by_one_tower(tmp_path: Path) -> None:
    """Both towers see the same bits when they share the decoding, and nearly those of decoding all themselves."""
    seen = run_processes(decode_both_ways, tmp_path / "meet", tmp_path, device=DEVICE, deadline=180)
    assert torch.equal(seen[0][0], seen[1][0])
    for once, twice in seen.values():
        assert float((once - twice).abs().mean()) < 1.5


# 5: a tower that is lost


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_lost_tower_is_named(tmp_path: Path, how: str) -> None:
    run_dir = tmp_path / "run"
    process = command(
        *DAY_ONE, f"data.root={tmp_path / 'shapes'}", f"run_dir={run_dir}", "schedule.epochs=1000", cwd=tmp_path
    )
    stopped: list[int] = []
    try:
        journal = run_dir / "metrics.jsonl"
        end = time.monotonic() + 120
        while not (journal.exists() and '"train"' in journal.read_text()):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.2)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        towers = [int(c) for c in children if "spawn_main" in Path(f"/proc/{c}/cmdline").read_text()]
        assert len(towers) == 2
        stopped = [towers[1]]
        began = time.monotonic()
        os.kill(towers[1], signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        process.wait(20 + 15)  # machine.timeout_seconds + 15
        assert time.monotonic() - began < 20 + 15
    finally:
        for pid in stopped:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    status, text = finish(process)
    assert status == 1
    assert re.search(r"lost tower 1|was ended by SIGKILL", text), text
    assert "resume=auto" in (run_dir / "failure.json").read_text()


# 6 and 7: memory, waits


def many_steps(world: Any) -> list[int]:
    """Bytes that torch holds on the GPU after a few steps, and after many."""
    trainer, feed = open_trainer(world)
    held = []
    with closing(feed):
        for number, batch in zip(range(200), feed, strict=False):
            trainer.train_step(batch)
            trainer.window.pending.clear()
            if number in (20, 199):
                world.catch_up()
                held.append(torch.cuda.memory_allocated() if DEVICE == "cuda" else 0)
    return held


def test_memory_does_not_grow(tmp_path: Path) -> None:
    for early, late in run_processes(many_steps, tmp_path, device=DEVICE, deadline=180).values():
        assert early == late


def steps_without_a_wait(world: Any) -> int:
    trainer, feed = open_trainer(world)
    with closing(feed):
        for number, batch in zip(range(8), feed, strict=False):
            if DEVICE == "cuda" and number >= 3:  # the first ones open libraries and reserve memory
                torch.cuda.set_sync_debug_mode("error")
            trainer.train_step(batch)
            if DEVICE == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    return trainer.step


def test_no_step_waits_for_the_gpu(tmp_path: Path) -> None:
    """torch itself says so of every call that does."""
    assert run_processes(steps_without_a_wait, tmp_path, device=DEVICE, deadline=180) == {0: 8, 1: 8}


# 8: the two ways of one shared GPU


def swap_both_ways(world: Any) -> list[Tensor]:
    link = world.link
    settings = (link.tower, link.peer, link.timeout, link.memory_format, link.messages)
    stream = torch.Generator().manual_seed(link.tower)
    halves = [torch.randn(shape, generator=stream).cuda() for shape in ((4, 8, 13, 13), (128, 2048), (3,))]
    came = []
    for way in (GpuMemoryLink(*settings), PinnedLink(*settings)):
        for _ in range(3):
            came += [way.swap(half).wait().cpu() for half in halves]
    return came


@pytest.mark.skipif(DEVICE != "cuda" or torch.cuda.device_count() != 1, reason="needs exactly one GPU")
def test_both_ways_of_a_shared_gpu_bring_the_same_bits(tmp_path: Path) -> None:
    for came in run_processes(swap_both_ways, tmp_path, device="cuda", deadline=180).values():
        direct, pinned = came[: len(came) // 2], came[len(came) // 2 :]
        assert all(torch.equal(a, b) for a, b in zip(direct, pinned, strict=True))


# 9: four processes


@pytest.mark.timeout(240)
def test_two_replicas_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    losses = {}
    for size, batch in ((2, 32), (4, 16)):
        run_dir = tmp_path / f"run{size}"
        arguments = (*DAY_ONE, f"data.root={tmp_path / 'shapes'}", f"run_dir={run_dir}", f"optim.batch_size={batch}")
        status, text = finish(command(*arguments, "schedule.max_steps=10", cwd=tmp_path, torchrun=size))
        assert status == 0, text
        losses[size] = [event["loss"] for event in events(run_dir) if event["event"] == "train"]
    assert losses[4] == pytest.approx(losses[2], rel=1e-2)
