"""A GPU that torch cannot use is said in one sentence. The edges are patched: no GPU is needed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from twotower.config import MachineConfig
from twotower.distributed.place import Place, choose_device
from twotower.ground import devices, gpu_check
from twotower.ground.gpu_check import check_capability, check_free, read_driver, runs_on

DRIVER_TEXT = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Tue Apr  2 00:00:00 UTC 2024\nGCC version:  gcc 12.3.0\n"
)
CUDA_13_WHEELS = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
Unseen = Callable[..., None]


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Unseen:
    """A machine with a GPU that torch does not see."""

    def prepare(driver: str | None = "580.65.06", cuda: str | None = "13.0", visible: str | None = None) -> None:
        device = tmp_path / "nvidia0"
        device.touch()
        driver_file = tmp_path / "version"
        if driver is not None:
            driver_file.write_text(DRIVER_TEXT.format(driver))
        monkeypatch.setattr(gpu_check, "DRIVER_FILE", driver_file)
        monkeypatch.setattr(gpu_check, "SIGNS_OF_A_GPU", (driver_file, device))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    return prepare


@pytest.mark.parametrize(
    ("machine", "sentence"),
    [
        (
            {"driver": "550.54.15"},
            r"NVIDIA driver 550\.54\.15 is too old .* CUDA 13\.0 that needs 580 .*TORCH=cuda12",
        ),
        ({"driver": "470.82.01"}, r"driver 470\.82\.01 is too old .* needs 580 or newer; update the driver; or"),
        (
            {"driver": "470.82.01", "cuda": "12.6"},
            r"too old .* CUDA 12\.6 that needs 525 or newer; update the driver; or",
        ),
        ({"cuda": None}, r"is a build for CPUs; install one for CUDA"),
        ({"visible": "7"}, r"CUDA_VISIBLE_DEVICES=7 names none that torch can see; unset it"),
        ({}, r"\(driver 580\.65\.06\), but torch .* sees none; nvidia-smi must work here first"),
        ({"driver": None}, r"\(driver of unknown version\), but torch .* sees none"),
    ],
)
def test_no_training_on_the_cpu_in_silence(unseen: Unseen, machine: dict, sentence: str) -> None:
    unseen(**machine)
    with pytest.raises(ValueError, match=sentence) as caught:
        choose_device(MachineConfig(), Place(0, 2, 0, 2))
    assert str(caught.value).endswith("or choose the CPU by machine.device=cpu.")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=sentence):
        choose_device(MachineConfig(device="cuda"), Place(0, 2, 0, 2))
    with pytest.raises(ValueError, match=sentence) as caught:
        devices.choose_device()
    assert str(caught.value).endswith("or choose the CPU by device=cpu.")


@pytest.mark.parametrize("visible", ["", "-1"])
def test_a_hidden_gpu_is_no_mistake(unseen: Unseen, visible: str) -> None:
    unseen(visible=visible)
    assert choose_device(MachineConfig(), Place(0, 2, 0, 2)) == (torch.device("cpu"), "gloo")
    assert devices.choose_device() == torch.device("cpu")


def test_the_cpu_by_hand_is_no_mistake(unseen: Unseen) -> None:
    unseen(driver="550.54.15")
    assert choose_device(MachineConfig(device="cpu"), Place(0, 2, 0, 2)) == (torch.device("cpu"), "gloo")
    assert devices.choose_device("cpu") == torch.device("cpu")


def test_a_machine_without_a_gpu_is_no_mistake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_check, "SIGNS_OF_A_GPU", (tmp_path / "nothing",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(MachineConfig(), Place(0, 2, 0, 2)) == (torch.device("cpu"), "gloo")


def test_the_driver_is_read_from_either_form_of_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "version"
    monkeypatch.setattr(gpu_check, "DRIVER_FILE", path)
    assert read_driver() is None
    for text in (DRIVER_TEXT.format("470.82"), DRIVER_TEXT.replace("Kernel", "Open Kernel").format("470.82")):
        path.write_text(text)
        assert read_driver() == "470.82"
    path.write_text("something else")
    assert read_driver() is None


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((7, 0), False),
        ((6, 1), False),
        ((7, 5), True),
        ((8, 9), True),
        ((9, 0), True),
        ((12, 1), True),
        ((13, 0), True),
    ],
)
def test_which_cards_a_build_has_kernels_for(capability: tuple[int, int], runs: bool) -> None:
    assert runs_on(capability, CUDA_13_WHEELS) == runs


def test_newer_cards_need_code_that_is_compiled_at_the_start() -> None:
    assert not runs_on((10, 0), ["sm_75", "sm_80", "sm_90"])
    assert runs_on((10, 0), ["sm_75", "compute_80"])


def test_an_old_card_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100-SXM2-32GB")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: CUDA_13_WHEELS)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(
        ValueError, match=r"cuda:1 is a Tesla V100.* capability 7\.0, .*kernels for sm_75, .*TORCH=cuda12"
    ):
        check_capability(torch.device("cuda", 1))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    check_capability(torch.device("cuda", 1))


@pytest.mark.parametrize(
    ("says", "sentence"),
    [
        (
            "CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCUDA kernel errors might be",
            r"cuda:0 lets no second process in, .*sudo nvidia-smi -c DEFAULT",
        ),
        ("CUDA out of memory. Tried to allocate 2.00 MiB", r"cuda:0 has no memory left .*nvidia-smi shows who"),
        (
            "CUDA error: unspecified launch failure",
            r"cuda:0 cannot be used: CUDA error: unspecified launch failure; see",
        ),
    ],
)
def test_a_gpu_that_lets_nobody_in(monkeypatch: pytest.MonkeyPatch, says: str, sentence: str) -> None:
    """As in the mode EXCLUSIVE_PROCESS, where the second tower's process is refused."""

    def refuse(*size: int, device: torch.device) -> torch.Tensor:
        raise RuntimeError(says)

    monkeypatch.setattr(torch, "zeros", refuse)
    with pytest.raises(ValueError, match=sentence) as caught:
        check_free(torch.device("cuda", 0))
    assert "\n" not in str(caught.value)
