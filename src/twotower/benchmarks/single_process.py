"""The processes that the towers are compared with: the network in one piece, on all cores, as a user would run it."""

from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
import torch.nn.functional as F

from twotower.benchmarks.baseline import build_baseline
from twotower.benchmarks.take_turns import Turn, count_steps, time_steps
from twotower.config import BenchmarkConfig
from twotower.ground.devices import choose_device, in_memory_format
from twotower.ground.memory import keep_freed_memory, peak_megabytes
from twotower.ground.precision import in_precision, set_precision
from twotower.ground.processes import cores, die_with_parent

RATE = 1e-6  # learning rate at which the weights stay finite over any number of steps
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # section 5 of the paper
PIXEL_SPREAD = 50  # standard deviation of the drawn pixels, near that of photographs


@dataclass(frozen=True)
class Variant:
    """One way to run the network in a process.

    Attributes:
        is_channels_last: the order of an image's values in memory.
        is_compiled: by torch.compile.
        keeps_memory: with the allocator's setting that the towers have.
    """

    precision: str = "fp32"
    is_channels_last: bool = True
    is_compiled: bool = False
    keeps_memory: bool = False


def _build_step(settings: BenchmarkConfig, variant: Variant, device: torch.device) -> Callable[[], None]:
    """A function that makes one step of training."""
    memory_format = torch.channels_last if variant.is_channels_last else torch.contiguous_format
    torch.manual_seed(0)
    network: torch.nn.Module = build_baseline(settings.network, settings.num_classes).to(device)
    network = in_memory_format(network, memory_format)
    optimiser = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    size = settings.network.image_size
    images = torch.randn(settings.optim.batch_size, 3, size, size, device=device) * PIXEL_SPREAD
    images = images.contiguous(memory_format=memory_format)
    labels = torch.randint(settings.num_classes, (settings.optim.batch_size,), device=device)
    called = torch.compile(network) if variant.is_compiled else network

    def step() -> None:
        optimiser.zero_grad()
        with in_precision(variant.precision, device):
            loss = F.cross_entropy(called(images), labels)
        loss.backward()
        optimiser.step()

    return step


def run_single_process(settings: BenchmarkConfig, variant: Variant, pipe: Connection) -> None:
    """Answers each request with a Turn, until `end`."""
    die_with_parent()
    if variant.keeps_memory:
        keep_freed_memory()
    torch.set_num_threads(cores())
    device = choose_device(settings.machine.device)
    set_precision(variant.precision)
    step = _build_step(settings, variant, device)
    problem = ""
    while pipe.recv() != "end":
        if not problem:
            try:
                step()
            except Exception as error:  # of the compiler, for which torch has many kinds
                if not variant.is_compiled:
                    raise
                problem = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if problem:
            pipe.send(Turn(float("inf"), problem=problem))
            continue
        timed = time_steps(device, count_steps(device, settings.steps), step)
        pipe.send(timed.turn(peak_megabytes=peak_megabytes(device)))
