"""The process that the towers are compared with: the network in one piece, on all cores."""

from multiprocessing.connection import Connection

import torch
import torch.nn.functional as F

from twotower.benchmarks.baseline import build_baseline
from twotower.benchmarks.take_turns import Turn, count_steps, time_steps
from twotower.config import BenchmarkConfig
from twotower.ground.devices import choose_device
from twotower.ground.memory import peak_megabytes
from twotower.ground.processes import cores, die_with_parent

RATE = 1e-6  # learning rate at which the weights stay finite over any number of steps
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # section 5 of the paper
PIXEL_SPREAD = 50  # standard deviation of the drawn pixels, near that of photographs


def run_single_process(settings: BenchmarkConfig, memory_format: torch.memory_format, pipe: Connection) -> None:
    """Answers `synthetic` with a Turn, until `end`."""
    die_with_parent()
    torch.set_num_threads(cores())
    device = choose_device(settings.machine.device)
    torch.manual_seed(0)
    network = build_baseline(settings.network, settings.num_classes).to(device).to(memory_format=memory_format)  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    size = settings.network.image_size
    images = torch.randn(settings.optim.batch_size, 3, size, size, device=device) * PIXEL_SPREAD
    images = images.contiguous(memory_format=memory_format)
    labels = torch.randint(settings.num_classes, (settings.optim.batch_size,), device=device)

    def step() -> None:
        optimiser.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimiser.step()

    while pipe.recv() != "end":
        step()
        pipe.send(
            Turn(time_steps(device, count_steps(device, settings.steps), step), peak_megabytes=peak_megabytes(device))
        )
