"""Every bound that the schema states is held at its edges, by whatever command reads the key."""

import math
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass, replace
from typing import Any, get_args

import pytest

from twotower.command_line.mistakes import list_keys_of
from twotower.config import SCHEMAS, ScheduleConfig, check_bounds
from twotower.config.keys import Bounds

INSIDE, OUTSIDE = True, False


def groups_of(schema: type) -> Iterator[type]:
    """A dataclass of the schema and all that stand in it, once each."""
    seen: list[type] = []
    waiting = [schema]
    while waiting:
        group = waiting.pop()
        if group in seen:
            continue
        seen.append(group)
        for kind in list_keys_of(group).values():
            inner = [kind, *get_args(kind)]
            waiting += [kind for kind in inner if isinstance(kind, type) and is_dataclass(kind)]
    yield from seen


GROUPS = list(dict.fromkeys(group for schema in SCHEMAS.values() for group in groups_of(schema)))
BOUNDED = [
    pytest.param(group, key, id=f"{group.__name__}.{key.name}")
    for group in GROUPS
    for key in fields(group)
    if key.metadata.get("bounds", Bounds()) != Bounds(rules=key.metadata.get("bounds", Bounds()).rules)
]


def edges(bounds: Bounds) -> Iterator[tuple[Any, bool]]:
    """Values beside each limit, and whether they are allowed."""
    if bounds.choices:
        yield from ((choice, INSIDE) for choice in bounds.choices)
        yield ("something else" if isinstance(bounds.choices[0], str) else 17), OUTSIDE
        return
    for limit, allowed, step in (
        (bounds.least, INSIDE, -1),
        (bounds.above, OUTSIDE, -1),
        (bounds.most, INSIDE, 1),
        (bounds.below, OUTSIDE, 1),
    ):
        if limit is not None:
            yield limit, allowed
            yield limit + step, OUTSIDE
            yield limit + 1e-9 * step, OUTSIDE
    yield math.nan, OUTSIDE
    yield math.inf, OUTSIDE
    if bounds.odd:
        yield 6, OUTSIDE
        yield 7, INSIDE


def test_there_are_bounds() -> None:
    assert len(BOUNDED) > 90
    assert {"LayerConfig.kind", "OptimConfig.momentum", "EvaluateConfig.crops"} <= {case.id for case in BOUNDED}


@pytest.mark.parametrize(("group", "key"), BOUNDED)
def test_a_value_at_its_limit_is_taken_and_one_beyond_is_not(group: type, key: Field[Any]) -> None:
    bounds = key.metadata["bounds"]
    in_list = "list" in str(key.type) or "dict[" in str(key.type)
    usual = group(rule=bounds.rules[0]) if bounds.rules else group()
    for value, allowed in edges(bounds):
        given = {"a": value} if "dict[" in str(key.type) else [value] if in_list else value
        settings = replace(usual, **{key.name: given})
        if allowed:
            check_bounds(settings, "x.")
            continue
        with pytest.raises(
            ValueError, match=rf"^x\.{key.name}(\.a)?=.* is not (known|possible); (choose|give) .*\.$"
        ):
            check_bounds(settings, "x.")


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_the_defaults_are_within_their_bounds(group: type) -> None:
    check_bounds(group())


def test_words_are_compared_as_they_are() -> None:
    """A number that stands for a word's place in a list is no word, and neither is a prefix."""
    for word in ("0", "Relu", "rel", ""):
        with pytest.raises(ValueError, match=r"activation=.* is not known; choose one of relu, tanh, sigmoid\."):
            check_bounds(SCHEMAS["config"].__annotations__["network"](activation=word))


@pytest.mark.parametrize("rule", ["plateau", "fixed", "recorded", "exponential"])
def test_a_key_of_another_rule_is_refused(rule: str) -> None:
    others = {
        "divide_by": 5.0,
        "patience": 2,
        "max_drops": 1,
        "drop_epochs": [2],
        "recorded_epochs": 90.0,
        "divide_over_run": 100.0,
        "levels": None,
        "bias_divide_over_run": 2.0,
        "bias_levels": 3,
    }
    assert set(others) | {"changes"} == {key.name for key in fields(ScheduleConfig) if key.metadata["bounds"].rules}
    belongs = {key.name: rule in key.metadata["bounds"].rules for key in fields(ScheduleConfig)}
    assert any(belongs[name] for name in others)
    for name, value in others.items():
        schedule = ScheduleConfig(rule=rule, epochs=9, **{name: value})  # type: ignore[arg-type]
        if belongs[name]:
            check_bounds(schedule, "schedule.")
            continue
        with pytest.raises(
            ValueError,
            match=rf"^schedule\.{name}(=.*)? is for schedule\.rule=.*, and the rule is {rule}; choose a schedule",
        ):
            check_bounds(schedule, "schedule.")
