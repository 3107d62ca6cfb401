"""Configurations as runs and files of weights have stored them, read back as they stand.

Hydra has resolved every interpolation before a run stores its configuration. One that is there all the same was put
there, and resolving it would copy an environment variable into whatever shows the configuration.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from twotower.config.frozen_config import freeze
from twotower.config.moved_keys import move_keys
from twotower.config.schema import Config
from twotower.config.value_bounds import check_bounds
from twotower.ground.links import refuse_links
from twotower.ground.stored_files import damaged, read_limited
from twotower.ground.wording import on_one_line

LARGEST_YAML = 1 << 20  # bytes; a configuration with hundreds of layers takes a tenth of it
DEEPEST = 20  # mappings and lists within each other; the schema has four
REMEDY = "copy it again from where the run was trained, or leave this run out"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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
                f"{where} has {on_one_line(text, 100)!r}, which stands for a value from elsewhere; no run stores "
                "such, so the file was changed and is not read."
            )


def read_config(run_dir: Path) -> Config:
    """The resolved configuration that a run stored. Every command that opens a run that is there begins with it.

    Raises: ValueError naming the file if there is none, it is damaged, does not fit, or has interpolations; or a link
        that leads out of the run's folder.
    """
    path = run_dir / "config.yaml"
    if not os.path.lexists(path):
        raise ValueError(f"{run_dir} is not the folder of a run: it has no config.yaml.")
    refuse_links(run_dir)
    return read_config_file(path)


def read_config_file(path: Path) -> Config:
    """The configuration in a file that this or an earlier version wrote.

    Raises: ValueError naming the file if it is damaged, does not fit, or has interpolations.
    """
    stored = read_yaml(path)
    try:
        move_keys(stored)
        command = stored.pop("command", None)  # as it was typed, perhaps with an interpolation: never resolved
        refuse_interpolations(stored, path)
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), stored))
        assert isinstance(config, Config)
        config = replace(config, command=None if command is None else str(command))
        check_bounds(config)
    except (OmegaConfBaseException, TypeError, AttributeError, KeyError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} does not fit ({on_one_line(reason, 300)}); {REMEDY}.") from error
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path} does not fit ({on_one_line(str(error), 300).rstrip('.')}); {REMEDY}.") from error
    return freeze(config)


def read_yaml(path: Path) -> dict[Any, Any]:
    """A mapping that OmegaConf has written, as it stands: nothing in it is resolved.

    What OmegaConf never writes is refused before anything is built of it: aliases, by which 430 bytes stand for
    gigabytes, tags, and brackets without end.

    Raises: ValueError naming the file if it is no such mapping.
    """
    text, depth = read_limited(path, LARGEST_YAML, REMEDY), 0
    try:
        for event in yaml.parse(text, Loader=LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise damaged(path, f"it is nested more than {DEEPEST} deep", REMEDY)
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise damaged(path, "it has aliases, which no run stores", REMEDY)
            if getattr(event, "tag", None) is not None:
                raise damaged(path, f"it has the tag {event.tag}, which no run stores", REMEDY)
        stored = OmegaConf.to_container(OmegaConf.create(text.decode()), resolve=False)
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise damaged(path, " ".join(str(error).split()), REMEDY) from None
    except (TypeError, AttributeError, KeyError, IndexError, AssertionError) as error:
        raise damaged(path, str(error), REMEDY) from None
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise damaged(path, str(error), REMEDY) from None
    if not isinstance(stored, dict):
        raise damaged(path, "it is no mapping of keys to values", REMEDY)
    return stored
