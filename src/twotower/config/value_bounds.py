"""Refuses values that a key of the schema does not take, each in one sentence."""

from dataclasses import fields, is_dataclass
from typing import Any

from omegaconf import MISSING

from twotower.config.keys import Bounds


def _check_value(name: str, value: Any, bounds: Bounds) -> None:
    if bounds.choices and value not in bounds.choices:
        raise ValueError(f"{name}={value} is not known; choose one of {', '.join(map(str, bounds.choices))}.")
    if isinstance(value, int | float) and not isinstance(value, bool) and not bounds.contain(value):
        shown = f"{value:g}" if isinstance(value, float) else value
        raise ValueError(f"{name}={shown} is not possible; give {bounds.describe()}.")


def check_bounds(group: Any, prefix: str = "") -> None:
    """Refuses values outside of the bounds that the schema states at its keys.

    Args:
        group: a `Config`, a group of it such as `InputConfig`, or the settings of a command.
        prefix: the group's own key with a dot, as "input.".

    Raises: ValueError naming the key, what was given, what is allowed.
    """
    defaults = type(group)()
    for key in fields(group):
        value, name = getattr(group, key.name), f"{prefix}{key.name}"
        bounds = key.metadata.get("bounds", Bounds())
        if is_dataclass(value):
            check_bounds(value, f"{name}.")
        elif isinstance(value, dict):
            for entry, content in value.items():
                if is_dataclass(content):
                    check_bounds(content, f"{name}.{entry}.")
                else:
                    _check_value(f"{name}.{entry}", content, bounds)
        elif isinstance(value, list):
            for index, content in enumerate(value):
                if is_dataclass(content):
                    check_bounds(content, f"{name}[{index}].")
                else:
                    _check_value(name, content, bounds)
        elif value is not None and value != MISSING:
            _check_value(name, value, bounds)
        if bounds.rules and group.rule not in bounds.rules and value != getattr(defaults, key.name):
            group_name = prefix.removesuffix(".")
            given = name if isinstance(value, list) else f"{name}={value}"
            raise ValueError(
                f"{given} is for {prefix}rule={' or '.join(bounds.rules)}, and the rule is {group.rule}; choose a "
                f"{group_name} with that rule by {group_name}=NAME, or leave {name} out."
            )
