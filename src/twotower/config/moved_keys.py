"""Keys that stood elsewhere in earlier versions, and how configurations of that time are read."""

from typing import Any

MOVED = {
    "input.device": "machine.loader_device",
    "input.threads": "machine.loader_threads",
    "input.decode_once": "machine.decode_once",
}


def move_keys(stored: dict[Any, Any]) -> None:
    """Brings the keys of a stored configuration to where they stand now, in place; a key that is there stays."""
    for old, new in MOVED.items():
        (old_group, old_name), (new_group, new_name) = old.split("."), new.split(".")
        group = stored.get(old_group)
        if isinstance(group, dict) and old_name in group:
            value = group.pop(old_name)
            if isinstance(stored.setdefault(new_group, {}), dict):
                stored[new_group].setdefault(new_name, value)
