"""Trains with each silent error, asks each of the project's checks, and writes the table of course/README.md.

    python course/catch.py

Two processes of the project train a narrow AlexNet with each error in turn, by the project's own trainer. What that
compares while it trains are some of the checks. The others are tests of the project, which run as they are, on what
the same two processes compute with the error.
"""

import io
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

COURSE = Path(__file__).resolve().parent
FOLDERS = (COURSE, *(COURSE.parent / name for name in ("tests", "tests/distributed", "tests/model")))
sys.path += [str(path) for path in FOLDERS if str(path) not in sys.path]

import test_exchange  # noqa: E402
import test_layers  # noqa: E402
import test_network  # noqa: E402

from helpers.processes import run_processes  # noqa: E402
from helpers.towers import Run, load_network  # noqa: E402
from silent_errors import ERRORS, SilentError, put_in  # noqa: E402
from twotower.config import Config, DataConfig, InputConfig, MachineConfig, OptimConfig, ScheduleConfig  # noqa: E402
from twotower.data.dataset import DataSet  # noqa: E402
from twotower.data.feed import open_train  # noqa: E402
from twotower.distributed.first_contact import make_contact  # noqa: E402
from twotower.distributed.transport import Swap, TowerLostError  # noqa: E402
from twotower.distributed.world import TowersDifferError, World  # noqa: E402
from twotower.evaluation.metrics import Counts  # noqa: E402
from twotower.training.trainer import Trainer  # noqa: E402

SEED, CLASSES, IMAGES, STEPS, RATE = 4, 4, 16, 30, 0.006
SIZE, CROP = 75, 67  # pixels
MEAN_OF = 5  # steps, at the beginning and at the end: a mean over them is a loss of the table
MARKED = re.compile(r"(<!-- table: silent errors -->\n).*?(<!-- end -->)", re.DOTALL)

# The checks in the order of the table's columns. First the tests; those of two processes are told what these saw.
PAIR_TESTS: dict[str, Callable[[Any], None]] = {
    "logits": test_exchange.test_logits_of_two_processes,
    "gradients": test_exchange.test_gradients_of_two_processes,
    "updates": test_exchange.test_updates_of_two_processes,
    "test": test_exchange.test_logits_of_a_test_pass,
}
DRAW_TESTS = (
    test_network.test_initial_weights_come_from_their_streams,
    test_layers.test_dropout_masks_come_from_their_streams,
)
CHECKS = (*PAIR_TESTS, "draws", "images", "order", "first contact", "lost tower")


@dataclass
class Seen:
    """What one tower saw with an error."""

    run: Run | None = None  # in the tests of two processes
    losses: list[float] = field(default_factory=list)  # in a training
    told: dict[str, str] = field(default_factory=dict)  # check -> what it said while training


@dataclass
class Row:
    """A line of the table."""

    error: SilentError | None
    losses: tuple[float, float]  # the greater one of both towers, over the first steps and over the last ones
    caught_by: list[str]


class Stripes:
    """Noisy stripes, whose colour and distance tell the four classes: a split of a data set, in memory."""

    labels = np.arange(IMAGES) % CLASSES

    def __init__(self) -> None:
        stream, x = np.random.default_rng(1), np.arange(SIZE)
        self.pixels = stream.normal(60, 15, (IMAGES, SIZE, SIZE, 3))
        for image, label in zip(self.pixels, self.labels, strict=True):
            image[..., label % 3] += 60 * (1 + np.sin(x / (3 + 3 * label)))
        self.pixels = self.pixels.clip(0, 255).astype(np.uint8)

    def __len__(self) -> int:
        return IMAGES

    def read(self, index: int) -> NDArray[np.uint8]:
        file = io.BytesIO()
        Image.fromarray(self.pixels[index]).save(file, "PNG")
        return np.frombuffer(file.getvalue(), np.uint8)

    def name(self, index: int) -> str:
        return f"{index}.png"


def draw_dataset() -> DataSet:
    stripes, names = Stripes(), [f"class {label}" for label in range(CLASSES)]
    mean = stripes.pixels.mean(0, dtype=np.float32)
    return DataSet(names, stripes, stripes, mean, np.full(3, 100.0), np.eye(3), needs_resize=False, size=SIZE)


@cache
def configure() -> Config:
    """AlexNet at 1/16 of its width, which learns a few images of 67 pixels in a few steps.

    conv2 is wider, so that more crosses before conv3 than in the tests of two processes; and fc6 and fc7 are, so that
    dropout leaves something to learn from.
    """
    names = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
    layers = {name: {"initial": "xavier", "initial_bias": 0.1} for name in names} | {"fc8": {"initial_std": 0.02}}
    for name, kernels in (("conv2", 2048), ("fc6", 8192), ("fc7", 8192)):
        layers[name] |= {"kernels": kernels}
    return Config(
        network=load_network("alexnet", width=0.0625, image_size=CROP, layers=layers),
        data=DataConfig(),
        input=InputConfig(crop_size=CROP, offsets=None, loader="torch"),
        optim=OptimConfig(batch_size=IMAGES, learning_rate=RATE),
        schedule=ScheduleConfig(rule="fixed", epochs=STEPS),
        machine=MachineConfig(device="cpu", decode_once="no", fused_steps="no"),
        seed=SEED,
    )


