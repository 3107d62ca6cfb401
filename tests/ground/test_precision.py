"""The precision of the arithmetic: what is refused, what torch's switches are, and what stays float32."""

import pytest
import torch

from twotower.config import PRECISIONS
from twotower.ground import precision
from twotower.ground.precision import check_precision, in_full_precision, in_precision, set_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_fp32_is_everywhere_and_tf32_on_no_cpu() -> None:
    check_precision("fp32", CPU)
    check_precision("fp32", GPU)
    with pytest.raises(ValueError, match=r"^machine\.precision=tf32 is for GPUs, .* use machine\.precision=fp32\.$"):
        check_precision("tf32", CPU)


def test_bf16_needs_a_processor_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: False)
    with pytest.raises(ValueError, match=r"^precision=bf16 needs a processor that multiplies bfloat16 .*=fp32\.$"):
        check_precision("bf16", CPU, "precision")
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: True)
    check_precision("bf16", CPU)


@pytest.mark.parametrize("wanted", ["tf32", "bf16"])
def test_a_gpu_before_ampere_has_neither(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    with pytest.raises(ValueError, match=rf"={wanted} needs a GPU of compute capability 8\.0 .* is a Tesla V100;"):
        check_precision(wanted, GPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    check_precision(wanted, GPU)


def test_fp32_leaves_no_shortcut_open() -> None:
    """torch's own default computes convolutions on GPUs in TF32."""
    for wanted in (*PRECISIONS, "fp32"):
        set_precision(wanted)
        assert torch.backends.cudnn.allow_tf32 == (wanted == "tf32")
        assert torch.backends.cuda.matmul.allow_tf32 == (wanted == "tf32")
        for switch in (torch.backends.cudnn.conv, torch.backends.cuda.matmul):
            assert (switch.fp32_precision == "tf32") == (wanted == "tf32")


def test_sums_of_squares_leave_the_context_of_bf16() -> None:
    x = torch.randn(8, 8)
    with in_precision("bf16", CPU):
        assert (x @ x).dtype == torch.bfloat16
        with in_full_precision(CPU):
            assert torch.equal(x @ x, torch.mm(x, x))
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
    for other in ("fp32", "tf32"):
        with in_precision(other, CPU):
            assert (x @ x).dtype == torch.float32


def test_products_of_norms_are_no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    set_precision("tf32")
    try:
        with in_full_precision(GPU):
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        set_precision("fp32")
