"""Every bound that the schema states is held at its edges, by whatever command reads the key."""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import Field, fields, is_dataclass, replace
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from helpers.composing import compose
from twotower.command_line.mistakes import list_keys_of
from twotower.config import SCHEMAS, Config, LoggingConfig, ScheduleConfig, check_bounds
from twotower.config.keys import Bounds
from twotower.training.configure import note_command

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


def kinds_of(group: type, key: Field[Any]) -> set[Any]:
    """The types in a key's type: int and list of list[int] | None, and the type of None."""
    waiting, kinds = [get_type_hints(group)[key.name]], set()
    while waiting:
        kind = waiting.pop()
        kinds |= {kind, get_origin(kind)}
        waiting += get_args(kind)
    return kinds


GROUPS = list(dict.fromkeys(group for schema in SCHEMAS.values() for group in groups_of(schema)))
BOUNDED = [
    pytest.param(group, key, id=f"{group.__name__}.{key.name}")
    for group in GROUPS
    for key in fields(group)
    if replace(key.metadata.get("bounds", Bounds()), rules=(), has_lines=False) != Bounds()
]


NUMBERS = [
    pytest.param(group, key, id=f"{group.__name__}.{key.name}")
    for group in GROUPS
    for key in fields(group)
    if {int, float} & kinds_of(group, key)
]


def edges(bounds: Bounds, is_whole: bool) -> Iterator[tuple[Any, bool]]:
    """Values beside each limit, and whether they are allowed."""
    if bounds.choices:
        yield from ((choice, INSIDE) for choice in bounds.choices)
        yield ("something else" if isinstance(bounds.choices[0], str) else 17), OUTSIDE
        return
    if bounds.names_files:
        yield from (("a", INSIDE), ("run 1.é", INSIDE), ("a" * 100, INSIDE))
        yield from ((text, OUTSIDE) for text in ("", " ", "../x", "a/b", "a\\b", "a\nb", "a" * 101, "é" * 51))
        return
    for limit, allowed, direction in (
        (bounds.least, INSIDE, -1),
        (bounds.above, OUTSIDE, -1),
        (bounds.most, INSIDE, 1),
        (bounds.below, OUTSIDE, 1),
    ):
        if limit is not None:
            inwards = 2 if bounds.odd else 1
            yield limit, allowed
            yield (limit - inwards * direction if is_whole else math.nextafter(limit, -direction * math.inf)), INSIDE
            yield (limit + direction if is_whole else math.nextafter(limit, direction * math.inf)), OUTSIDE
            yield direction * 10.0**300, OUTSIDE
            yield direction * math.inf, OUTSIDE
    yield math.nan, OUTSIDE
    if bounds.odd:
        yield 6, OUTSIDE
        yield 7, INSIDE


def test_there_are_bounds() -> None:
    assert len(BOUNDED) > 120
    assert {"LayerConfig.kind", "OptimConfig.momentum", "EvaluateConfig.crops"} <= {case.id for case in BOUNDED}
    assert len(NUMBERS) > 75
    assert {"LayerConfig.stride", "InputConfig.std", "SourceConfig.expected"} <= {case.id for case in NUMBERS}


@pytest.mark.parametrize(("group", "key"), NUMBERS)
def test_a_number_is_bounded_on_both_sides(group: type, key: Field[Any]) -> None:
    """A new key needs bounds, too: without them a value of 1e300 would be taken."""
    bounds = key.metadata.get("bounds", Bounds())
    assert bounds.choices or (bounds.least, bounds.above) != (None, None), f"give {key.name} its least value"
    assert bounds.choices or (bounds.most, bounds.below) != (None, None), f"give {key.name} its largest value"


