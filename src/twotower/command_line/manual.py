"""The text of --help: a command's usage, its groups with their options, and every key with its value and its meaning.

The meanings are the comments of the schema in config.py, which are there for its readers as well.
"""

import ast
import inspect
import io
import shutil
import textwrap
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from twotower.command_line.mistakes import keys_of
from twotower.config import schema as schemas

WIDEST = 120  # columns; longer lines are hard to follow
_INDENT = 42  # columns of the keys before their meanings
UNUSED = "not used"  # how the comment of a key begins that is only there for others to refer to


@cache
def comments() -> dict[str, dict[str, str]]:
    """Dataclass -> key -> the comment that stands behind it in config.py; no entry where there is none."""
    source = inspect.getsource(schemas)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {one.start[0]: one.string.lstrip("# ") for one in tokens if one.type == tokenize.COMMENT}
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    lines = range(field.lineno, (field.end_lineno or field.lineno) + 1)
                    text = " ".join(by_line[line] for line in lines if line in by_line)
                    if text:
                        found.setdefault(node.name, {})[field.target.id] = text
    return found


def _shown(value: Any) -> str:
    """A value as it is given on the command line; of a list of tables only that it is there."""
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        return "[...]"
    if isinstance(value, list):
        return f"[{','.join(_shown(one) for one in value)}]"
    words = {"None": "null", "True": "true", "False": "false", "???": "(must be given)"}
    return words.get(str(value), str(value))


def _entry(key: str, meaning: str, width: int) -> str:
    """A key=value with what it means beside it, or beneath it where it is long."""
    room = [""] if not meaning else textwrap.wrap(meaning, max(width - _INDENT, 30), break_on_hyphens=False)
    beside = len(key) < _INDENT - 1
    lines = [f"{key:{_INDENT}}{room[0]}" if beside else key]
    lines += [" " * _INDENT + line for line in (room[1:] if beside else room)]
    return "\n".join(line.rstrip() for line in lines)


def list_keys(schema: type, values: Mapping[str, Any], width: int, prefix: str = "") -> Iterator[str]:
    """An entry for each key of a schema; those of a network's rows stand there once, for all of them."""
    meanings = comments().get(schema.__name__, {})
    for name, kind in keys_of(schema).items():
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


def write_manual(template: str, schema: type, composed: Any, groups: Sequence[str], conf: Path) -> str:
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
    keys = "\n".join(list_keys(schema, {str(key): value for key, value in values.items()}, width))
    text = template.replace("$APP_CONFIG_GROUPS", "\n".join(list_groups(groups, conf, width)))
    lines = text.replace("$CONFIG", keys).splitlines()
    # At most one empty line in a row.
    kept = [line for line, before in zip(lines, ["", *lines], strict=False) if line or before]
    return "\n".join(kept).rstrip() + "\n"