def train(world: World, dataset: DataSet) -> Seen:
    """A short training, as training/processes.py begins it and Trainer.run goes on."""
    seen, config = Seen(), configure()
    try:
        make_contact(world.link, world.device, world.transport)
    except TowerLostError as error:
        seen.told["first contact"] = str(error)
    trainer = Trainer(config, world, dataset, Path(), None)
    trainer.optimiser.set_rate(RATE)
    with closing(open_train(dataset, config.input, trainer.share, seed=SEED, first_step=0)) as feed:
        batch = next(feed)
    while trainer.step < trainer.total_steps:
        try:
            try:
                trainer.train_step(batch)
            except TowersDifferError as error:  # ends a training; here it goes on, for its loss
                seen.told.setdefault("order" if "checksum of the swaps" in str(error) else "images", str(error))
                trainer.train_step(batch)
        except TowerLostError as error:
            seen.told["lost tower"] = str(error)
            return seen
        seen.losses.append(Counts(trainer.window.pending[-1]).loss)
    with suppress(TowersDifferError):
        world.finish_checks()  # so that none is left for the next training
    return seen


def see_each(world: World) -> list[Seen]:
    """In one process of two: what it sees without an error, then with each."""
    torch.set_num_threads(1)
    found, dataset = [], draw_dataset()
    for error in (None, *ERRORS):
        with ExitStack() as stack:
            put_in(stack, error, world)
            run = test_exchange.train_case(world, "alexnet")
        with ExitStack() as stack:  # anew, as some errors remember what came before
            put_in(stack, error, world)
            world.link.swaps_checksum = 0  # it may be apart after an error
            found.append(train(world, dataset))
        found[-1].run = run
    return found


class Alone:
    """In place of a World, where an error is put into a process with both towers. What it sends, it receives."""

    tower, memory_format = 0, torch.channels_last

    def __init__(self) -> None:
        self.link = self

    def swap(self, mine: torch.Tensor) -> Swap:
        return Swap(lambda: mine)


def fails(test: Callable[..., None], *arguments: Any) -> bool:
    try:
        test(*arguments)
    except AssertionError:
        return True
    return False


def ask_checks(error: SilentError | None, both: Sequence[Seen]) -> list[str]:
    """The checks that find something. Tests run with the error in this process, too."""
    caught = {check for seen in both for check in seen.told}
    with ExitStack() as stack:
        put_in(stack, error, Alone())
        seen = test_exchange.see([one.run for one in both if one.run is not None], "alexnet")
        caught |= {check for check, test in PAIR_TESTS.items() if fails(test, seen)}
        if any(fails(test) for test in DRAW_TESTS):
            caught.add("draws")
    return [check for check in CHECKS if check in caught]


def catch_all() -> list[Row]:
    """The table: first without an error, then with each. Starts two processes, once."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        seen = run_processes(see_each, Path(folder) / "pair", timeout=30, deadline=400)
    rows: list[Row] = []
    for error, both in zip((None, *ERRORS), zip(seen[0], seen[1], strict=True), strict=True):
        first, last = (
            max(float(np.mean(one.losses[begin:][:MEAN_OF])) for one in both) for begin in (0, STEPS - MEAN_OF)
        )
        rows.append(Row(error, (first, last), ask_checks(error, both)))
    return rows


def write_table(rows: Sequence[Row]) -> str:
    """In markdown."""
    lines = [
        f"| error | loss, steps 1-{MEAN_OF} | {STEPS - MEAN_OF + 1}-{STEPS} | {' | '.join(CHECKS)} |",
        "|---|---|---|" + ":-:|" * len(CHECKS),
    ]
    for row in rows:
        title = "none" if row.error is None else f"`{row.error.name}`: {row.error.title}"
        marks = " | ".join("x" if check in row.caught_by else "" for check in CHECKS)
        lines.append(f"| {title} | {row.losses[0]:.2f} | {row.losses[1]:.2f} | {marks} |")
    return "\n".join(lines) + "\n"


def fill_table(text: str, rows: Sequence[Row]) -> str:
    """A page with its table anew."""
    return MARKED.sub(lambda match: match[1] + write_table(rows) + match[2], text)


def main() -> None:
    import catch  # by its name, so that the processes find what is in this file

    page, rows = COURSE / "README.md", catch.catch_all()
    print(write_table(rows), end="")
    if page.exists():
        page.write_text(fill_table(page.read_text(), rows))


if __name__ == "__main__":
    main()
