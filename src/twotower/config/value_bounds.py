"""Refuses values that a key of the schema does not take, each in one sentence."""

import unicodedata
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from twotower.config.keys import Bounds

MOST_BYTES = 100  # of a text in a file's name, to which others are added


def _check_text(name: str, text: str, bounds: Bounds) -> None:
    """Refuses characters that files, screens and reports would show as something else."""
    allowed = "\n\t" if bounds.has_lines else "\t"
    odd = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in allowed), None)
    if odd is not None:
        what = "bytes that are not UTF-8" if unicodedata.category(odd) == "Cs" else "a control character"
        what = "a line break" if odd in "\n\r" else what
        raise ValueError(f"{name}={text!r} is not possible, because it has {what}; give a text without.")
    if not bounds.names_files:
        return
    if not text.strip() or any(c in "/\\\t" for c in text) or len(text.encode()) > MOST_BYTES:
        raise ValueError(
            f"{name}={text!r} is not possible, because files are named after it; give one without slashes, of "
            f"at most {MOST_BYTES} bytes."
        )


def _check_value(name: str, value: Any, bounds: Bounds) -> None:
    if isinstance(value, str):
        _check_text(name, value, bounds)
    if bounds.choices and value not in bounds.choices:
        shown = repr(value) if isinstance(value, str) and not value.isprintable() else value
        raise ValueError(f"{name}={shown} is not known; choose one of {', '.join(map(str, bounds.choices))}.")
    if isinstance(value, int | float) and not isinstance(value, bool) and not bounds.contain(value):
        shown = f"{value:g}" if isinstance(value, float) else value
        raise ValueError(f"{name}={shown} is not possible; give {bounds.describe()}.")


def _split(hint: Any) -> tuple[Any, Any]:
    """A key's type without null: list, dict or None for neither, and the type of what it holds."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kind = next(option for option in options if option is not type(None))
    outer = get_origin(kind)
    return outer, get_args(kind)[-1] if outer in (list, dict) else kind


def check_kinds(group: Any, prefix: str = "") -> None:
    """Refuses a group, a list or one value in each other's places, where an interpolation can put anything.

    Args:
        group, prefix: as of `check_bounds`.

    Raises: ValueError naming the key.
    """
    for name, hint in get_type_hints(type(group)).items():
        value, key = getattr(group, name), f"{prefix}{name}"
        if value is None and type(None) not in get_args(hint):
            raise ValueError(f"{key}=null is not possible; give a value.")
        if value is None or value == MISSING:
            continue
        outer, inner = _split(hint)
        entries: dict[str, Any] = {key: value}
        if outer is list and isinstance(value, list):
            entries = {f"{key}[{index}]": content for index, content in enumerate(value)}
        elif outer is dict and isinstance(value, dict):
            entries = {f"{key}.{entry}": content for entry, content in value.items()}
        elif outer in (list, dict) and not is_dataclass(inner):
            raise ValueError(f"{key} takes {'a list' if outer is list else 'keys with values'}; give it one.")
        for full, content in entries.items():
            if is_dataclass(inner) and is_dataclass(content):
                check_kinds(content, f"{full}.")
            elif is_dataclass(inner) and content is not None and content != MISSING:
                raise ValueError(f"{full}={content!r} is not possible; it stands for several keys, {full}.KEY=VALUE.")
            elif is_dataclass(content) or isinstance(content, list | dict):
                raise ValueError(f"{full} takes one value, and several were given; give one.")


def check_bounds(group: Any, prefix: str = "") -> None:
    """Refuses values outside of the bounds that the schema states at its keys.

    Args:
        group: a `Config`, a group of it such as `InputConfig`, or the settings of a command.
        prefix: the group's own key with a dot, as "input.".

    Raises: ValueError naming the key, what was given, what is allowed.
    """
    check_kinds(group, prefix)
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
