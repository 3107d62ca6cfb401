"""The memory of a training by parts: sums that follow from the paper, and what autograd keeps, counted twice."""

from pathlib import Path

import pytest

from helpers.composing import compose
from twotower.benchmarks.draw_memory import draw_memory
from twotower.benchmarks.measured_peaks import measure_peaks
from twotower.benchmarks.memory_parts import count_kept, list_memory
from twotower.config import MemoryConfig

BATCH = 128


def settings(*overrides: str, **options: str) -> MemoryConfig:
    config = compose(*overrides)
    return MemoryConfig(network=config.network, input=config.input, batch_size=BATCH, **options)  # type: ignore[arg-type]


def test_weights_and_images_are_those_of_the_paper() -> None:
    parts = {part.name: part for part in list_memory(settings("network=alexnet_2012", "network.width=1"))}
    for name in ("weights", "gradients", "velocities"):
        assert parts[name].of_both == 4 * 60_965_224
        assert parts[name].of_tower == parts[name].of_both / 2
    assert parts["images"].of_both == parts["images"].of_tower == BATCH * 3 * 224 * 224 * 4
    received = BATCH * 128 * 13 * 13 * 4  # the other tower's half of conv2, which conv3 reads
    assert parts["conv3"].of_tower - parts["conv3"].of_both / 2 == received


def test_what_is_kept_of_a_layer_is_counted_once() -> None:
    """conv4: its sum alone, over which the ReLU is written. conv1 of images with a border: both towers' copies."""
    kept = count_kept(settings("network=alexnet_2012", "network.width=0.25", fused_steps="no"))
    assert kept["conv4"] == (0, 96 * 13 * 13 * 4)
    with_border = 2 * 3 * 227 * 227 * 4
    assert kept["conv1"][1] > with_border + 24 * 55 * 55 * 4


def test_steps_in_one_pass_keep_less() -> None:
    """Of conv1 the sum, the pooled maps and a byte for each window, beside the images with their border."""
    pytest.importorskip("numba")
    narrow = ("network=alexnet_2012", "network.width=0.25")
    fused, alone = (count_kept(settings(*narrow, fused_steps=how))["conv1"][1] for how in ("yes", "no"))
    values, windows = 24 * 55 * 55, 24 * 27 * 27
    assert fused == 2 * 3 * 227 * 227 * 4 + values * 4 + windows * (4 + 1)
    assert alone > fused


def test_bfloat16_halves_what_is_kept() -> None:
    narrow = ("network=alexnet_2012", "network.width=0.25")
    parts = {part.name: part for part in list_memory(settings(*narrow, precision="bf16"))}
    whole = {part.name: part for part in list_memory(settings(*narrow))}
    assert parts["conv4"].of_both == whole["conv4"].of_both / 2
    assert "weights, bf16" not in whole
    assert 0.45 < parts["weights, bf16"].of_both / whole["weights"].of_both < 0.51, "all weights, in half the bytes"


def test_one_tower_is_one_column(tmp_path: Path) -> None:
    parts = list_memory(settings("network=one_tower", "network.width=0.25"))
    assert all(part.of_tower == part.of_both for part in parts)
    assert all(part.of_plain >= part.of_both for part in parts), "torch's norm keeps more"
    with pytest.raises(ValueError, match=r"network=one_tower is one tower, and measure=true compares two"):
        measure_peaks(settings("network=one_tower", "network.width=0.25"))


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    parts = list_memory(settings("network=alexnet_2012", "network.width=0.25"))
    draw_memory(parts, "a title", tmp_path / "memory.svg")
    text = (tmp_path / "memory.svg").read_text()
    assert text.count("<path") > 2 * len(parts)
    for column in ("of_plain", "of_both", "of_tower"):
        size = sum(getattr(part, column) for part in parts)
        assert f"<!-- {size / 2**30:.2f} GiB -->" in text
    assert "<!-- GTX 580: 3 GiB  -->" in text
    assert "GB" not in text


@pytest.mark.slow
def test_measured_peaks_are_above_the_parts() -> None:
    small = settings("network=alexnet_2012", "network.width=0.25")
    small.batch_size = 16
    found = measure_peaks(small)
    before, tower = found["a tower, before there is a network"], found["a tower"]
    parts = sum(part.of_tower for part in list_memory(small)) / 2**20
    assert before > 100
    assert before + 0.5 * parts < tower < before + 4 * parts + 200
