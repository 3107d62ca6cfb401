"""The timeline of a step: sums by hand, the rules of Chrome's trace format, the recorder, and a real run."""

import copy
import json
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.paths import ROOT
from helpers.towers import load_network
from twotower.benchmarks.timeline.clock import GpuClock, compare_clocks
from twotower.benchmarks.timeline.draw import choose_closer, describe_bytes, draw_timeline, place_labels
from twotower.benchmarks.timeline.recorder import record, record_partner
from twotower.benchmarks.timeline.records import Arrival, Span, Timeline, TowerStep, list_travels, sum_up
from twotower.benchmarks.timeline.run import check_settings
from twotower.benchmarks.timeline.trace import make_trace
from twotower.config import InputConfig, MachineConfig, OptimConfig, TimelineConfig
from twotower.distributed.exchange import WireExchange
from twotower.distributed.transport import Swap
from twotower.model.tower import Tower, forward
from twotower.model.volume import measure_volume
from twotower.training.optim import VelocitySGD

MS = 10**6
FLOAT_ERROR = 1e-6  # microseconds; a clock's nanosecond is 1e-3
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


def spans(*rows: tuple[str, str, int]) -> list[Span]:
    """Spans that follow each other: kind, part and end in ms; the first begins at 0."""
    begins = [0, *(end for _, _, end in rows)]
    return [Span(kind, part, begin * MS, end * MS) for (kind, part, end), begin in zip(rows, begins, strict=False)]


def by_hand(longer: int = 0) -> tuple[TowerStep, TowerStep]:
    """Two layers, of which the second reads both. Tower 1 sends at 30 ms, and its half travels for 12 ms."""
    first = spans(
        ("loading", "loading", 2),
        ("forward", "conv1", 20),
        ("sending", "conv2", 21),
        ("forward", "conv2", 25),
        ("waiting", "conv2", 42),
        ("forward", "conv2", 50),
        ("backward", "conv2", 60),
        ("update", "conv2", 70),
        ("other", "other", 80),
    )
    second = spans(
        ("forward", "conv1", 30),
        ("sending", "conv2", 31),
        ("forward", "conv2", 45),
        ("waiting", "conv2", 46),
        ("loss", "loss", 50),
        ("other", "other", 78 + longer),
    )
    return (
        TowerStep(0, 80 * MS, first, [Arrival("conv2", "half", 1000, 20 * MS, (25 * MS, 42 * MS), 42 * MS)]),
        TowerStep(
            0, (78 + longer) * MS, second, [Arrival("conv2", "half", 3000, 30 * MS, (45 * MS, 46 * MS), 40 * MS)]
        ),
    )


def made_by_hand() -> Timeline:
    return Timeline("a title", ["conv1", "conv2"], [by_hand(9), by_hand(), by_hand(30)], 1000)


def test_sums_are_those_by_hand() -> None:
    sums = sum_up(by_hand(), ["conv1", "conv2"])
    first, second = sums["conv2"]
    assert (first.compute, first.waiting) == (1 + 4 + 8 + 10 + 10, 17)
    assert (first.late, first.hidden) == (30 - 25, 0), "it waited before tower 1 had sent, and all the way after that"
    assert (second.compute, second.waiting) == (1 + 14, 1)
    assert (second.late, second.hidden) == (0, 40 - 20), "it arrived while tower 1 computed"
    for tower, length in ((0, 80), (1, 78)):
        assert sum(pair[tower].compute + pair[tower].waiting for pair in sums.values()) == length


def test_a_half_travels_from_one_tower_to_the_other() -> None:
    there, back = list_travels(by_hand())
    assert (there.source, there.num_bytes, there.sent, there.arrived) == (0, 1000, 20 * MS, 40 * MS)
    assert (back.source, back.num_bytes, back.sent, back.arrived) == (1, 3000, 30 * MS, 42 * MS)
    first, second = by_hand()
    with pytest.raises(ValueError, match="they must be the same"):
        list_travels((first, TowerStep(0, 1, second.spans, [])))


def test_the_step_of_median_length_is_drawn() -> None:
    timeline = made_by_hand()
    assert timeline.lengths == [87 * MS, 80 * MS, 108 * MS]
    assert timeline.drawn == 0
    timeline.steps.pop(0)
    assert timeline.drawn == 0, "of two the shorter one"


