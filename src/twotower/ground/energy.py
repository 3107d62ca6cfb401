"""The energy that a machine takes while a run trains on it, by the machine's own counters.

| what       | counter                                                      | where it cannot be read                |
|------------|--------------------------------------------------------------|----------------------------------------|
| processors | RAPL, /sys/class/powercap/intel-rapl:N of Linux (AMD's, too) | without root, in most virtual machines |
| GPUs       | NVML, from Volta on, by the package nvidia-ml-py             | without that package, parts of a GPU   |

Of processors the packages are counted, which hold their cores; memory (`dram`) has counters of its own on some
machines only, and is left out everywhere. Both counters are the machine's: what other programs do meanwhile, and what
an idle machine takes, is in them, so two runs at a time on one machine each show the energy of both. All processes of
a run on a machine share them; one of these reads.
"""

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, FiniteFloat
from typing_extensions import TypedDict

NOT_MEASURABLE = "not measurable here"
POWERCAP = Path("/sys/class/powercap")
# A counter of RAPL begins anew after 262 kJ on many processors, which 300 W take in 15 minutes. It is read so often
# that this never happens twice in between.
SAMPLE_SECONDS = 60.0
# A domain by itself, numbered in hexadecimal by the kernel (powercap_sys.c); its parts are intel-rapl:0:0 and so on.
_PACKAGE = re.compile(r"intel-rapl:[0-9a-f]+")
_JOULES_IN_WATT_HOUR = 3600.0


class StoredEnergy(TypedDict, total=False):
    """The form of an `Energy` in energy.json and in a checkpoint."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    seconds: FiniteFloat
    machine_seconds: FiniteFloat
    cpu_joules: FiniteFloat
    cpu_seconds: FiniteFloat
    gpu_joules: FiniteFloat
    gpu_seconds: FiniteFloat
    gpu_used_seconds: FiniteFloat
    cpu_reason: str
    gpu_reason: str


class NotMeasurableError(RuntimeError):
    """A kind of energy has no counter here that may be read. The message is the reason, as a part of a sentence."""


@dataclass(frozen=True)
class Energy:
    """What was measured over all parts of a run so far.

    Attributes:
        seconds: by the clock, while it trained; without the time between a stop and the next start.
        machine_seconds: the same, of all machines together.
        cpu_joules, gpu_joules: of the processors' packages and of the GPUs.
        cpu_seconds, gpu_seconds: the part of `machine_seconds` in which these could be measured.
        gpu_used_seconds: the part of `machine_seconds` in which there were GPUs.
        cpu_reason, gpu_reason: why some of it could not be measured; empty if all could.
    """

    seconds: float = 0.0
    machine_seconds: float = 0.0
    cpu_joules: float = 0.0
    cpu_seconds: float = 0.0
    gpu_joules: float = 0.0
    gpu_seconds: float = 0.0
    gpu_used_seconds: float = 0.0
    cpu_reason: str = ""
    gpu_reason: str = ""

    def __add__(self, other: "Energy") -> "Energy":
        sums: dict[str, Any] = {}
        for field in fields(self):
            one, more = getattr(self, field.name), getattr(other, field.name)
            sums[field.name] = more or one if isinstance(one, str) else one + more
        return Energy(**sums)

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> "Energy":
        """Reads what `dataclasses.asdict` gave; later versions may have noted more, earlier ones nothing."""
        known = {field.name for field in fields(Energy)}
        return Energy(**{key: value for key, value in stored.items() if key in known})

    def describe(self) -> str:
        """ "processors 12.3 Wh; GPUs not measurable here: ..."."""
        kinds = [
            _describe("processors", self.cpu_joules, self.cpu_seconds, self.machine_seconds, self.cpu_reason),
            _describe("GPUs", self.gpu_joules, self.gpu_seconds, self.gpu_used_seconds, self.gpu_reason),
        ]
        return "; ".join(kind for kind in kinds if kind)

    def summary(self) -> dict[str, float | str]:
        """What summary.json holds: `hours`, `watt_hours_cpu` and `watt_hours_gpu` if measured, `energy` in words."""
        found: dict[str, float | str] = {"hours": self.seconds / 3600}
        if self.cpu_seconds:
            found["watt_hours_cpu"] = self.cpu_joules / _JOULES_IN_WATT_HOUR
        if self.gpu_seconds:
            found["watt_hours_gpu"] = self.gpu_joules / _JOULES_IN_WATT_HOUR
        return found | {"energy": self.describe()}


def _describe(name: str, joules: float, measured: float, used: float, reason: str) -> str:
    if used <= 0:
        return ""
    if measured <= 0:
        return f"{name} {NOT_MEASURABLE}: {reason}"
    words = f"{name} {joules / _JOULES_IN_WATT_HOUR:.3g} Wh"
    share = measured / used
    return words if share > 0.995 else f"{words} in {100 * share:.0f} % of the time, else not measurable: {reason}"


class _Counter:
    """A counter that grows, read again and again.

    Args:
        read: joules, or whatever `unit` is of them.
        unit: joules of one.
        largest: after which it begins at 0; None: it begins at 0 only when its driver does.
    """

    def __init__(self, read: Callable[[], int], unit: float, largest: int | None) -> None:
        self._read, self._unit, self._largest = read, unit, largest
        self._last = read()

    def read_joules(self) -> float:
        """Since the last call."""
        now = self._read()
        grown = now - self._last
        if grown < 0:
            grown = now if self._largest is None else grown + self._largest
        self._last = now
        return grown * self._unit


def open_packages(powercap: Path = POWERCAP) -> list[_Counter]:
    """The counters of the processors' packages. Raises: NotMeasurableError."""
    counters = []
    try:
        for folder in sorted(powercap.glob("intel-rapl:*")):
            is_package = _PACKAGE.fullmatch(folder.name) and (folder / "name").read_text().startswith("package")
            if is_package:
                largest = int((folder / "max_energy_range_uj").read_text())
                counters.append(_Counter(_reader(folder / "energy_uj"), 1e-6, largest))
    except PermissionError as error:
        raise NotMeasurableError(f"{error.filename} is for root alone") from error
    except (OSError, ValueError) as error:
        raise NotMeasurableError(f"the counters in {powercap} cannot be read ({error})") from error
    if not counters:
        raise NotMeasurableError(f"{powercap} has no counter of a processor (intel-rapl)")
    return counters


