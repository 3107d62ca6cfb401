"""Trains with each silent error, asks each of the project's checks, and writes the table of course/README.md.

    python course/catch.py

Two processes of the project train a narrow AlexNet for 14 steps with each error in turn, in float64 over gloo. The
checks are those of training itself (World, first contact, the lost tower) and those of tests/: what the towers
compute, beside the oracle of tests/helpers/oracle.py, which is the same network in one piece and shares no code.
"""

import re
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

COURSE = Path(__file__).resolve().parent
sys.path += [path for path in (str(COURSE), str(COURSE.parent / "tests")) if path not in sys.path]

from helpers import oracle  # noqa: E402
from helpers.processes import run_processes  # noqa: E402
from helpers.towers import copies, load_network, masks_at  # noqa: E402
from silent_errors import ERRORS, SilentError, put_in  # noqa: E402
from twotower.config import NetworkConfig  # noqa: E402
from twotower.data.batch import Batch, pixel_checksum  # noqa: E402
from twotower.distributed.exchange import WireExchange  # noqa: E402
from twotower.distributed.first_contact import make_contact  # noqa: E402
from twotower.distributed.transport import TowerLostError  # noqa: E402
from twotower.distributed.world import TowersDifferError, World  # noqa: E402
from twotower.model.tower import Tower, forward  # noqa: E402
from twotower.training.optim import VelocitySGD  # noqa: E402

SEED, CLASSES, IMAGES, STEPS, COMPARED_STEPS, RATE = 4, 4, 8, 14, 3, 0.012
ADDITIONAL_STEPS = 0
EXACT = 1e-10  # what the tests of the project ask for
PRESET = oracle.PRESETS["alexnet"]
MARKED = re.compile(r"(<!-- table: silent errors -->\n).*?(<!-- end -->)", re.DOTALL)

# In the order of the table's columns. The page says of each what it compares.
CHECKS = ("logits", "gradients", "updates", "test", "draws", "images", "first contact", "lost tower")


@dataclass
class Seen:
    """What one tower saw in a training with an error."""

    losses: list[float] = field(default_factory=list)
    test_logits: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    before: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)
    masks: list[dict[str, Tensor]] = field(default_factory=list)
    told: dict[str, str] = field(default_factory=dict)  # check -> what it said while training


@dataclass
class Row:
    """A line of the table."""

    error: SilentError | None
    losses: tuple[float, float]  # the greater one of both towers, at the first and at the last step
    caught_by: list[str]


@cache
def small_network() -> NetworkConfig:
    """AlexNet at 1/16 of its width, which learns eight images of 67 pixels in a few steps."""
    names = [name for name in oracle.LAYERS if name != "fc8"]
    layers = {name: {"initial": "xavier", "initial_bias": 0.1} for name in names}
    return load_network("alexnet", width=0.0625, image_size=67, layers=layers | {"fc8": {"initial_std": 0.02}})


def draw_batch() -> tuple[Tensor, Tensor]:
    """Noisy stripes, whose colour and distance tell the four classes."""
    stream = torch.Generator().manual_seed(1)
    labels = torch.arange(IMAGES) % CLASSES
    images = 15 * torch.randn(IMAGES, 3, 67, 67, generator=stream, dtype=torch.float64)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[label % 3] += 60 * (1 + torch.sin(torch.arange(67) / (3 + 3 * label)).double())
    return images, labels


def train(world: World) -> Seen:
    """What training/trainer.py does, as far as it matters here, with an error or without."""
    seen, network, (images, labels) = Seen(), small_network(), draw_batch()
    try:
        make_contact(world.link, world.device, world.transport)
    except TowerLostError as error:
        seen.told["first contact"] = str(error)
    tower = Tower(network, CLASSES, world.tower, SEED).double().to(memory_format=world.memory_format)
    images = images.to(memory_format=world.memory_format)
    exchange = WireExchange(world.link, world.tower, tower.rows[-1].kernels)
    parameters = tower.paper_named_parameters()
    rule = VelocitySGD(parameters, 0.9, 0.0005, network.bias_rate, network.bias_decay)
    seen.before = copies([parameters])[0]
    seen.masks = [masks_at([tower], step, images) for step in range(COMPARED_STEPS)]
    tower.eval()
    with torch.no_grad():
        seen.test_logits = forward([tower], images, exchange)
    tower.train()
    pixels = int(pixel_checksum(Batch(images.float(), labels)))
    for step in range(STEPS + ADDITIONAL_STEPS):
        try:
            if step < STEPS:
                world.check_alike(step, pixels=pixels, labels=int(labels.sum()))
        except TowersDifferError as error:
            seen.told.setdefault("images", str(error))
        tower.at_step(step, slice(None), IMAGES)
        rule.set_rate(RATE)
        try:
            logits = forward([tower], images, exchange)
        except TowerLostError as error:
            seen.told["lost tower"] = str(error)
            return seen
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        seen.losses.append(loss.item())
        if step == 0:
            seen.logits = logits.detach()
            seen.gradients = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
        rule.step()
        if step + 1 == COMPARED_STEPS:
            seen.after = copies([parameters])[0]
    return seen