def find_faults(trace: Any) -> list[str]:
    """What breaks the rules of the trace event format, as far as Perfetto relies on them."""
    faults: list[str] = []
    slices: dict[tuple[int, int], list[tuple[float, float]]] = {}
    flows: dict[int, dict[str, Any]] = {}
    named = {(e["pid"], e["tid"]) for e in trace["traceEvents"] if e["ph"] == "M" and e["name"] == "thread_name"}
    for event in trace["traceEvents"]:
        if not {"ph", "pid", "tid", "name"} <= set(event):
            faults.append(f"incomplete: {event}")
        elif event["ph"] == "M":
            if event["name"] not in ("process_name", "thread_name") or not event["args"].get("name"):
                faults.append(f"unknown metadata: {event}")
        elif event["ph"] == "X":
            if not event.get("cat") or event["ts"] < 0 or event["dur"] < 0:
                faults.append(f"no slice: {event}")
            slices.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
        elif event["ph"] in ("s", "f"):
            if event["ph"] in flows.setdefault(event["id"], {}):
                faults.append(f"twice: {event}")
            flows[event["id"]][event["ph"]] = event
        else:
            faults.append(f"unknown phase: {event}")
    for process, thread in named:
        if 0 in (process, thread):
            faults.append(f"({process}, {thread}): 0 is the number of what idles")
        if any(thread == other and process != whose for whose, other in named):
            faults.append(f"thread {thread} is one of two processes")
    for place, found in slices.items():
        if place not in named:
            faults.append(f"{place} has no name")
        open_until: list[float] = []
        for begin, end in sorted(found, key=lambda way: (way[0], -way[1])):
            while open_until and open_until[-1] <= begin + FLOAT_ERROR:
                open_until.pop()
            if open_until and end > open_until[-1] + FLOAT_ERROR:
                faults.append(f"{place}: {begin} to {end} overlaps and is not within another")
            open_until.append(end)
    for number, pair in flows.items():
        if set(pair) != {"s", "f"}:
            faults.append(f"flow {number} has no {'end' if 's' in pair else 'begin'}")
            continue
        if pair["f"]["ts"] < pair["s"]["ts"] or pair["f"].get("bp") != "e":
            faults.append(f"flow {number} goes back in time, or is bound to what comes next")
        for event in pair.values():
            around = slices.get((event["pid"], event["tid"]), [])
            if not any(begin <= event["ts"] <= end for begin, end in around):
                faults.append(f"flow {number} is in no slice at {event['ph']}")
    return faults


def test_the_trace_keeps_the_rules() -> None:
    trace = json.loads(json.dumps(make_trace(made_by_hand()), allow_nan=False))
    assert find_faults(trace) == []
    events = trace["traceEvents"]
    assert {e["args"]["name"] for e in events if e["name"] == "process_name"} == {"tower 0", "tower 1"}
    assert sum(e["ph"] == "s" for e in events) == sum(e["ph"] == "f" for e in events) == 2 * 3
    processes = {e["args"]["name"]: e["pid"] for e in events if e["name"] == "process_name"}
    waits = [e for e in events if e["name"] == "waiting, conv2" and e["pid"] == processes["tower 0"]]
    assert [(e["ts"], e["dur"]) for e in waits] == [(25_000, 17_000)] * 3, "microseconds"
    main = {(e["pid"], e["tid"]) for e in events if e.get("cat") == "step"}
    assert main == {(number, number) for number in processes.values()}, "steps are what the main thread does"
    assert [e["name"] for e in events if e.get("cat") == "step" and e["pid"] == processes["tower 1"]] == [
        "step 1, drawn",
        "step 2",
        "step 3",
    ]


def test_halves_that_are_under_way_together_have_threads_of_their_own() -> None:
    first, second = by_hand()
    steps = (
        TowerStep(0, first.end, first.spans, first.arrivals * 3),
        TowerStep(0, second.end, second.spans, second.arrivals * 3),
    )
    trace = make_trace(Timeline("a title", ["conv1", "conv2"], [steps], 0))
    assert find_faults(trace) == []
    arriving = [
        event["tid"] for event in trace["traceEvents"] if event.get("cat") == "arriving" and event["pid"] == 100
    ]
    assert len(set(arriving)) == 3


def change(trace: Any, which: Callable[[Any], bool], **changes: Any) -> Any:
    changed = copy.deepcopy(trace)
    next(event for event in changed["traceEvents"] if which(event)).update(changes)
    return changed