def _reader(file: Path) -> Callable[[], int]:
    return lambda: int(file.read_text())


def _import_nvml() -> Any:
    """Raises: NotMeasurableError."""
    try:
        import pynvml
    except ImportError as error:
        raise NotMeasurableError("nvidia-ml-py is not installed (pip install -e '.[energy]')") from error
    return pynvml


def read_uuid(device: torch.device) -> str:
    """A GPU's name for NVML, which does not follow CUDA_VISIBLE_DEVICES."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def open_gpus(uuids: Sequence[str], nvml: Any = None) -> list[_Counter]:
    """The counters of GPUs.

    Args:
        nvml: the module pynvml; None: it is imported.

    Raises: NotMeasurableError.
    """
    nvml = _import_nvml() if nvml is None else nvml
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
        return [
            _Counter(lambda handle=handle: int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)), 1e-3, None)  # type: ignore[misc]
            for handle in handles
        ]
    except nvml.NVMLError as error:
        raise NotMeasurableError(f"NVML says: {error}") from error


class _Kind:
    """Processors or GPUs: their counters, what they have counted, and why they do not."""

    def __init__(self, open_counters: Callable[[], list[_Counter]]) -> None:
        self.joules, self.seconds, self.reason = 0.0, 0.0, ""
        self._counters: list[_Counter] = []
        try:
            self._counters = open_counters()
        except NotMeasurableError as error:
            self.reason = str(error)

    @property
    def is_measured(self) -> bool:
        return bool(self._counters)

    def read(self, seconds: float) -> None:
        """Adds what was taken in the `seconds` since the last call; a counter that fails ends the counting."""
        if not self._counters:
            return
        try:
            self.joules += sum(counter.read_joules() for counter in self._counters)
            self.seconds += seconds
        except Exception as error:  # NVML's errors are classes of a module that may not be there
            self.reason = f"a counter could not be read any more ({error})"
            self._counters = []


class EnergyMeter:
    """Counts the energy of this machine from the moment that it is made. One process of a run on a machine has one.

    Args:
        uuids: the GPUs that the run's processes on this machine use, each once.
        powercap, nvml, clock: for tests.
    """

    def __init__(
        self,
        uuids: Sequence[str] = (),
        powercap: Path = POWERCAP,
        nvml: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._has_gpus = clock, bool(uuids)
        self._cpu = _Kind(lambda: open_packages(powercap))
        self._gpu = _Kind(lambda: open_gpus(uuids, nvml) if uuids else [])
        self._began = self._last = clock()
        self._lock, self._ended = threading.Lock(), threading.Event()
        if self._cpu.is_measured:
            threading.Thread(target=self._sample, name="energy", daemon=True).start()

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self.read()

    def read(self) -> Energy:
        """What was taken since the meter was made."""
        with self._lock:
            now = self._clock()
            for kind in (self._cpu, self._gpu):
                kind.read(now - self._last)
            self._last = now
            seconds = now - self._began
            return Energy(
                seconds=seconds,
                machine_seconds=seconds,
                cpu_joules=self._cpu.joules,
                cpu_seconds=self._cpu.seconds,
                gpu_joules=self._gpu.joules,
                gpu_seconds=self._gpu.seconds,
                gpu_used_seconds=seconds if self._has_gpus else 0.0,
                cpu_reason=self._cpu.reason,
                gpu_reason=self._gpu.reason,
            )

    def stop(self) -> None:
        """Ends the reading between calls."""
        self._ended.set()
