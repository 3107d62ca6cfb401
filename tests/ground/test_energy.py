"""The energy of a machine: what its counters say, added up by hand, and why it cannot be measured where it cannot."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from twotower.ground import energy
from twotower.ground.energy import Energy, EnergyMeter, NotMeasurableError, open_gpus, open_packages

LARGEST = 262_143_328_850  # microjoules, as processors have it
JOULE = 10**6
EMPTY = Path("no such folder")


def write_domain(root: Path, name: str, title: str, microjoules: int, largest: int = LARGEST) -> Path:
    """A domain as the kernel shows it; returns its counter."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{title}\n")
    (folder / "max_energy_range_uj").write_text(f"{largest}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    """Two packages with cores and memory, the whole platform, and the first package once more by its other way."""
    root = tmp_path / "powercap"
    write_domain(root, "intel-rapl:0", "package-0", 5 * JOULE)
    write_domain(root, "intel-rapl:0:0", "core", 4 * JOULE)
    write_domain(root, "intel-rapl:0:1", "dram", 3 * JOULE)
    write_domain(root, "intel-rapl:1", "package-1", 7 * JOULE)
    write_domain(root, "intel-rapl:1:0", "dram", 2 * JOULE)
    write_domain(root, "intel-rapl:2", "psys", 90 * JOULE)
    write_domain(root, "intel-rapl-mmio:0", "package-0", 5 * JOULE)
    (root / "intel-rapl").mkdir()
    return root


@pytest.fixture
def clock() -> Any:
    """A clock that is set by hand."""
    return SimpleNamespace(now=100.0)


def make_meter(powercap: Path, clock: Any, uuids: tuple[str, ...] = (), nvml: Any = None) -> EnergyMeter:
    return EnergyMeter(uuids, powercap, nvml, lambda: clock.now)


def test_the_eleventh_package_is_counted(tmp_path: Path) -> None:
    """The kernel numbers domains in hexadecimal."""
    for index in (0, 9, 10, 17):
        write_domain(tmp_path, f"intel-rapl:{index:x}", f"package-{index}", JOULE)
    assert len(open_packages(tmp_path)) == 4


def test_packages_are_counted_once_and_nothing_else(powercap: Path, clock: Any) -> None:
    meter = make_meter(powercap, clock)
    for folder in powercap.glob("*:*"):
        before = int((folder / "energy_uj").read_text())
        (folder / "energy_uj").write_text(str(before + (1000 if "mmio" in folder.name else 36) * JOULE))
    (powercap / "intel-rapl:1" / "energy_uj").write_text(str((7 + 3600) * JOULE))
    clock.now += 60
    found = meter.read()
    meter.stop()
    assert found.cpu_joules == pytest.approx(36 + 3600)
    assert (found.seconds, found.machine_seconds, found.cpu_seconds, found.gpu_used_seconds) == (60, 60, 60, 0)
    assert found.describe() == "processors 1.01 Wh"
    assert found.summary() == {
        "hours": pytest.approx(1 / 60),
        "watt_hours_cpu": pytest.approx(1.01),
        "energy": "processors 1.01 Wh",
    }


def test_a_counter_that_begins_anew_has_gone_on(powercap: Path, clock: Any) -> None:
    counter = powercap / "intel-rapl:0" / "energy_uj"
    counter.write_text(str(LARGEST - 2 * JOULE))
    meter = make_meter(powercap, clock)
    counter.write_text(str(3 * JOULE))
    assert meter.read().cpu_joules == pytest.approx(2 + 3)
    counter.write_text(str(4 * JOULE))
    assert meter.read().cpu_joules == pytest.approx(6)
    counter.write_text(str(1 * JOULE))
    assert meter.read().cpu_joules == pytest.approx(6 + LARGEST / JOULE - 3), "a second time"
    meter.stop()


def test_it_is_read_between_the_calls(powercap: Path, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that no counter begins anew twice in between: 15 J on a counter of 8 J are not seen as 7."""
    waits: Iterator[bool] = iter([False, False, True])
    small = write_domain(powercap, "intel-rapl:3", "package-3", 0, largest=8 * JOULE)
    values = iter([5, 2, 7])

    def wait(event: Any, seconds: float) -> bool:
        small.write_text(str(next(values) * JOULE))
        return next(waits)

    monkeypatch.setattr(energy.threading.Event, "wait", wait)
    monkeypatch.setattr(energy.threading.Thread, "start", lambda thread: thread.run())
    meter = make_meter(powercap, clock)
    assert meter.read().cpu_joules == pytest.approx(8 + 7)


def test_what_may_not_be_read_is_said(powercap: Path, clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read_text = Path.read_text

    def refuse(path: Path) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path)

    monkeypatch.setattr(Path, "read_text", refuse)
    meter = make_meter(powercap, clock)
    clock.now += 3600
    found = meter.read()
    assert found.summary() == {
        "hours": 1.0,
        "energy": f"processors not measurable here: {powercap}/intel-rapl:0/energy_uj is for root alone",
    }


def test_a_machine_without_counters_is_said(tmp_path: Path) -> None:
    with pytest.raises(NotMeasurableError, match="has no counter of a processor"):
        open_packages(tmp_path / "nothing")
    write_domain(tmp_path, "intel-rapl:0", "psys", 1)
    with pytest.raises(NotMeasurableError, match="has no counter of a processor"):
        open_packages(tmp_path)
    write_domain(tmp_path, "intel-rapl:1", "package-0", 1).write_text("not a number")
    with pytest.raises(NotMeasurableError, match="cannot be read"):
        open_packages(tmp_path)


def test_a_counter_that_goes_ends_the_counting_and_nothing_else(powercap: Path, clock: Any) -> None:
    meter = make_meter(powercap, clock)
    (powercap / "intel-rapl:0" / "energy_uj").write_text(str((5 + 7200) * JOULE))
    clock.now += 30
    meter.read()
    (powercap / "intel-rapl:1" / "energy_uj").unlink()
    clock.now += 90
    found = meter.read()
    meter.stop()
    assert (found.cpu_joules, found.cpu_seconds, found.seconds) == (pytest.approx(7200), 30, 120)
    assert found.describe().startswith(
        "processors 2 Wh in 25 % of the time, else not measurable: a counter could not"
    )


class FakeNvml:
    """NVML with counters in millijoules; one GPU has none."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.millijoules = {"GPU-a": 10_000, "GPU-b": 5}
        self.calls: list[str] = []

    def nvmlInit(self) -> None:
        self.calls.append("init")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in self.millijoules:
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return self.millijoules[handle]


def test_gpus_are_counted_in_millijoules(clock: Any) -> None:
    nvml = FakeNvml()
    meter = make_meter(EMPTY, clock, ("GPU-a", "GPU-b"), nvml)
    nvml.millijoules = {"GPU-a": 10_000 + 7_200_000, "GPU-b": 5 + 3_600_000}
    clock.now += 7200
    found = meter.read()
    assert found.gpu_joules == pytest.approx(10_800)
    summary = found.summary()
    assert (summary["hours"], summary["watt_hours_gpu"]) == (2.0, pytest.approx(3.0))
    assert "watt_hours_cpu" not in summary
    words = f"processors not measurable here: {EMPTY} has no counter of a processor (intel-rapl); GPUs 3 Wh"
    assert summary["energy"] == words
    nvml.millijoules["GPU-a"] = 500  # its driver was loaded anew
    assert meter.read().gpu_joules == pytest.approx(10_800.5)


def test_a_gpu_without_a_counter_is_said(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = make_meter(EMPTY, clock, ("MIG-c",), FakeNvml())
    clock.now += 1
    assert meter.read().describe().endswith("GPUs not measurable here: NVML says: Not Found")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(NotMeasurableError, match="nvidia-ml-py is not installed"):
        open_gpus(["GPU-a"])


def test_parts_of_a_run_add_up() -> None:
    first = Energy(seconds=100, machine_seconds=200, cpu_joules=3600, cpu_seconds=200)
    second = Energy(seconds=50, machine_seconds=50, cpu_reason="it is another machine")
    total = first + second
    assert total == Energy(150, 250, 3600, 200, cpu_reason="it is another machine")
    assert total.describe() == "processors 1 Wh in 80 % of the time, else not measurable: it is another machine"
    assert Energy.from_json({"seconds": 3.0, "of_later_versions": 1}) == Energy(seconds=3.0)
    assert Energy.from_json({}) == Energy()
