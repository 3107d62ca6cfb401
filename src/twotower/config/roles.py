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

The schema marks a group with `@has_role(...)`, and single keys that differ from it with `speed_key(...)` or such.
"""

from collections.abc import Callable, Collection
from dataclasses import MISSING, Field, asdict, field, fields, is_dataclass, replace
from enum import StrEnum
from typing import Any, TypeVar

Group = TypeVar("Group")


class Role(StrEnum):
    NUMBERS = "numbers"
    TRAINING = "training"
    SEED = "seed"
    IMAGES = "images"
    SPEED = "speed"
    PLACE = "place"
    RECORD = "record"
    NAME = "name"


def has_role(role: Role) -> Callable[[type[Group]], type[Group]]:
    """A decorator for a group of the schema: the role of its keys that have none of their own."""

    def mark(group: type[Group]) -> type[Group]:
        group._role = role  # type: ignore[attr-defined]
        return group

    return mark


def _key(role: Role, default: Any, default_factory: Any) -> Any:
    if default_factory is not MISSING:
        return field(default_factory=default_factory, metadata={"role": role})
    return field(default=default, metadata={"role": role})


def training_key(default: Any = MISSING, default_factory: Any = MISSING) -> Any:
    """A key of the schema with this role; arguments as for `dataclasses.field`. The same for those below."""
    return _key(Role.TRAINING, default, default_factory)


def seed_key(default: Any = MISSING, default_factory: Any = MISSING) -> Any:
    return _key(Role.SEED, default, default_factory)


def images_key(default: Any = MISSING, default_factory: Any = MISSING) -> Any:
    return _key(Role.IMAGES, default, default_factory)


def speed_key(default: Any = MISSING, default_factory: Any = MISSING) -> Any:
    return _key(Role.SPEED, default, default_factory)


def place_key(default: Any = MISSING, default_factory: Any = MISSING) -> Any:
    return _key(Role.PLACE, default, default_factory)


def record_key(default: Any = MISSING, default_factory: Any = MISSING) -> Any:
    return _key(Role.RECORD, default, default_factory)


def name_key(default: Any = MISSING, default_factory: Any = MISSING) -> Any:
    return _key(Role.NAME, default, default_factory)


def role_of(group: type, key: Field[Any]) -> Role:
    """Raises: ValueError for a key without a role."""
    found = key.metadata.get("role", getattr(group, "_role", None))
    if found is None:
        raise ValueError(f"{group.__name__}.{key.name} has no role; see twotower/config/roles.py.")
    return Role(found)


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
        elif role_of(type(group), key) in roles:
            selected[name] = [asdict(entry) for entry in value] if _holds_groups(value) else value
    return selected


def _holds_groups(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(is_dataclass(entry) for entry in value)


def reset_settings(group: Group, roles: Collection[Role]) -> Group:
    """A group of the configuration in which keys with one of these roles have the schema's defaults."""
    defaults = type(group)()
    changed = {
        key.name: getattr(defaults, key.name)
        for key in fields(group)  # type: ignore[arg-type]
        if role_of(type(group), key) in roles
    }
    return replace(group, **changed)  # type: ignore[type-var]