def test_a_trace_that_breaks_the_rules_is_found_out() -> None:
    trace = make_trace(made_by_hand())
    kinds = {kind: next(e for e in trace["traceEvents"] if e["ph"] == kind) for kind in "Xsf"}
    for kind, changes in (
        ("X", {"dur": -1.0}),
        ("X", {"tid": 77}),
        ("X", {"ph": "Y"}),
        ("s", {"id": 999}),
        ("s", {"ts": 1e9}),
        ("f", {"bp": "n"}),
        ("f", {"pid": 5}),
    ):
        assert find_faults(change(trace, lambda e, kind=kind: e == kinds[kind], **changes)), changes
    for pid, tid in ((0, 0), (200, 0), (200, 103)):
        renamed = change(trace, lambda e: e["name"] == "thread_name" and e["pid"] == 200, pid=pid, tid=tid)
        assert any("idles" in fault or "two processes" in fault for fault in find_faults(renamed)), (pid, tid)
    wide = change(trace, lambda e: e["name"] == "conv1 forward", dur=2e4)
    assert any("overlaps" in fault for fault in find_faults(wide))


def test_the_picture_has_both_towers_and_what_crosses(tmp_path: Path) -> None:
    draw_timeline(made_by_hand(), tmp_path / "timeline.svg")
    text = (tmp_path / "timeline.svg").read_text()
    for words in ("tower 0", "tower 1", "0 to 1", "1 to 0", "waiting", "conv2 half 1.0 kB and 3.0 kB", "of median"):
        assert words in text, words
    assert describe_bytes(22_151_168) == "22.2 MB"


def test_labels_stand_in_rows_without_overlapping() -> None:
    first, second = by_hand()
    many = [replaced for arrival in first.arrivals for replaced in [arrival] * 7]
    steps = TowerStep(0, first.end, first.spans, many), TowerStep(0, second.end, second.spans, second.arrivals * 7)
    labels = place_labels(list_travels(steps), 0, (0.0, 200.0), {"conv2": "black"})
    assert 1 < len(labels) < 7, "those for which there is no row are left out"
    assert len({height for _, height, _, _ in labels}) == len(labels)


def test_the_closer_look_is_where_most_crosses() -> None:
    travels = [travel for travel in list_travels(by_hand()) for _ in range(2)]
    found = choose_closer(travels, 0, (0.0, 80.0))
    assert found is not None
    assert found[0] <= 20
    assert 42 <= found[1] < 80
    early = [travel for travel in travels for _ in range(4) if travel.source == 0]
    found = choose_closer([*early, travels[1]], 0, (0.0, 80.0))
    assert found is not None
    assert found[1] < 43, "one of nine may be elsewhere"
    assert choose_closer(travels[:1], 0, (0.0, 80.0)) is None
    assert choose_closer(travels, 0, (0.0, 15.0)) is None, "a step that is hardly longer is not drawn twice"


class Pair:
    """A link and its peer within one process: what one posts the other receives."""

    def __init__(self) -> None:
        self.boxes: list[queue.Queue[Any]] = [queue.Queue(), queue.Queue()]

    def check_in(self, tower: int, numbers: Sequence[int]) -> list[int]:
        self.boxes[1 - tower].put(list(numbers))
        answer: list[int] = self.boxes[tower].get(timeout=60)
        return answer

    def swap(self, tower: int, mine: Tensor, shape: Sequence[int] | None = None) -> Swap:
        self.boxes[1 - tower].put(mine.detach().clone())
        return Swap(lambda: self.boxes[tower].get(timeout=60))

    def of(self, tower: int) -> Any:
        return SimpleNamespace(check_in=partial(self.check_in, tower), swap=partial(self.swap, tower))


def in_both(work: Callable[[int], Any]) -> list[Any]:
    """What `work` returns for each tower, in two threads."""
    results: list[Any] = [None, None]

    def run(tower: int) -> None:
        results[tower] = work(tower)

    threads = [threading.Thread(target=run, args=(tower,), daemon=True) for tower in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=90)
    assert all(result is not None for result in results)
    return results


@pytest.mark.parametrize("ahead", [0, 5_000_000_000, -7_000_000])
def test_clocks_that_differ_are_found_out(ahead: int) -> None:
    import time

    pair = Pair()
    reads = (lambda: time.monotonic_ns() + ahead), time.monotonic_ns
    (lead, error), (other_lead, other_error) = in_both(lambda tower: compare_clocks(pair.of(tower), reads[tower]))
    assert error == other_error >= 0
    assert abs(lead - ahead) <= error
    assert abs(other_lead + ahead) <= other_error + 1