def train_with_each(world: World) -> list[Seen]:
    """In one process: a training without an error, then one with each."""
    torch.set_num_threads(1)
    import catch  # by this name errors replace what is in this file

    found = [catch.train(world)]
    for error in ERRORS:
        with ExitStack() as stack:
            put_in(stack, error, world)
            found.append(catch.train(world))
    return found


def has_twins(both: Sequence[Seen]) -> bool:
    """Whether towers, or steps, have drawn what they should have drawn for themselves."""
    one, two = both
    weights = [name for name in one.before if name.endswith(("weight", "weight_own", "weight_other"))]
    alike = [torch.equal(one.before[name], two.before[name]) for name in weights]
    for layer in one.masks[0]:
        masks = [mask[layer] for seen in both for mask in seen.masks]
        alike += [torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i]]
    return any(alike)


@dataclass
class Right:
    """What the oracle makes of initial weights and masks."""

    before: dict[str, Tensor]
    masks: list[dict[str, Tensor]]
    logits: Tensor
    test_logits: Tensor
    gradients: dict[str, Tensor]
    moved: dict[str, Tensor]

    def is_for(self, before: dict[str, Tensor], masks: list[dict[str, Tensor]]) -> bool:
        """Most errors leave weights and masks alone, so that one answer of the oracle is for all of them."""
        pairs = [(self.before, before), *zip(self.masks, masks, strict=True)]
        return all(torch.equal(one[name], two[name]) for one, two in pairs for name in one)


def ask_oracle(before: dict[str, Tensor], masks: list[dict[str, Tensor]]) -> Right:
    images, labels = draw_batch()
    logits, gradients = oracle.gradients(before, images, labels, PRESET, masks[0])
    after = oracle.train(before, PRESET, images, labels, masks, [RATE] * COMPARED_STEPS)
    moved = {name: w - before[name] for name, w in after.items()}
    return Right(before, masks, logits, oracle.logits(before, images, PRESET, masks=None), gradients, moved)


def ask_checks(both: Sequence[Seen], known: list[Right]) -> list[str]:
    """The checks that find something. What the oracle answers is added to what is known."""
    before = oracle.merge(both[0].before, both[1].before)
    masks = [
        {layer: torch.cat([one[layer], two[layer]], dim=1) for layer in one}
        for one, two in zip(both[0].masks, both[1].masks, strict=True)
    ]
    right = next((one for one in known if one.is_for(before, masks)), None)
    if right is None:
        right = ask_oracle(before, masks)
        known.append(right)
    moved = {name: w - before[name] for name, w in oracle.merge(both[0].after, both[1].after).items()}
    off = {
        "logits": max(oracle.deviation(seen.logits, right.logits) for seen in both),
        "gradients": oracle.deviation(oracle.merge(both[0].gradients, both[1].gradients), right.gradients),
        "updates": oracle.deviation(moved, right.moved),
        "test": max(oracle.deviation(seen.test_logits, right.test_logits) for seen in both),
    }
    caught = {check for check, value in off.items() if not value < EXACT}
    caught |= {check for seen in both for check in seen.told}
    if has_twins(both):
        caught.add("draws")
    return [check for check in CHECKS if check in caught]


def catch_all() -> list[Row]:
    """The table: first without an error, then with each. Starts two processes, once."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        seen = run_processes(train_with_each, Path(folder) / "pair", timeout=60, deadline=300)
    rows: list[Row] = []
    known: list[Right] = []
    errors = [None, *ERRORS]
    for error, both in zip(errors, zip(seen[0], seen[1], strict=True), strict=True):
        losses = [max(one.losses[step] for one in both) for step in (0, STEPS - 1)]
        rows.append(Row(error, (losses[0], losses[1]), ask_checks(both, known)))
    return rows


def write_table(rows: Sequence[Row]) -> str:
    """In markdown."""
    lines = [
        f"| error | loss, step 1 | step {STEPS} | {' | '.join(CHECKS)} |",
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
    page, rows = COURSE / "README.md", catch_all()
    print(write_table(rows), end="")
    if page.exists():
        page.write_text(fill_table(page.read_text(), rows))


if __name__ == "__main__":
    main()