@pytest.mark.parametrize(("group", "key"), BOUNDED)
def test_a_value_at_its_limit_is_taken_and_one_beyond_is_not(group: type, key: Field[Any]) -> None:
    bounds, kinds = key.metadata["bounds"], kinds_of(group, key)
    usual = group(rule=bounds.rules[0]) if bounds.rules else group()
    tried = {INSIDE: 0, OUTSIDE: 0}
    for value, allowed in edges(bounds, is_whole=float not in kinds):
        given = {"a": value} if dict in kinds else [value] if list in kinds else value
        settings = replace(usual, **{key.name: given})
        tried[allowed] += 1
        if allowed:
            check_bounds(settings, "x.")
            continue
        with pytest.raises(
            ValueError, match=rf"^x\.{key.name}(\.a)?=[^;]* is not (known|possible)[^;]*; (choose|give) .*\.$"
        ) as caught:
            check_bounds(settings, "x.")
        for limit in (bounds.least, bounds.above, bounds.most, bounds.below):
            assert limit is None or f"{limit if isinstance(limit, int) else format(limit, 'g')}" in str(caught.value)
    assert all(tried.values())
    if type(None) in get_args(get_type_hints(group)[key.name]):
        check_bounds(replace(usual, **{key.name: None}), "x.")


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_bounded_key_of_a_command_is_refused_by_its_full_name(schema: str) -> None:
    """Whatever group it stands in, and in the rows of a network and the entries of a list as well."""
    settings = SCHEMAS[schema]()
    refused = 0
    for path, broken in broken_settings(settings):
        with pytest.raises(ValueError, match=rf"^{re.escape(path)}=.* is not possible; give .*\.$"):
            check_bounds(broken)
        refused += 1
    assert refused >= (50 if schema == "config" else 0)


def broken_settings(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """For each number in a group and in its groups: its full key, and the group with a number that is too large."""
    for key in fields(group):
        for kind in kinds_of(type(group), key):
            wrap = WRAPS[next((outer for outer in (dict, list) if outer in kinds_of(type(group), key)), None)]
            if is_dataclass(kind) and isinstance(kind, type):
                name = f"{prefix}{key.name}{wrap[0]}"
                for path, broken in broken_settings(kind(), f"{name}."):
                    yield path, replace(group, **{key.name: wrap[1](broken)})
        bounds = key.metadata.get("bounds", Bounds())
        if {int, float} & kinds_of(type(group), key) and not bounds.choices and not bounds.rules:
            is_dict, is_list = (outer in kinds_of(type(group), key) for outer in (dict, list))
            value: Any = {"a": 1e300} if is_dict else [1e300] if is_list else 1e300
            yield f"{prefix}{key.name}{'.a' if is_dict else ''}", replace(group, **{key.name: value})


# How a group stands in another one: what its name has behind it, and what holds it.
WRAPS: dict[type | None, tuple[str, Callable[[Any], Any]]] = {
    None: ("", lambda group: group),
    dict: (".a", lambda group: {"a": group}),
    list: ("[0]", lambda group: [group]),
}


@pytest.mark.parametrize("text", ["a\x1b[31mb", "a\x00b", "a\x7f", "a\udcff"])
def test_a_text_that_a_file_or_a_screen_cannot_hold_is_refused(text: str) -> None:
    for group, key in ((Config(run_dir=text), "run_dir"), (LoggingConfig(tags=["a", text]), "tags")):
        with pytest.raises(
            ValueError, match=rf"^{key}='a\\.* has (a control character|bytes that are not UTF-8); give"
        ):
            check_bounds(group)
    with pytest.raises(ValueError, match=r"^name='a\\nb' is not possible, because it has a line break; give"):
        check_bounds(LoggingConfig(name="a\nb"))
    notes = "two lines\nand a tab\t, ü, 😀"
    check_bounds(LoggingConfig(notes=notes))
    check_bounds(note_command(compose(), [f"logging.notes='{notes}'"]))


def test_one_value_is_no_group() -> None:
    """An interpolation puts anything anywhere."""
    network = SCHEMAS["config"].__annotations__["network"]
    with pytest.raises(ValueError, match=r"^network\.pool=0\.5 is not possible; it stands for several keys"):
        check_bounds(network(pool=0.5), "network.")
    with pytest.raises(ValueError, match=r"^network\.leave_out=null is not possible; give a value\."):
        check_bounds(network(leave_out=None), "network.")
    with pytest.raises(ValueError, match=r"^network\.layers\.conv1=3 is not possible; it stands for several keys"):
        check_bounds(network(layers={"conv1": 3}), "network.")
    with pytest.raises(ValueError, match=r"^x\.changes\[0\]=3 is not possible; it stands for several keys"):
        check_bounds(ScheduleConfig(rule="recorded", changes=[3]), "x.")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ("logging.tags=${optim}", "logging.tags takes a list; give it one."),
        ("logging.tags=${seed}", "logging.tags takes a list; give it one."),
        ("schedule.changes=${seed}", "schedule.changes=0 is not possible; it stands for several keys"),
        ("network.pool=${network.width}", "network.pool=0.25 is not possible; it stands for several keys"),
        ("network.layers.conv1=${seed}", "network.layers.conv1=0 is not possible; it stands for several keys"),
    ],
)
def test_an_interpolation_puts_nothing_where_it_does_not_belong(overrides: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(sentence)}"):
        compose(overrides)


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
