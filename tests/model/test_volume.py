"""The bytes of a step, against numbers written out by hand, and what follows from them for a link."""

import pytest

from twotower.config import VolumeConfig
from twotower.config.presets import preset
from twotower.model.volume import HEADS, Link, estimate_rows, measure_volume

HALVES = 11_075_584 + 2_359_296 + 1_048_576 + 1_048_576  # before conv3, fc6, fc7 and fc8, of 128 images
LOGITS = 4 * 128 * 500


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2012"])
def test_the_exchange_is_that_of_the_paper(name: str) -> None:
    for replicas in (1, 1000):
        volume = measure_volume(preset(name), 1000, 128, replicas)
        assert volume.exchange_bytes == 2 * HALVES + LOGITS
        assert volume.exchange_messages == 9
    assert measure_volume(preset(name), 1000, 128, 1, "bf16").exchange_bytes == HALVES + LOGITS // 2


def test_nothing_is_exchanged_by_one_tower_and_only_logits_without_an_exchange() -> None:
    assert measure_volume(preset("one_tower"), 1000, 128, 2).exchange_bytes == 0
    lone = measure_volume(preset("no_exchange"), 1000, 128, 2)
    assert lone.exchange_bytes < 2 * HALVES


def test_a_ring_sends_each_gradient_nearly_twice() -> None:
    """Of 2 replicas each sends every gradient once: half of them as terms, half as sums."""
    parameters = 60_965_224
    assert measure_volume(preset("alexnet"), 1000, 128, 1).gradient_bytes == (0, 0)
    assert sum(measure_volume(preset("alexnet"), 1000, 128, 2).gradient_bytes) == 4 * parameters
    many = sum(measure_volume(preset("alexnet"), 1000, 128, 1000).gradient_bytes)
    assert many == pytest.approx(4 * parameters * 2 * 999 / 1000, abs=2)
    assert measure_volume(preset("alexnet"), 1000, 1, 2) != measure_volume(preset("alexnet"), 1000, 2, 2)


def test_a_link_takes_time_for_bytes_and_for_messages() -> None:
    assert Link(10.0, 1e-3, 0.5).seconds(5_000_000_000, 3) == pytest.approx(1.003)


def test_rows_say_what_gradients_cost_where_they_do_not_hide() -> None:
    slow = estimate_rows(VolumeConfig(network=preset("alexnet"), images_per_second=50.0))
    fast = estimate_rows(VolumeConfig(network=preset("alexnet"), images_per_second=4000.0, ethernet=1.25))
    assert all(len(row) == len(HEADS) for row in slow + fast)
    assert [row[0] for row in slow] == ["1", "2", "8", "64", "1,000", "4,000"]
    assert [row[1] for row in slow] == ["1", "1", "2", "16", "250", "1,000"]
    shares = [int(row[-1].split("(")[1].split()[0]) for row in fast]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 90
    assert shares[-1] < 20
    assert slow[0][-1] == "50 (100 %)"
