"""The text of --help: a command's usage, its groups with their options, and every key with its value and its meaning.

The meanings are the comments of config/schema.py and config/commands.py, which are there for their readers as well.
"""

import ast
import inspect
import io
import shutil
import textwrap
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from twotower.command_line.mistakes import list_keys_of
from twotower.config import commands, schema
from twotower.config.keys import Bounds

WIDEST = 120  # columns; longer lines are hard to follow
_INDENT = 42  # columns of the keys before their meanings
UNUSED = "not used"  # how the comment of a key begins that is only there for others to refer to


@cache
def comments() -> dict[str, dict[str, str]]:
    """Dataclass -> key -> the comment above it or behind it in the schema; no entry where there is none."""
    meanings: dict[str, dict[str, str]] = {}
    for module in (schema, commands):
        source = inspect.getsource(module)
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
        notes = [token for token in tokens if token.type == tokenize.COMMENT]
        by_line = {note.start[0]: note.string.lstrip("# ") for note in notes}
        alone = {note.start[0] for note in notes if note.line.lstrip().startswith("#")}
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef):
                for entry in node.body:
                    if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
                        first = entry.lineno
                        while first - 1 in alone:
                            first -= 1
                        lines = range(first, (entry.end_lineno or entry.lineno) + 1)
                        text = " ".join(by_line[line] for line in lines if line in by_line)
                        if text:
                            meanings.setdefault(node.name, {})[entry.target.id] = text
    return meanings


def _meanings_of(group: type) -> dict[str, str]:
    """Key -> its comment, with the words before it that the key can be."""
    texts = comments().get(group.__name__, {})
    meanings = {}
    for entry in fields(group):
        bounds = entry.metadata.get("bounds", Bounds())
        words, text = " | ".join(_shown(choice) for choice in bounds.choices), texts.get(entry.name, "")
        rules = f"`{'`, `'.join(bounds.rules)}`: " if bounds.rules and text else ""
        between = "" if not words or not text else ". " if text[0].isupper() else "; "
        meanings[entry.name] = rules + words + between + text
    return meanings


def _shown(value: Any) -> str:
    """A value as it is given on the command line; of a list of tables only that it is there."""
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        return "[...]"
    if isinstance(value, list):
        return f"[{','.join(_shown(entry) for entry in value)}]"
    words = {"None": "null", "True": "true", "False": "false", "???": "(must be given)"}
    return words.get(str(value), str(value))


def _entry(key: str, meaning: str, width: int) -> str:
    """A key=value with what it means beside it, or beneath it where it is long."""
    room = [""] if not meaning else textwrap.wrap(meaning, max(width - _INDENT, 30), break_on_hyphens=False)
    beside = len(key) < _INDENT - 1
    lines = [f"{key:{_INDENT}}{room[0]}" if beside else key]
    lines += [" " * _INDENT + line for line in (room[1:] if beside else room)]
    return "\n".join(line.rstrip() for line in lines)


def list_keys(group: type, values: Mapping[str, Any], width: int, prefix: str = "") -> Iterator[str]:
    """An entry for each key of a group of the schema; those of a network's rows stand there once, for all of them."""
    meanings = _meanings_of(group)
    for name, kind in list_keys_of(group).items():
        meaning, value = meanings.get(name, ""), values.get(name)
        if meaning.startswith(UNUSED):
            continue
        if get_origin(kind) is dict and is_dataclass(get_args(kind)[1]) and isinstance(value, Mapping) and value:
            row = get_args(kind)[1]
            yield ""
            about = f" ({meaning})" if meaning else ""
            yield f"{prefix}{name}.NAME.KEY{about}, with NAME one of {', '.join(value)}:"
            yield from list_keys(row, next(iter(value.values())), width, "  ")
            yield ""
        elif is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
            if not prefix:
                yield f"\n{name}"
            yield from list_keys(kind, value, width, f"{prefix}{name}.")
            if not prefix:
                yield ""
        else:
            yield _entry(f"{prefix}{name}={_shown(value)}", meaning, width)


def list_groups(groups: Sequence[str], conf: Path, width: int) -> Iterator[str]:
    """`network=` and the yamls there are for it."""
    for group in groups:
        options = sorted(path.stem for path in (conf / group).glob("*.yaml"))
        yield _entry(f"{group}=", ", ".join(options), width)


def write_manual(template: str, group: type, composed: Any, groups: Sequence[str], conf: Path) -> str:
    """The text of --help.

    Args:
        template: hydra.help.template of the command's yaml, with $CONFIG and perhaps $APP_CONFIG_GROUPS.
        composed: the configuration as the command line has it, without what is Hydra's.
    """
    width = min(shutil.get_terminal_size().columns, WIDEST)
    try:
        values = OmegaConf.to_container(composed, resolve=True)
    except OmegaConfBaseException:  # what refers to a network where none is chosen
        values = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(values, dict)
    keys = "\n".join(list_keys(group, {str(key): value for key, value in values.items()}, width))
    text = template.replace("$APP_CONFIG_GROUPS", "\n".join(list_groups(groups, conf, width)))
    lines = text.replace("$CONFIG", keys).splitlines()
    # At most one empty line in a row.
    spaced = [line for line, before in zip(lines, ["", *lines], strict=False) if line or before]
    return "\n".join(spaced).rstrip() + "\n"
