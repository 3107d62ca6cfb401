"""The role of each key of the configuration, and the one function that chooses keys by it.

| role       | the key decides                                                    | for example                |
|------------|--------------------------------------------------------------------|----------------------------|
| `numbers`  | what a network computes from given weights and images               | network.lrn, input.mean    |
| `training` | how weights are learned                                             | optim, schedule, ablation  |
| `seed`     | which random draws are made                                         | seed                       |
| `images`   | where the images lie                                                | data.root                  |
| `speed`    | how fast it is done, and nothing else                               | machine.threads            |
| `place`    | where files go, and from where a run goes on                        | run_dir, resume            |
| `record`   | what is noted of a run, and how often                               | logging, checkpoint        |
| `name`     | what a run is called                                                | name                       |

The schema marks a group with `@has_role(...)`, and single keys that differ from it with `key(default, Role.SPEED)`.
"""

from collections.abc import Collection
from dataclasses import Field, asdict, fields, is_dataclass
from enum import StrEnum
from typing import Any


class Role(StrEnum):
    NUMBERS = "numbers"
    TRAINING = "training"
    SEED = "seed"
    IMAGES = "images"
    SPEED = "speed"
    PLACE = "place"
    RECORD = "record"
    NAME = "name"


def find_role(group: type, key: Field[Any]) -> Role:
    """Raises: ValueError for a key without a role."""
    role = key.metadata.get("role") or getattr(group, "_role", None)
    if role is None:
        raise ValueError(f"{group.__name__}.{key.name} has no role; see twotower/config/key_roles.py.")
    return Role(role)


def select_settings(group: Any, roles: Collection[Role], prefix: str = "") -> dict[str, Any]:
    """The settings with one of these roles, by their keys on the command line: {"optim.momentum": 0.9, ...}.

    Args:
        group: a `Config`, or a group of it such as `InputConfig`.
        prefix: the group's own key with a dot, as "input.".
    """
    selected: dict[str, Any] = {}
    for key in fields(group):
        value, name = getattr(group, key.name), f"{prefix}{key.name}"
        if is_dataclass(value):
            selected |= select_settings(value, roles, f"{name}.")
        elif isinstance(value, dict) and value and all(is_dataclass(entry) for entry in value.values()):
            for entry in value:
                selected |= select_settings(value[entry], roles, f"{name}.{entry}.")
        elif find_role(type(group), key) in roles:
            selected[name] = [asdict(entry) for entry in value] if _holds_groups(value) else value
    return selected


def _holds_groups(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(is_dataclass(entry) for entry in value)
