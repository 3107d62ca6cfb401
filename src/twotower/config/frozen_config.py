"""Configurations that nobody can change once they are made and checked."""

from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

Group = TypeVar("Group")


class Freezable:
    """A group of the schema. OmegaConf builds it key by key, so it can be frozen only afterwards, by `freeze`."""

    def __setattr__(self, key: str, value: Any) -> None:
        if self.__dict__.get("_is_frozen", False):
            raise AttributeError(
                f"{type(self).__name__}.{key} cannot be assigned, because the configuration is frozen; use "
                "dataclasses.replace."
            )
        super().__setattr__(key, value)


def freeze(group: Group) -> Group:
    """The same object, in which no key of it or of its groups can be assigned any more."""
    if is_dataclass(group):
        for key in fields(group):
            freeze(getattr(group, key.name))
        object.__setattr__(group, "_is_frozen", True)
    elif isinstance(group, dict):
        for value in group.values():
            freeze(value)
    elif isinstance(group, list):
        for value in group:
            freeze(value)
    return group