def test_events_of_a_gpu_are_put_on_the_clock_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its events know only how many milliseconds lie between two of them."""
    host = iter(range(1_000, 10_000, 1_000))
    monkeypatch.setattr("twotower.benchmarks.timeline.clock.time.monotonic_ns", lambda: next(host))
    moments = iter((3.0, 3.5, 7.0))

    class Event:
        def record(self) -> None:
            self.at = next(moments)

        def elapsed_time(self, later: "Event") -> float:
            return later.at - self.at

    waited: list[str] = []
    clock = GpuClock(lambda: waited.append("caught up"), Event)
    early, late = clock.mark(), clock.mark()
    assert (clock.read(early), clock.read(late)) == (1_000 + 500_000, 1_000 + 4_000_000)
    assert len(waited) == 2, "the first event has come when the host's clock is read"


NETWORK = load_network("alexnet_2012", width=0.0625)
BATCH, CLASSES = 4, 10


def train(tower_number: int, pair: Pair, is_recorded: bool) -> tuple[list[Tensor], list[TowerStep]]:
    """The parameters of a tower after two steps, and what was recorded."""
    tower = Tower(NETWORK, CLASSES, tower_number, seed=0)
    tower.fuse_steps(True, overwrite=True)
    world = SimpleNamespace(
        device=torch.device("cpu"), go_backward=lambda loss: loss.backward(), finish_checks=lambda: None
    )
    optimiser = VelocitySGD(tower.paper_named_parameters(), 0.9, 5e-4, 2.0, False)
    optimiser.set_rate(0.01)
    exchange = WireExchange(pair.of(tower_number), tower_number, tower.rows[-1].kernels)
    trainer: Any = SimpleNamespace(world=world, tower=tower, exchange=exchange, optimiser=optimiser)
    recorder = record(trainer) if is_recorded else None
    stream = torch.Generator().manual_seed(5)
    images = torch.randn((BATCH, 3, NETWORK.image_size, NETWORK.image_size), generator=stream)
    tower.train()
    for step in range(2):
        if recorder is not None:
            recorder.begin("other", "other")
        tower.at_step(step, slice(0, BATCH), BATCH)
        world.finish_checks()
        loss = F.nll_loss(F.log_softmax(forward([tower], images, exchange), dim=1), torch.arange(BATCH))
        world.go_backward(loss)
        optimiser.step()
        if recorder is not None:
            recorder.end_step()
    return [p.detach().clone() for p in tower.parameters()], [] if recorder is None else recorder.read()


def kinds_of(step: TowerStep, kind: str) -> list[str]:
    """The parts of one kind in their order, without repetitions."""
    return [part for part, _ in groupby(span.part for span in step.spans if span.kind == kind)]


@pytest.fixture(scope="module")
def trained() -> tuple[list[Any], list[Any]]:
    """Both towers without and with a recorder, in two threads."""
    plain, pair = Pair(), Pair()
    return in_both(lambda tower: train(tower, plain, False)), in_both(lambda tower: train(tower, pair, True))


def test_a_recorded_training_has_the_same_bits(trained: tuple[list[Any], list[Any]]) -> None:
    for (plain, _), (recorded, _) in zip(*trained, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(plain, recorded, strict=True))
    assert not torch.equal(trained[0][0][0][0], trained[0][1][0][0]), "the towers themselves differ"


def test_every_layer_is_recorded_in_its_order(trained: tuple[list[Any], list[Any]]) -> None:
    for _, steps in trained[1]:
        assert len(steps) == 2
        for step in steps:
            assert kinds_of(step, "forward") == list(LAYERS)
            assert kinds_of(step, "backward") == list(reversed(LAYERS))
            assert kinds_of(step, "update") == list(LAYERS)
            assert kinds_of(step, "sending") == ["conv3", "fc6", "fc7", "fc8", "loss", "fc8", "fc7", "fc6", "conv3"]
            assert (step.spans[0].begin, step.spans[-1].end) == (step.begin, step.end)
            assert all(one.end == other.begin for one, other in pairwise(step.spans)), "no gap"


def test_every_swap_has_its_bytes_and_its_moments(trained: tuple[list[Any], list[Any]]) -> None:
    halves = {"conv3": 8 * 13 * 13, "fc6": 8 * 6 * 6, "fc7": 128, "fc8": 128}
    (_, first), (_, second) = trained[1]
    for tower, step in ((0, first[1]), (1, second[1])):
        there = [(layer, "half", count) for layer, count in halves.items()]
        back = [(layer, "gradient", count) for layer, _, count in reversed(there)]
        expected = [*there, ("loss", "half of the logits", 5), *back]
        assert [(a.part, a.what, a.num_sent) for a in step.arrivals] == [
            (part, what, count * 4 * BATCH) for part, what, count in expected
        ], tower
        for arrival in step.arrivals:
            assert step.begin <= arrival.posted <= arrival.waits[0] <= arrival.waits[1] <= step.end
            assert arrival.posted <= arrival.arrived <= arrival.waits[1]
    for travel in list_travels((first[1], second[1])):
        assert travel.sent <= travel.arrived
        assert 0 <= travel.hidden <= travel.arrived - travel.sent


def test_swapped_images_are_waited_for_while_loading() -> None:
    tower = Tower(NETWORK, CLASSES, 0, seed=0)
    world = SimpleNamespace(device=torch.device("cpu"), go_backward=None, finish_checks=None)
    optimiser = SimpleNamespace(step=None, update_group=None)
    exchange = WireExchange(Pair().of(0), 0, (5, 5))
    recorder = record(SimpleNamespace(world=world, tower=tower, exchange=exchange, optimiser=optimiser))  # type: ignore[arg-type]
    partner: Any = SimpleNamespace(tower=0, swap_images=lambda mine, num_theirs: mine[:num_theirs])
    recorded = record_partner(partner, recorder)
    assert recorded is not None
    recorder.begin("loading", "loading")
    assert len(recorded.swap_images(torch.zeros((2, 5), dtype=torch.uint8), 1)) == 1
    recorder.end_step()
    (step,) = recorder.read()
    assert [(a.part, a.what, a.num_sent) for a in step.arrivals] == [("loading", "images", 10)]
    assert "waiting" in [span.kind for span in step.spans]
    assert record_partner(None, recorder) is None


@pytest.mark.parametrize(
    ("network", "machine", "sentence"),
    [
        (
            "one_tower",
            MachineConfig(device="cpu"),
            "network=one_tower is one tower, and a timeline shows",
        ),
        ("alexnet_2012", MachineConfig(device="cpu", replicas=2), "machine.replicas=2 is not possible"),
        ("alexnet_2012", MachineConfig(device="cpu", precision="tf32"), "tf32 is for GPUs"),
    ],
)
def test_what_has_no_timeline_is_refused(network: str, machine: MachineConfig, sentence: str) -> None:
    small = load_network(network, width=0.0625)
    settings = TimelineConfig(small, InputConfig(), OptimConfig(batch_size=4), machine)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        check_settings(settings)


@pytest.mark.slow
def test_the_command_draws_a_real_run(images: Path, tmp_path: Path) -> None:
    """Both towers in two processes, on photographs of which each decodes half."""
    command = [sys.executable, str(ROOT / "launch" / "timeline.py"), "network=alexnet_2012", "network.width=0.0625"]
    done = subprocess.run(
        [*command, "optim.batch_size=8", "machine.device=cpu", "steps=2", f"data_root={images}", "output=found.svg"],
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [re.split(r"[^\w.,]+", line.strip(" │")) for line in done.stdout.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == ["loading", *LAYERS, "loss", "other", "in"]
    assert re.search(r"step \d of 2, the one of median length, [\d.,]+ ms", done.stdout)
    assert "those of the two processes differ by at most" in done.stdout
    trace = json.loads((tmp_path / "found.json").read_text())
    assert find_faults(trace) == []
    arriving = [e for e in trace["traceEvents"] if e.get("cat") == "arriving"]
    ways = {
        name: [e["args"]["bytes"] for e in arriving if e["name"] == name] for name in {e["name"] for e in arriving}
    }
    # Four of the eight images cross each way, as bytes of 224 x 224 x 3.
    assert ways["images for loading"] == [4 * 224 * 224 * 3] * 2 * 2
    half = measure_volume(NETWORK, 3, 8, 1).exchange_bytes
    from_first = [e["args"]["bytes"] for e in arriving if e["pid"] == 200 and e["name"] != "images for loading"]
    assert sum(from_first) / 2 == half, "the bytes of launch/volume.py, which are those of a run"
    for name in ("tower 0", "conv3 half", "waiting"):
        assert name in (tmp_path / "found.svg").read_text(), name
