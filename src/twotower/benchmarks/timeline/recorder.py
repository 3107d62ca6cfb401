"""Notes what a tower does while it trains. A training that nobody records has none of it in its way.

The recorder takes the places of a few methods of one trainer's objects: of each layer, of the link that the exchange
uses, of the optimiser. Hooks of torch would do for the forward pass, but a layer that is hooked works in another way
(see `Layer`), and would be timed as something else. In the backward pass a layer begins where autograd comes to what
made its output; autograd runs the youngest first, so it ends where that of the layer before begins.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from twotower.benchmarks.timeline.clock import Clock, GpuClock, HostClock
from twotower.benchmarks.timeline.records import (
    BACKWARD,
    FORWARD,
    GRADIENT,
    HALF,
    IMAGES,
    LOADING,
    LOGITS,
    LOSS,
    OTHER,
    SEND,
    UPDATE,
    WAIT,
    Arrival,
    Span,
    TowerStep,
)
from twotower.data.batch import Partner
from twotower.distributed.exchange import Wire, WireExchange
from twotower.distributed.transport import Swap
from twotower.training.trainer import Trainer

_FORWARD_CALLS = ("prepare", "sum_own", "forward")  # of a layer


@dataclass
class _Swapped:
    """A swap with its marks, as they come."""

    part: str
    what: str
    num_sent: int
    posted: Any
    waits_from: Any = None
    waits_to: Any = None
    arrived: Any = None


class Recorder:
    """What one tower does, step by step.

    Args:
        clock: of what computes.
        watches_arrivals: whether a thread of its own waits for each half, to note when it comes. A GPU's stream can
            only be waited for in its own order, so there a half counts as arrived when the stream has waited for it.
    """

    def __init__(self, clock: Clock, watches_arrivals: bool) -> None:
        self.clock = clock
        self._present = (OTHER, OTHER)
        self._marks: list[tuple[str, str, Any]] = []
        self._swapped: list[_Swapped] = []
        self._steps: list[tuple[list[tuple[str, str, Any]], Any, list[_Swapped]]] = []
        self._watchers = ThreadPoolExecutor(2, "arrivals") if watches_arrivals else None

    def begin(self, kind: str, part: str) -> Any:
        """Ends what was noted before, and begins something else. Returns the mark."""
        mark = self.clock.mark()
        self._present = (kind, part)
        self._marks.append((kind, part, mark))
        return mark

    def end_step(self) -> None:
        """Closes a step; what is noted from here on belongs to the next one."""
        self._steps.append((self._marks, self.clock.mark(), self._swapped))
        self._marks, self._swapped = [], []

    def read(self) -> list[TowerStep]:
        """All steps that were closed; whatever computes must have caught up. Ends the recording."""
        if self._watchers is not None:
            self._watchers.shutdown()
        return [self._read_step(*step) for step in self._steps]

    def _read_step(self, marks: list[tuple[str, str, Any]], last: Any, swapped: list[_Swapped]) -> TowerStep:
        times = [self.clock.read(mark) for _, _, mark in marks] + [self.clock.read(last)]
        spans: list[Span] = []
        for (kind, part, _), begin, end in zip(marks, times[:-1], times[1:], strict=True):
            if spans and (spans[-1].kind, spans[-1].part) == (kind, part):
                spans[-1] = Span(kind, part, spans[-1].begin, end)
            elif end > begin:
                spans.append(Span(kind, part, begin, end))
        arrivals = [
            Arrival(
                one.part,
                one.what,
                one.num_sent,
                self.clock.read(one.posted),
                (self.clock.read(one.waits_from), self.clock.read(one.waits_to)),
                self.clock.read(one.arrived),
            )
            for one in swapped
        ]
        return TowerStep(times[0], times[-1], spans, arrivals)

    def swap(self, wire: Wire, mine: Tensor, shape: Sequence[int] | None) -> Swap:
        """Swaps as `Link.swap`, and notes it."""
        kind, layer = self._present
        part, what = layer, GRADIENT if kind == BACKWARD else HALF
        if shape is not None:  # see `WireExchange.collect`
            part, what = LOSS, LOGITS
        posted = self.begin(SEND, part)
        swap = wire.swap(mine, shape)
        self.begin(kind, layer)
        noted = _Swapped(part, what, mine.numel() * mine.element_size(), posted)
        self._swapped.append(noted)
        wait = swap.wait
        if self._watchers is not None:
            wait = self._watchers.submit(self._watch, swap, noted).result

        def arrive() -> Tensor:
            before = self._present
            noted.waits_from = self.begin(WAIT, part)
            theirs = wait()
            noted.waits_to = self.begin(*((LOSS, LOSS) if part == LOSS else before))
            noted.arrived = noted.waits_to if noted.arrived is None else noted.arrived
            return theirs

        return Swap(arrive)

    def _watch(self, swap: Swap, noted: _Swapped) -> Tensor:
        theirs = swap.wait()
        noted.arrived = self.clock.mark()
        return theirs

    def swap_images(self, partner: Partner, mine: Tensor, num_theirs: int) -> Tensor:
        """Swaps decoded images as `Partner.swap_images`, which waits for them, and notes it."""
        before = self._present
        posted = self.begin(WAIT, LOADING)
        theirs = partner.swap_images(mine, num_theirs)
        arrived = self.begin(*before)
        num_sent = mine.numel() * mine.element_size()
        self._swapped.append(_Swapped(LOADING, IMAGES, num_sent, posted, posted, arrived, arrived))
        return theirs


class _RecordedWire:
    """The link of an exchange, recorded."""

    def __init__(self, wire: Wire, recorder: Recorder) -> None:
        self._wire, self._recorder = wire, recorder

    def swap(self, mine: Tensor, shape: Sequence[int] | None = None) -> Swap:
        return self._recorder.swap(self._wire, mine, shape)


class _RecordedPartner:
    """The other tower as the feed knows it, recorded."""

    def __init__(self, partner: Partner, recorder: Recorder) -> None:
        self._partner, self._recorder, self.tower = partner, recorder, partner.tower

    def swap_images(self, mine: Tensor, num_theirs: int) -> Tensor:
        return self._recorder.swap_images(self._partner, mine, num_theirs)


def record_partner(partner: Partner | None, recorder: Recorder) -> Partner | None:
    """The partner of a `Share`, so that the recorder notes what it sends."""
    return None if partner is None else _RecordedPartner(partner, recorder)


def _around(before: Callable[..., object], call: Callable[..., Any], after: Callable[[Any], object]) -> Any:
    """A function that does the same as `call`; `before` gets its arguments, and `after` its result."""

    def run(*arguments: Any, **options: Any) -> Any:
        before(*arguments)
        result = call(*arguments, **options)
        after(result)
        return result

    return run


def _replace(owner: Any, name: str, before: Callable[..., object], after: Callable[[Any], object]) -> None:
    """Puts something around a method of one object, and of no other."""
    setattr(owner, name, _around(before, getattr(owner, name), after))


def _do_nothing(*arguments: Any) -> None:
    """Where nothing is noted."""


def _record_layer(name: str, layer: nn.Module, recorder: Recorder) -> None:
    def begin(*arguments: Any) -> None:
        recorder.begin(FORWARD, name)

    def begin_backward(grads: Any) -> None:
        recorder.begin(BACKWARD, name)

    def follow(output: Tensor) -> None:
        if output.grad_fn is not None:
            output.grad_fn.register_prehook(begin_backward)

    for call in _FORWARD_CALLS:
        _replace(layer, call, begin, follow if call == "forward" else _do_nothing)


def record(trainer: Trainer) -> Recorder:
    """Makes a trainer of two towers note what it does. It stays so, and computes the same bits."""
    world, exchange, optimiser = trainer.world, trainer.exchange, trainer.optimiser
    assert isinstance(exchange, WireExchange)
    on_gpu = world.device.type == "cuda"
    recorder = Recorder(GpuClock(world.catch_up) if on_gpu else HostClock(), watches_arrivals=not on_gpu)
    exchange.link = _RecordedWire(exchange.link, recorder)
    for row, layer in zip(trainer.tower.rows, trainer.tower.table(), strict=True):
        _record_layer(row.name, layer, recorder)

    def end(result: Any) -> None:
        recorder.begin(OTHER, OTHER)

    _replace(world, "go_backward", _do_nothing, end)
    _replace(world, "finish_checks", lambda: recorder.begin(WAIT, OTHER), end)  # numbers of the step before
    _replace(optimiser, "step", _do_nothing, end)
    _replace(optimiser, "update_group", lambda group: recorder.begin(UPDATE, group.layer), _do_nothing)
    return recorder
