"""When the rates change, and in which layers."""

import math
from typing import Any

import pytest
from omegaconf import OmegaConf

from helpers.paths import ROOT
from helpers.towers import load_network
from twotower.config import ChangeConfig, ScheduleConfig
from twotower.training.schedule import Rates, Schedule

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
    """The numbers that the notes of run 170 give, and its biases: 0.02, then 0.002 in the second half.

    At the boundary the old rate holds for one more step, as `progress <= (i + 1) / n` says in lr.cu:146.
    """
    schedule = Schedule(load_schedule("run_170"), 0.01, NETWORK)
    staircase = [schedule.rates(95 * part).highest for part in (0, 0.25, 0.2501, 0.5001, 0.7501, 1)]
    assert staircase == pytest.approx([0.01, 0.01, 0.0015874, 0.00025198, 0.00004, 0.00004], rel=1e-4)
    assert [schedule.rates(95 * part).biases["fc6"] for part in (0, 0.5, 0.5001, 1)] == pytest.approx(
        [0.02, 0.02, 0.002, 0.002]
    )
    for steps_per_epoch in (7, 10_009):  # of 8 epochs a quarter is a whole number of steps
        schedule, boundary = Schedule(load_schedule("run_170", epochs=8), 0.01, NETWORK), 2 * steps_per_epoch
        around = [schedule.rates(step / steps_per_epoch).highest for step in (boundary, boundary + 1)]
        assert around == pytest.approx([0.01, 0.0015874], rel=1e-4)
    last = Schedule(load_schedule("run_169"), 0.01, NETWORK).rates(94.9)
    assert last.highest == pytest.approx(2e-5)


@pytest.mark.parametrize(
    ("name", "noise", "frozen"),  # after so many epochs of 95, by the notes
    [("run_166", 64, 73), ("run_167", 63, 73), ("run_169", 60, 73), ("run_170", 68, 74)],
)
def test_the_hand_changes_of_the_staircases(name: str, noise: int, frozen: int) -> None:
    for epochs in (95, 30):
        schedule, stretch = Schedule(load_schedule(name, epochs=epochs), 0.01, NETWORK), epochs / 95
        assert schedule.noise_epochs == pytest.approx(noise * stretch)
        before, after = schedule.rates((frozen - 0.5) * stretch), schedule.rates(frozen * stretch)
        assert before.frozen == set()
        assert len(set(before.weights.values())) == 1, "the staircase of all layers, conv1 too"
        assert after.frozen == schedule.rates(epochs).frozen == {"conv1"}
        assert after.weights["conv2"] == before.weights["conv2"] > 0


# What each run's file in layers/ of the source has as (epsW, epsB) at its end, conv1a and conv1b as conv1 and so on
# (fc2048a: fc6, fc2048ba: fc7, fc1a: fc7b, fc1000: fc8); "others": every other weight layer of the file.
ENDED = {
    "run_145_2010": ("layer-params-145-2010.cfg", {"conv1": (0, 0), "others": (0.00001, 0.002)}),
    "run_145_2012": ("layer-params-145.cfg", {"conv1": (0, 0), "others": (0.00001, 0.02)}),
    "run_145_second_leg": ("layer-params-145.cfg", {"conv1": (0, 0), "others": (0.00001, 0.02)}),
    "run_145_half": (
        "layer-params-145-half.cfg",
        {"conv1": (0.00001, 0.002), "conv2": (0.00001, 0.002), "others": (0.00001, 0.02)},
    ),
    "run_146_2009": ("layer-params-146-2009.cfg", {"conv6": (0.001, 0.002), "others": (0.001, 0.02)}),
    "run_146_2011": ("layer-params-146-2011.cfg", {"conv6": (0.001, 0.002), "others": (0.001, 0.02)}),
    "run_146_2012_2009": (
        "layer-params-146-2012-2009.cfg",
        {"conv1": (0, 0), "conv6": (0.00001, 0.002), "others": (0.00001, 0.02)},
    ),
    "run_146_2012_2011": (
        "layer-params-146-2012-2011.cfg",
        {"conv1": (0, 0), "conv6": (0.00001, 0.022), "others": (0.00001, 0.02)},
    ),
    "run_147": ("layer-params-147.cfg", {"conv1": (0, 0), "others": (0.00001, 0.002)}),
    "run_148": ("layer-params-148.cfg", {"conv1": (0, 0), "others": (0.00001, 0.02)}),
    "run_150": ("layer-params-150.cfg", {"conv1": (0, 0), "others": (0.00001, 0.02)}),
    # From here on epsW and epsB are first rates; schedW divides them by so much over the run, schedB by 10.
    "run_166": ("layer-params-166.cfg", {"conv1": (0, 0), "others": (0.01 / 1000, 0.02 / 10)}),
    "run_167": ("layer-params-167.cfg", {"conv1": (0, 0), "others": (0.01 / 1000, 0.02 / 10)}),
    "run_169": ("layer-params-169.cfg", {"others": (0.01 / 500, 0.02 / 10)}),
    "run_170": ("layer-params-170.cfg", {"others": (0.01 / 250, 0.02 / 10)}),
}
# Files that were not brought up to date with their own notes, or were made ready for another run since (170's is that
# of the restart on two cards; 170-quant's has conv1 at 0).
FROZEN_BY_THE_NOTE = {"run_145_half": 72, "run_169": 73, "run_170": 74}
NETWORKS = {"run_145_half": "one_tower", "run_146_2011": "six_conv_bottleneck", "run_150": "no_exchange"}


