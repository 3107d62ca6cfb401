"""The energy of a run over kills, new folders and several machines: what was spent counts once, the gap never."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from twotower.config import MachineConfig
from twotower.ground.energy import Energy
from twotower.runs.journal import FolderGoneError, SilentJournal
from twotower.training import energy_use
from twotower.training.energy_use import ENERGY, RunEnergy

JOURNAL = SilentJournal()
CPU = MachineConfig(device="cpu")


class FakeMeter:
    """A machine that takes 10 W, on a clock that is set by hand."""

    def __init__(self, uuids: Any) -> None:
        self.uuids, self.seconds, self.is_stopped = list(uuids), 0.0, False

    def read(self) -> Energy:
        seconds = self.seconds
        return Energy(seconds, seconds, 10 * seconds, seconds, gpu_reason="there is none")

    def stop(self) -> None:
        self.is_stopped = True


class FakeWorld:
    """A process whose `gather` finds what the others are said to give."""

    def __init__(self, rank: int = 0, local_rank: int = 0, others: tuple[Tensor, ...] = ()) -> None:
        self.is_first, self.others, self.device = rank == 0, others, torch.device("cpu")
        self.place = SimpleNamespace(local_rank=local_rank, local_size=2)

    def gather(self, values: Tensor) -> list[Tensor]:
        return [values, *self.others]


def start(world: Any, run_dir: Path, seconds: float, stored: dict[str, Any] | None = None) -> RunEnergy:
    """A part of a run that has trained for some seconds."""
    run = RunEnergy(world, run_dir, FakeMeter)  # type: ignore[arg-type]
    if stored is not None:
        run.go_on(stored)
    run.start(CPU)
    if run._meter is not None:
        run._meter.seconds = seconds  # type: ignore[attr-defined]
    return run


def test_what_was_spent_before_a_kill_counts(tmp_path: Path) -> None:
    """The checkpoint is of second 40, the kill of second 70, the file of second 60."""
    killed = start(FakeWorld(), tmp_path, 40)
    in_checkpoint = killed.gather()
    killed.keep(JOURNAL, in_checkpoint)
    assert killed._meter is not None
    killed._meter.seconds = 60  # type: ignore[attr-defined]
    killed._noted = -1e9
    killed.note(JOURNAL)
    killed._meter.seconds = 70  # type: ignore[attr-defined]
    killed.note(JOURNAL)  # too early to write again
    resumed = start(FakeWorld(), tmp_path, 5, energy_use.asdict(in_checkpoint))
    total = resumed.gather()
    assert (total.seconds, total.cpu_joules) == (60 + 5, 650)
    resumed.keep(JOURNAL, total)
    assert json.loads((tmp_path / ENERGY).read_text())["seconds"] == 65
    again = start(FakeWorld(), tmp_path, 1, energy_use.asdict(in_checkpoint))
    assert again.gather().seconds == 66, "over three parts"


def test_in_a_new_folder_the_checkpoint_says_what_was_spent(tmp_path: Path) -> None:
    run = start(FakeWorld(), tmp_path, 5, {"seconds": 40.0, "machine_seconds": 40.0, "cpu_joules": 400.0})
    assert (run.gather().seconds, run.gather().cpu_joules) == (45, 450)
    before = start(FakeWorld(), tmp_path, 5, {})  # of a checkpoint before energy was noted
    assert before.gather().seconds == 5


def test_a_damaged_file_is_said_and_replaced(tmp_path: Path) -> None:
    (tmp_path / ENERGY).write_text('{"seconds": "many"}')
    run = start(FakeWorld(), tmp_path, 5, {"seconds": 40.0})
    assert run.notice is not None
    assert "energy.json is damaged" in run.notice
    assert run.notice.endswith("Hours and energy go on from those of the checkpoint.")
    assert run.gather().seconds == 45


def test_machines_add_up_and_the_hours_stay_those_of_the_clock(tmp_path: Path) -> None:
    second_machine = FakeMeter(())
    second_machine.seconds = 30
    row = torch.tensor([getattr(second_machine.read(), name) for name in energy_use._NUMBERS], dtype=torch.float64)
    assert len(row) == 7
    run = start(FakeWorld(others=(torch.zeros(7, dtype=torch.float64), row)), tmp_path, 32)
    for _ in range(2):  # each look finds the same
        total = run.gather()
        assert (total.seconds, total.machine_seconds, total.cpu_joules) == (32, 62, 620)
    run._noted = -1e9
    run.note(JOURNAL)
    assert json.loads((tmp_path / ENERGY).read_text())["cpu_joules"] == 620


def test_one_process_of_a_machine_reads(tmp_path: Path) -> None:
    second = start(FakeWorld(rank=1, local_rank=1), tmp_path, 9)
    assert second._meter is None
    assert second.gather() == Energy()
    second.note(JOURNAL)
    second.keep(JOURNAL, Energy(seconds=3))
    second.stop()
    assert not (tmp_path / ENERGY).exists()
    first = start(FakeWorld(), tmp_path, 9)
    first.stop()
    assert first._meter is not None
    assert first._meter.is_stopped  # type: ignore[attr-defined]


def test_nothing_is_written_into_a_folder_that_was_replaced(tmp_path: Path) -> None:
    class GoneJournal(SilentJournal):
        def check_folder(self) -> None:
            raise FolderGoneError.of(tmp_path, "metrics.jsonl")

    start(FakeWorld(), tmp_path, 9).note(GoneJournal())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shared", [True, False])
def test_a_gpu_that_towers_share_is_counted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    def choose(machine: MachineConfig, place: Any) -> tuple[torch.device, str]:
        return torch.device("cuda", 0 if shared else place.local_rank), "any"

    monkeypatch.setattr(energy_use, "choose_device", choose)
    monkeypatch.setattr(energy_use, "read_uuid", lambda device: f"GPU-{device.index}")
    monkeypatch.setattr(energy_use, "replace", lambda place, local_rank: SimpleNamespace(local_rank=local_rank))
    world = FakeWorld()
    world.device = torch.device("cuda", 0)
    run = start(world, tmp_path, 1)
    assert run._meter is not None
    assert run._meter.uuids == (["GPU-0"] if shared else ["GPU-0", "GPU-1"])  # type: ignore[attr-defined]
