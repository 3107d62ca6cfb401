"""Both builds of DALI in one environment are refused, whichever of them happens to work."""

from importlib.metadata import PackageNotFoundError

import pytest

from twotower.config import MachineConfig
from twotower.data import choose_loader
from twotower.data.choose_loader import DALI_BUILDS, check_loader


@pytest.mark.parametrize("loader", ["auto", "dali"])
def test_two_builds_of_dali_are_refused(monkeypatch: pytest.MonkeyPatch, loader: str) -> None:
    monkeypatch.setattr(choose_loader, "version", lambda name: "2.4.0")
    with pytest.raises(
        ValueError,
        match=r"^nvidia-dali-cuda130 2\.4\.0 and nvidia-dali-cuda120 2\.4\.0 are both installed, .*pip uninstall -y",
    ):
        check_loader(loader, MachineConfig())
    check_loader("torch", MachineConfig())  # which needs neither


@pytest.mark.parametrize("installed", [(), *((build,) for build in DALI_BUILDS)])
def test_one_build_or_none_is_fine(monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...]) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return "2.4.0"

    monkeypatch.setattr(choose_loader, "version", version)
    check_loader("auto", MachineConfig())


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_decoding_on_a_gpu_that_is_not_there_is_refused_before_any_work(device: str) -> None:
    with pytest.raises(ValueError, match=r"loader_device=gpu, but the towers are on the CPU"):
        check_loader("auto", MachineConfig(device=device, loader_device="gpu"))
