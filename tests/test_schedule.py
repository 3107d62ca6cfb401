"""When the rates change, and in which layers."""

import math
from typing import Any

import pytest
from omegaconf import OmegaConf

from conftest import ROOT, load_network
from twotower.config import ChangeConfig, ScheduleConfig
from twotower.schedule import Rates, Schedule

NETWORK = load_network("alexnet_2012")


def rates(schedule: Schedule, errors: list[float]) -> list[float]:
    found = []
    for epoch, error in enumerate(errors):
        found.append(schedule.rates(epoch).highest)
        schedule.end_epoch(epoch + 1, error)
    return [round(rate, 12) for rate in found]


def test_fixed_drops_after_the_named_epochs() -> None:
    schedule = Schedule(ScheduleConfig(rule="fixed", epochs=6, drop_epochs=[2, 4]), 0.01, NETWORK)
    assert rates(schedule, [50.0] * 6) == [0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001]


def test_plateau_divides_when_nothing_improves_at_most_max_drops_times() -> None:
    schedule = Schedule(ScheduleConfig(rule="plateau", epochs=20, patience=2, max_drops=2), 1.0, NETWORK)
    #         better     same same  drop    better worse worse drop    worse for ever, no third drop
    errors = [60.0, 50.0, 50.0, 50.0, 40.0, 41.0, 41.0, 41.0, 41.0, 41.0, 41.0]
    assert rates(schedule, errors) == [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01]


def test_state_goes_on_where_it_was() -> None:
    config = ScheduleConfig(rule="plateau", epochs=20, patience=2, max_drops=3)
    errors = [60.0, 60.0, 59.0, 59.0, 59.0, 58.0, 58.0, 58.0]
    whole = rates(Schedule(config, 1.0, NETWORK), errors)
    first = Schedule(config, 1.0, NETWORK)
    begun = rates(first, errors[:4])
    second = Schedule(config, 1.0, NETWORK)
    second.load_state(first.state())
    assert begun + rates(second, errors[4:]) == whole


# The lab book: epoch at which all weights went to 1e-3 and 1e-4, conv1 to 1e-5, the colour noise off, conv1 frozen,
# the rest to 1e-5, the end; then the biases' last rate.
RECORDED = {
    "run_145_2010": (23, 51, 68, 68, 72, 78, 93, 0.002),
    "run_145_2012": (25, 51, 67, 67, 72, 79, 91, 0.02),
    "run_145_half": (20, 48, 66, 66, 72, 78, 96, 0.02),
    "run_147": (23, 51, None, None, 79, 79, 90, 0.002),
    "run_148": (22, 44, 69, 69, 73, 86, 97, 0.02),
    "run_150": (25, 49, 66, 66, 72, 79, 92, 0.02),
}


def load_schedule(name: str, **overrides: Any) -> ScheduleConfig:
    yaml = OmegaConf.load(ROOT / "conf" / "schedule" / f"{name}.yaml")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ScheduleConfig), yaml, overrides))
    assert isinstance(config, ScheduleConfig)
    return config


@pytest.mark.parametrize("factor", [1, 3, 0.1], ids=["as recorded", "3 times as long", "a tenth"])
@pytest.mark.parametrize("name", RECORDED)
def test_recorded_schedules_are_those_of_the_lab_book(name: str, factor: float) -> None:
    first, second, conv1_low, noise, frozen, rest, end, last_bias = RECORDED[name]
    config = load_schedule(name)
    assert config.epochs == end
    epochs = round(end * factor)
    config = load_schedule(name, epochs=epochs)
    stretch = epochs / end
    schedule = Schedule(config, 0.01, NETWORK)
    assert schedule.noise_epochs == (None if noise is None else pytest.approx(noise * stretch))

    def at(epoch: float) -> Rates:
        return schedule.rates(epoch * stretch)

    for epoch in [0, first - 0.5, first, second - 0.5, second, frozen - 0.5, frozen, rest - 0.5, rest, end - 0.5]:
        rates = at(epoch)
        expected = 0.01 if epoch < first else 1e-3 if epoch < second else 1e-4 if epoch < rest else 1e-5
        for layer, rate in rates.weights.items():
            if layer != "conv1":
                assert rate == pytest.approx(expected), (layer, epoch)
        low = conv1_low is not None and epoch >= conv1_low
        conv1 = 0 if epoch >= frozen else 1e-5 if low else expected
        assert rates.weights["conv1"] == pytest.approx(conv1), epoch
        assert rates.frozen == ({"conv1"} if epoch >= frozen else set())
    assert set(at(0).biases.values()) == {0.02}
    assert at(end - 0.5).biases["fc6"] == pytest.approx(last_bias)
    assert at(end - 0.5).biases["conv1"] == 0