def test_each_recorded_schedule_has_a_file() -> None:
    assert ENDED.keys() == {path.stem for path in (ROOT / "conf" / "schedule").glob("run_*.yaml")}


@pytest.mark.parametrize("name", ENDED)
def test_the_last_rates_are_those_of_the_files(name: str) -> None:
    source, expected = ENDED[name]
    text = (ROOT / "conf" / "schedule" / f"{name}.yaml").read_text()
    assert source in text, "the yaml says where its numbers are from"
    network = load_network(NETWORKS.get(name, "six_conv" if "146" in name else "alexnet_2012"))
    config = load_schedule(name)
    last = Schedule(config, 0.01, network).rates(config.epochs)
    for layer in network.layers:
        weights, biases = expected.get(layer, expected["others"])
        if layer == "conv1" and name in FROZEN_BY_THE_NOTE:
            assert weights > 0, "no exception is needed"
            assert any(change.epoch == FROZEN_BY_THE_NOTE[name] for change in config.changes)
            weights = biases = 0
        assert last.weights[layer] == pytest.approx(weights), layer
        assert last.biases[layer] == pytest.approx(biases), layer


def test_epochs_of_the_chain_are_counted_from_one() -> None:
    """2.1600, 6.6491 and 8.11295 are printed as EPOCH.BATCH, with 8,690 and 14,650 batches an epoch."""
    on_2009, on_2011 = load_schedule("run_146_2009"), load_schedule("run_146_2011")
    assert on_2009.recorded_epochs == pytest.approx((6 - 1) + 6491 / 8690, abs=0.005)
    assert on_2011.recorded_epochs == pytest.approx((8 - 1) + 11295 / 14650, abs=0.005)
    assert [change.epoch for change in on_2009.changes] == [0, 0, 0, pytest.approx(1600 / 8690 + 1, abs=0.005)]
    assert [change.epoch for change in on_2011.changes] == [0, 0, 0, 6]
    for config, name, old in ((on_2009, "six_conv", 5), (on_2011, "six_conv_bottleneck", 6)):
        network, recorded = load_network(name), config.recorded_epochs
        assert recorded is not None
        schedule, when = Schedule(config, 0.01, network), config.changes[-1].epoch * config.epochs / recorded
        first, last = schedule.rates(when - 0.01), schedule.rates(when)
        for layer in network.layers:
            is_old = layer in [f"conv{i}" for i in range(1, old + 1)]
            assert first.weights[layer] == pytest.approx(1e-3 if is_old else 1e-2), layer
            assert last.weights[layer] == pytest.approx(1e-3), layer
        assert schedule.noise_epochs is None


def test_the_second_leg_of_run_145() -> None:
    """Its notes count on from 91: 107, 124 and 135; conv1 stays frozen, and the noise is on until 124."""
    schedule = Schedule(load_schedule("run_145_second_leg"), 0.01, NETWORK)
    assert schedule.config.epochs == 135 - 91
    for counted, expected in ((91, 1e-3), (106.5, 1e-3), (107, 1e-4), (123.5, 1e-4), (124, 1e-5), (134.9, 1e-5)):
        rates = schedule.rates(counted - 91)
        assert rates.frozen == {"conv1"}
        for layer in NETWORK.layers:
            assert rates.weights[layer] == pytest.approx(0 if layer == "conv1" else expected), (layer, counted)
    assert schedule.noise_epochs == 124 - 91


def test_fine_tuning_of_146_2012_2009() -> None:
    """Its notes: conv1 1e-4, then 1e-5 at 3 and 0 at 4; all 1e-4 at 22, noise off at 38, 1e-5 at 42, end at 52."""
    schedule = Schedule(load_schedule("run_146_2012_2009"), 0.01, load_network("six_conv"))
    assert (schedule.config.epochs, schedule.noise_epochs) == (52, 38)
    for epoch, conv1, rest in ((0, 1e-4, 1e-3), (3, 1e-5, 1e-3), (4, 0, 1e-3), (22, 0, 1e-4), (42, 0, 1e-5)):
        weights = schedule.rates(epoch).weights
        found = (weights["conv1"], weights["conv6"], weights["fc8"])
        assert found == pytest.approx((conv1, rest, rest)), epoch


def test_caffes_steps() -> None:
    """solver.prototxt: 0.01, gamma 0.1, stepsize 100,000 of 450,000 iterations of 256 of 1,281,167 images."""
    config = load_schedule("caffe")
    assert config.epochs == round(450_000 * 256 / 1_281_167)
    schedule, step = Schedule(config, 0.01, load_network("caffe_alexnet")), 100_000 * 256 / 1_281_167
    for epoch in range(config.epochs):
        assert schedule.rates(epoch).weights["conv1"] == pytest.approx(0.01 * 0.1 ** int((epoch + 0.1) / step)), epoch
        assert schedule.rates(epoch).biases["conv1"] == pytest.approx(2 * schedule.rates(epoch).weights["conv1"])
        schedule.end_epoch(epoch + 1, 50.0)


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
