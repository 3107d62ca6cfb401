"""A recorded step: what a tower did from when to when, what came from the other one, and what that adds up to.

All times are nanoseconds of the host's monotonic clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass

LOADING, LOSS, OTHER = "loading", "loss", "other"  # parts of a step that are no layer
FORWARD, BACKWARD, UPDATE, SEND, WAIT = "forward", "backward", "update", "sending", "waiting"
HALF, GRADIENT, LOGITS, IMAGES = "half", "gradient", "half of the logits", "images"


@dataclass(frozen=True)
class Span:
    """What a tower did without a break.

    Attributes:
        kind: forward, backward, update, sending or waiting; loss, loading and other are parts of their own.
        part: the layer that it belongs to, or loading, loss, other.
    """

    kind: str
    part: str
    begin: int
    end: int


@dataclass(frozen=True)
class Arrival:
    """What one tower received in a swap, and sent at the same time.

    Attributes:
        part: the layer that reads it, or loss, loading.
        what: a half, a gradient, half of the logits, images.
        num_sent: bytes that this tower sent.
        posted: when it gave its own half away.
        waits: from when to when it did nothing but wait.
        arrived: when the other one's half was here, and the own one gone; on a GPU, when the stream knew that.
    """

    part: str
    what: str
    num_sent: int
    posted: int
    waits: tuple[int, int]
    arrived: int


@dataclass(frozen=True)
class TowerStep:
    """A step of one tower; its spans follow each other without a gap."""

    begin: int
    end: int
    spans: list[Span]
    arrivals: list[Arrival]


@dataclass(frozen=True)
class Travel:
    """One half on its way.

    Attributes:
        source: the tower that sent it, 0 or 1.
        sent, arrived: when it was given away there, and when it was here.
        hidden: nanoseconds of the way in which the tower that it goes to did something else than wait for it.
        late: nanoseconds that this tower waited before the half was given away at all.
    """

    part: str
    what: str
    source: int
    num_bytes: int
    sent: int
    arrived: int
    hidden: int
    late: int


@dataclass
class Sums:
    """Milliseconds of one tower in one part of a step.

    Attributes:
        compute: all that is no waiting; forward, backward, update and sending for a layer.
        waiting: in which the tower had nothing else to do.
        hidden: in which something travelled to it while it computed.
        late: of `waiting`, before the other tower had sent.
    """

    compute: float = 0.0
    waiting: float = 0.0
    hidden: float = 0.0
    late: float = 0.0

    def add(self, other: "Sums") -> None:
        self.compute += other.compute
        self.waiting += other.waiting
        self.hidden += other.hidden
        self.late += other.late


@dataclass(frozen=True)
class Timeline:
    """All recorded steps of both towers.

    Attributes:
        title: network, batch, precision, transport.
        layers: their names in order.
        steps: of each recorded step tower 0 and tower 1.
        clock_error: nanoseconds by which the clocks of the two may differ, at most.
        is_on_gpu: whether the times of what computes are those of GPUs.
    """

    title: str
    layers: list[str]
    steps: list[tuple[TowerStep, TowerStep]]
    clock_error: int
    is_on_gpu: bool = False

    @property
    def lengths(self) -> list[int]:
        """Nanoseconds of each step, from the first tower's begin to the last one's end."""
        return [max(tower.end for tower in step) - min(tower.begin for tower in step) for step in self.steps]

    @property
    def drawn(self) -> int:
        """The step that is drawn and summed up: the one of median length, of an even number the shorter one."""
        lengths = self.lengths
        return sorted(range(len(lengths)), key=lengths.__getitem__)[(len(lengths) - 1) // 2]


def _overlap(first: tuple[int, int], second: tuple[int, int]) -> int:
    return max(0, min(first[1], second[1]) - max(first[0], second[0]))


def list_travels(step: tuple[TowerStep, TowerStep]) -> list[Travel]:
    """What crossed in a step, two for each swap, in the order of the swaps.

    Raises: ValueError if the towers have not made the same swaps.
    """
    swaps = [[(arrival.part, arrival.what) for arrival in tower.arrivals] for tower in step]
    if swaps[0] != swaps[1]:
        raise ValueError(f"tower 0 made the swaps {swaps[0]}, and tower 1 {swaps[1]}; they must be the same.")
    travels = []
    for pair in zip(step[0].arrivals, step[1].arrivals, strict=True):
        for source in (0, 1):
            sender, here = pair[source], pair[1 - source]
            way = (min(sender.posted, here.arrived), here.arrived)
            travels.append(
                Travel(
                    here.part,
                    here.what,
                    source,
                    sender.num_sent,
                    *way,
                    hidden=way[1] - way[0] - _overlap(way, here.waits),
                    late=_overlap(here.waits, (here.waits[0], way[0])),
                )
            )
    return travels


def sum_up(step: tuple[TowerStep, TowerStep], layers: Sequence[str]) -> dict[str, tuple[Sums, Sums]]:
    """The sums of both towers by part: loading, the layers, loss, other. All parts of a tower make the whole step."""
    sums = {part: (Sums(), Sums()) for part in (LOADING, *layers, LOSS, OTHER)}
    for number, tower in enumerate(step):
        for span in tower.spans:
            length = (span.end - span.begin) / 1e6
            sums[span.part][number].add(Sums(waiting=length) if span.kind == WAIT else Sums(compute=length))
    for travel in list_travels(step):
        sums[travel.part][1 - travel.source].add(Sums(hidden=travel.hidden / 1e6, late=travel.late / 1e6))
    return sums