def test_changes_begin_with_the_step_that_follows() -> None:
    """Of 10 steps an epoch: in epoch 25 the last step before is 249, and the first with the new rate is 250."""
    schedule = Schedule(load_schedule("run_145_2012"), 0.01, NETWORK)
    assert schedule.rates(249 / 10).highest == 0.01
    assert schedule.rates(250 / 10).highest == pytest.approx(0.001)


def test_exponential_staircase_of_run_170_and_169() -> None:
    """The numbers that the notes of run 170 give, and its biases: 0.02, then 0.002 in the second half."""
    schedule = Schedule(load_schedule("run_170"), 0.01, NETWORK)
    staircase = [schedule.rates(95 * part).highest for part in (0, 0.2499, 0.25, 0.5, 0.75, 0.9999)]
    assert staircase == pytest.approx([0.01, 0.01, 0.0015874, 0.00025198, 0.00004, 0.00004], rel=1e-4)
    assert [schedule.rates(95 * part).biases["fc6"] for part in (0, 0.49, 0.5, 1)] == pytest.approx(
        [0.02, 0.02, 0.002, 0.002]
    )
    last = Schedule(load_schedule("run_169"), 0.01, NETWORK).rates(94.9)
    assert last.highest == pytest.approx(2e-5)


def test_exponential_without_levels_falls_at_every_step() -> None:
    schedule = Schedule(load_schedule("run_170", levels=None, epochs=10), 0.01, NETWORK)
    for epoch in (0.0, 2.5, 7.1, 10.0):
        assert schedule.rates(epoch).highest == pytest.approx(0.01 * math.exp(-math.log(250) * epoch / 10))


def test_a_layers_own_rate_multiplies_any_rule() -> None:
    network = load_network("alexnet_2012", layers={"fc8": {"rate": 10}, "conv1": {"rate": 0}})
    for config in (ScheduleConfig(rule="fixed", epochs=6), load_schedule("run_145_2012"), load_schedule("run_170")):
        rates = Schedule(config, 0.01, network).rates(0)
        assert rates.weights["fc8"] == pytest.approx(0.1)
        assert rates.biases["fc8"] == pytest.approx(0.2)
        assert rates.weights["conv2"] == pytest.approx(0.01)
        assert rates.frozen == {"conv1"}


def test_fine_tuning_of_146_2012_2011() -> None:
    """Its notes: conv1 1e-4, fc8 1e-2 after 300 batches of 1252, conv1 frozen at 7, fc8 back at 9, all 1e-4 at 22."""
    schedule = Schedule(load_schedule("run_146_2012_2011"), 0.01, load_network("six_conv"))
    expected = {
        0: (1e-4, 1e-3, 1e-3),
        300 / 1252 + 0.01: (1e-4, 1e-3, 1e-2),
        5: (1e-5, 1e-3, 1e-2),
        7: (0, 1e-3, 1e-2),
        9: (0, 1e-3, 1e-3),
        22: (0, 1e-4, 1e-4),
        42: (0, 1e-5, 1e-5),
    }
    for epoch, (conv1, conv6, fc8) in expected.items():
        weights = schedule.rates(epoch).weights
        assert (weights["conv1"], weights["conv6"], weights["fc8"]) == pytest.approx((conv1, conv6, fc8)), epoch
    assert schedule.noise_epochs == 38


def test_a_change_of_a_layer_that_is_not_there_is_named() -> None:
    config = ScheduleConfig(rule="recorded", epochs=9, changes=[ChangeConfig(epoch=1, layers=["conv9"])])
    with pytest.raises(ValueError, match=r"changes\[0\] names conv9.*conv1, conv2"):
        Schedule(config, 0.01, NETWORK)
