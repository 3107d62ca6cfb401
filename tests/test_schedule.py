"""When the rates change, and in which layers."""

from conftest import load_network
from twotower.config import ScheduleConfig
from twotower.schedule import Schedule

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
