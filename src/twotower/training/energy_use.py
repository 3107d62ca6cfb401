"""The energy of a run over all its parts and machines: counted while it trains, kept where a kill leaves it.

The total is in each checkpoint, and in RUN/energy.json, which is written between checkpoints, too: what was spent
after the last one is lost for the weights, but it was spent. The time between a kill and the next start is no part.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from twotower.config import MachineConfig
from twotower.distributed.place import choose_device
from twotower.distributed.world import World
from twotower.ground.energy import Energy, EnergyMeter, StoredEnergy, read_uuid
from twotower.ground.files import write_json
from twotower.ground.stored_files import read_json
from twotower.runs.journal import FolderGoneError, SilentJournal

ENERGY = "energy.json"
NOTE_SECONDS = 30.0  # between two writings of the file; a kill loses no more
_NUMBERS = tuple(field.name for field in fields(Energy) if field.type is float)


_FORM: TypeAdapter[Any] = TypeAdapter(StoredEnergy)


class RunEnergy:
    """The energy of a run, as one of its processes knows it; only rank 0 knows the total.

    Attributes:
        notice: what a person should know of the file; None: nothing.

    Args:
        run_dir: has energy.json if the run goes on there.
        make_meter: for tests.
    """

    def __init__(self, world: World, run_dir: Path, make_meter: type[EnergyMeter] = EnergyMeter) -> None:
        self._world, self._run_dir, self._make_meter = world, run_dir, make_meter
        self._before = Energy()  # of the parts of the run that have ended
        self._others = Energy()  # of other machines, when all were asked last
        self._meter: EnergyMeter | None = None
        self._noted = -NOTE_SECONDS
        self.notice: str | None = None

    def go_on(self, stored: Mapping[str, Any]) -> None:
        """Begins with what was counted before: by the checkpoint, or by the run's file, which may be younger."""
        if not self._world.is_first:
            return
        self._before = Energy.from_json(stored)
        path = self._run_dir / ENERGY
        if path.exists():
            try:
                found = Energy.from_json(read_json(path, _FORM, "delete it"))
                self._before = max(self._before, found, key=lambda energy: energy.seconds)
            except ValueError as error:
                self.notice = f"{error} Hours and energy go on from those of the checkpoint."

    def start(self, machine: MachineConfig) -> None:
        """Counts from now on, in one process of each machine, which reads for all that are there."""
        place = self._world.place
        if place.local_rank != 0:
            return
        uuids: list[str] = []
        if self._world.device.type == "cuda":
            places = [replace(place, local_rank=rank) for rank in range(place.local_size)]
            devices = dict.fromkeys(choose_device(machine, one)[0] for one in places)  # towers may share one
            uuids = [read_uuid(device) for device in devices]
        self._meter = self._make_meter(uuids)

    def stop(self) -> None:
        if self._meter is not None:
            self._meter.stop()

    def note(self, journal: SilentJournal) -> None:
        """Writes the file, every NOTE_SECONDS. Raises: OSError on a full disk."""
        if not self._world.is_first or self._meter is None or time.monotonic() - self._noted < NOTE_SECONDS:
            return
        self.keep(journal, self._before + self._others + self._meter.read())

    def keep(self, journal: SilentJournal, energy: Energy) -> None:
        """Writes a total into the file, in rank 0. Raises: OSError on a full disk."""
        if not self._world.is_first:
            return
        try:
            journal.check_folder()
        except FolderGoneError:  # the next checkpoint says so; nothing is written into another folder's place
            return
        write_json(self._run_dir / ENERGY, asdict(energy))
        self._noted = time.monotonic()

    def gather(self) -> Energy:
        """The total, in rank 0; all processes call this together. Raises: TowerLostError."""
        own = self._meter.read() if self._meter is not None else Energy()
        values = torch.tensor([getattr(own, name) for name in _NUMBERS], dtype=torch.float64)
        machines = self._world.gather(values)
        if not self._world.is_first:
            return Energy()
        others = [dict(zip(_NUMBERS, row.tolist(), strict=True)) for row in machines[1:]]
        self._others = sum((replace(Energy(**row), seconds=0.0) for row in others), Energy())
        return self._before + self._others + own
