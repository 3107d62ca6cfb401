"""Configurations as runs and files of weights have stored them, read back as they stand.

Hydra has resolved every interpolation before a run stores its configuration. One that is there all the same was put
there, and resolving it would copy an environment variable into whatever shows the configuration.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from twotower.config.frozen_config import freeze
from twotower.config.moved_keys import move_keys
from twotower.config.schema import Config


def _texts(content: Any) -> Iterator[str]:
    """Every string in nested dictionaries and lists, keys included."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _texts(key)
            yield from _texts(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from _texts(value)


def refuse_interpolations(content: Any, where: str | Path) -> None:
    """Raises: ValueError if anything in `content`, as JSON or YAML has it, would be resolved by OmegaConf."""
    for text in _texts(content):
        if "${" in text:
            raise ValueError(
                f"{where} has {text!r}, which stands for a value from elsewhere; no run stores such, so the file was "
                "changed and is not read."
            )


def read_config(run_dir: Path) -> Config:
    """The resolved configuration that a run stored.

    Raises: ValueError if there is none, or it has interpolations; OmegaConf's own errors if it does not fit.
    """
    path = run_dir / "config.yaml"
    if not path.exists():
        raise ValueError(f"{run_dir} is not the folder of a run: it has no config.yaml.")
    return read_config_file(path)


def read_config_file(path: Path) -> Config:
    """The configuration in a file that this or an earlier version wrote.

    Raises: ValueError if it has interpolations; OmegaConf's own errors if it does not fit.
    """
    stored = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    command = None
    if isinstance(stored, dict):
        move_keys(stored)
        command = stored.pop("command", None)  # as it was typed, perhaps with an interpolation: never resolved
    refuse_interpolations(stored, path)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), stored))
    assert isinstance(config, Config)
    return freeze(replace(config, command=None if command is None else str(command)))
