"""How many bytes a step sends, from one machine to a thousand, and how long they would take over a link.

Two things cross. Within a replica the towers exchange halves of activations and their gradients: as much whatever the
number of replicas, and in the middle of the arithmetic. Between replicas each tower's gradients are averaged by a
ring: each of R processes sends 2 (R - 1) / R times the tower's parameters, nearly the same for 8 replicas and 1000.

The bytes are those of the run itself. The times are arithmetic, with these assumptions:

- a link attains a given share of its peak, in both directions at once, and each message adds a given latency;
- the towers of a node share its one network card, and the ring of each tower enters and leaves a node once;
- gradients are float32 and go in buckets of 25 MiB, while the backward pass, two thirds of the step, still runs;
- nothing of the exchange is hidden, and nothing else is on the links: no images, no input from a network disk.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from twotower.config import NetworkConfig, VolumeConfig
from twotower.model.layer_numbers import FLOAT_BYTES, LayerNumbers, describe

BF16_BYTES = 2
BUCKET_BYTES = 25 << 20  # of torch's DistributedDataParallel, which sends gradients as soon as so many are there
BACKWARD_SHARE = 2 / 3  # of a step's arithmetic: by the inputs and by the weights, as much each as the forward pass


@dataclass(frozen=True)
class Link:
    """A way for bytes.

    Attributes:
        gigabytes_per_second: at its peak, in one direction, while as much flows in the other.
        latency: seconds of each message.
        reached: share of the peak that is attained.
    """

    gigabytes_per_second: float
    latency: float
    reached: float

    def seconds(self, num_bytes: float, num_messages: int) -> float:
        return num_bytes / (self.gigabytes_per_second * 1e9 * self.reached) + num_messages * self.latency


@dataclass(frozen=True)
class Volume:
    """The bytes of one step.

    Attributes:
        exchange_bytes: from tower 0 to tower 1, forward, backward and logits; `exchange_bytes` of a run's events.
        exchange_messages: swaps of a step.
        gradient_bytes: of each tower, that one process of it sends to the next one of its ring.
        gradient_messages: of one process.
    """

    num_replicas: int
    exchange_bytes: int
    exchange_messages: int
    gradient_bytes: tuple[int, ...]
    gradient_messages: int


def measure_exchange(layers: Sequence[LayerNumbers], batch_size: int, precision: str, half: bool) -> tuple[int, int]:
    """Bytes that tower 0 sends to tower 1 in a training step, and the number of swaps.

    Args:
        precision: `machine.precision`; under bf16 all that crosses is bfloat16.
        half: whether `network.exchange_precision=half`, which the layers' numbers count already.
    """
    if len(layers[0].maps_out) == 1:
        return 0, 0
    crossing = [layer.exchanged_bytes for layer in layers if layer.exchanged_bytes]
    halves = sum(crossing)
    logits = batch_size * layers[-1].maps_out[0] * FLOAT_BYTES
    if precision == "bf16":
        halves = halves if half else halves * BF16_BYTES // FLOAT_BYTES
        logits = logits * BF16_BYTES // FLOAT_BYTES
    return 2 * halves + logits, 2 * len(crossing) + 1


def measure_volume(
    network: NetworkConfig, num_classes: int, batch_size: int, num_replicas: int, precision: str = "fp32"
) -> Volume:
    """The bytes of a step with `batch_size` images a replica. Raises: ValueError if the network cannot be built."""
    layers = describe(network, num_classes, batch_size)
    exchange_bytes, messages = measure_exchange(layers, batch_size, precision, network.exchange_precision == "half")
    parameters = [sum(layer.parameters[tower] for layer in layers) for tower in range(network.towers)]
    rounds = 2 * (num_replicas - 1)  # a sum passes along the ring, and then the result
    gradient_bytes = tuple(FLOAT_BYTES * count * rounds // num_replicas for count in parameters)
    buckets = -(-FLOAT_BYTES * max(parameters) // BUCKET_BYTES)
    return Volume(num_replicas, exchange_bytes, messages, gradient_bytes, rounds * buckets)


HEADS = (
    "replicas",
    "nodes",
    "images a step",
    "MB exchanged",
    "MB of gradients",
    "exchange, ms",
    "gradients, ms",
    "images/s (of the sum)",
)


def estimate_rows(settings: VolumeConfig) -> list[list[str]]:
    """A row for each number of replicas, as HEADS says.

    MB are what the processes of one replica send in a step, tower 0 to tower 1 and both towers to the next replica.
    Milliseconds are those over NVLink, PCIe and Ethernet. Images/s are those with the first link that is on hand:
    NVLink within a node, Ethernet between nodes; beside them their share of what replicas without any link would do.
    """
    latencies = (settings.latency_within, settings.latency_within, settings.latency_between)
    peaks = (settings.nvlink, settings.pcie, settings.ethernet)
    links = [Link(peak, latency, settings.reached) for peak, latency in zip(peaks, latencies, strict=True)]
    nvlink, _, ethernet = links
    compute = settings.batch_size / settings.images_per_second
    rows = []
    for replicas in settings.replicas:
        volume = measure_volume(
            settings.network, settings.num_classes, settings.batch_size, replicas, settings.precision
        )
        nodes = -(-replicas // settings.replicas_per_node)
        # Each tower has a link of its own within a node, and both share the card between nodes.
        sent = (max(volume.gradient_bytes), max(volume.gradient_bytes), sum(volume.gradient_bytes))
        exchange = [link.seconds(volume.exchange_bytes, volume.exchange_messages) for link in links]
        gradients = [
            link.seconds(num_bytes, volume.gradient_messages) for link, num_bytes in zip(links, sent, strict=True)
        ]
        averaged = gradients[links.index(ethernet if nodes > 1 else nvlink)]
        step = compute + exchange[0] + max(0.0, averaged - compute * BACKWARD_SHARE)
        rows.append(
            [
                f"{replicas:,}",
                f"{nodes:,}",
                f"{replicas * settings.batch_size:,}",
                f"{volume.exchange_bytes / 1e6:,.1f}",
                f"{sum(volume.gradient_bytes) / 1e6:,.1f}",
                " / ".join(f"{1e3 * seconds:,.1f}" for seconds in exchange),
                " / ".join(f"{1e3 * seconds:,.1f}" for seconds in gradients),
                f"{replicas * settings.batch_size / step:,.0f} ({100 * compute / step:.0f} %)",
            ]
        )
    return rows
