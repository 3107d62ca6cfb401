"""Both builds of DALI in one environment are refused, whichever of them happens to work."""

from importlib.metadata import PackageNotFoundError

import pytest

from twotower.data import choose_loader
from twotower.data.choose_loader import DALI_BUILDS, check_loader


@pytest.mark.parametrize("loader", ["auto", "dali"])
def test_two_builds_of_dali_are_refused(monkeypatch: pytest.MonkeyPatch, loader: str) -> None:
    monkeypatch.setattr(choose_loader, "version", lambda name: "2.4.0")
    with pytest.raises(
        ValueError,
        match=r"^nvidia-dali-cuda130 2\.4\.0 and nvidia-dali-cuda120 2\.4\.0 are both installed, .*pip uninstall -y",
    ):
        check_loader(loader, "auto")
    check_loader("torch", "auto")  # which needs neither


@pytest.mark.parametrize("installed", [(), *((build,) for build in DALI_BUILDS)])
def test_one_build_or_none_is_fine(monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...]) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return "2.4.0"

    monkeypatch.setattr(choose_loader, "version", version)
    check_loader("auto", "auto")
